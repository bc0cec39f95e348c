// The exporter of traces as both processes have it: loaded by those who use it alone.

import { hostname } from "node:os";
import type { Exporter } from "./history/exporter.ts";
import type { Log } from "./log.ts";

export interface ExportingOptions {
  readonly endpoint: URL;
  readonly version: string;
  readonly log: Log;
}

export async function makeExporter({ endpoint, version, log }: ExportingOptions): Promise<Exporter> {
  const { Exporter } = await import("./history/exporter.ts");
  return new Exporter({
    endpoint,
    version,
    nodeName: hostname(),
    dropped: (count, why) =>
      log.warn({ count, why }, "traces of pulls were not taken by the collector of trace.otlp_endpoint"),
  });
}
