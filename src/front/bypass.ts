// Pulls that go past the process that pulls: containerd makes them, while there is no such process, or where it has lost
// one, or where an operator has switched it off. They leave traces like all others.

import { type ServiceError, status } from "@grpc/grpc-js";
import type { Config } from "../config.ts";
import type { Bypassed } from "../cri/failover.ts";
import { PullError } from "../errors.ts";
import { makeExporter } from "../exporting.ts";
import type { Exporter } from "../history/exporter.ts";
import { History } from "../history/history.ts";
import type { Outcome, PullRecord } from "../history/record.ts";
import type { Store } from "../history/store.ts";
import type { Log } from "../log.ts";
import type { Metrics } from "../metrics.ts";

export interface BypassOptions {
  readonly config: Config;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly version: string;
  readonly store: Store;
}

export class Bypass {
  readonly #options: BypassOptions;
  readonly history: History;
  /** Made for the first of them. */
  #exporter: Promise<Exporter> | undefined;

  constructor(options: BypassOptions) {
    const { store, log, metrics } = options;
    this.#options = options;
    this.history = new History({
      store,
      exported: (record) => void this.#export(record).catch(() => {}),
      failed: (error) => {
        metrics.tracesLost.inc();
        log.warn({ detail: PullError.from(error).message }, "a pull's trace could not be kept");
      },
    });
  }

  /** One is left to containerd; the signal is aborted when an operator cancels it. */
  begin({ incoming, reason, beganMs, isLost }: Bypassed): {
    readonly signal: AbortSignal;
    readonly end: (error: ServiceError | undefined) => void;
  } {
    const [traceparent] = incoming.metadata.get("traceparent");
    const trace = this.history.begin({
      isAhead: false,
      traceparent: traceparent?.toString(),
      startMs: beganMs,
    });
    trace.delegation = { reason, detail: "" };
    const now = performance.now();
    if (isLost) trace.spans.all.push({ name: "lost", startMs: beganMs, endMs: now });
    const asking = trace.spans.begin("containerd");
    const named = imageOf(incoming.request).then((image) => {
      trace.reference = image;
    });
    return {
      signal: trace.cancelled.signal,
      end: (error) => {
        asking[Symbol.dispose]();
        const state: Outcome["state"] =
          error === undefined ? "ok" : error.code === status.CANCELLED ? "cancelled" : "error";
        const outcome: Outcome = { state, path: "delegated", ...(error && { error: error.details }) };
        void named.then(() => this.history.end(trace, outcome));
      },
    };
  }

  async close(): Promise<void> {
    await this.history.settle();
    await (await this.#exporter)?.close();
  }

  async #export(record: PullRecord): Promise<void> {
    const { config, version, log } = this.#options;
    const { otlp_endpoint: endpoint } = config.trace;
    if (endpoint === "off") return;
    this.#exporter ??= makeExporter({ endpoint, version, log });
    (await this.#exporter).add(record);
  }
}

/** Its message is read only here, so what reads it is loaded only then. */
async function imageOf(request: Buffer): Promise<string> {
  const { fromBinary } = await import("@bufbuild/protobuf");
  const { PullImageRequestSchema } = await import("../proto/gen/cri_pb.js");
  try {
    return fromBinary(PullImageRequestSchema, request).image?.image ?? "";
  } catch {
    return "";
  }
}
