// The metrics endpoint: /metrics for Prometheus and /healthz for probes, over plain http, and nothing else.

import type { IncomingMessage, ServerResponse } from "node:http";
import { Registry } from "prom-client";
import { openPort, type Port } from "./port.ts";

export interface Exposed {
  /** The text of /metrics. */
  readonly read: () => Promise<string>;
  /** What /healthz has to say against it, in a sentence; nothing without it. */
  readonly health?: () => Promise<string | undefined>;
}

/** Throws `invalid` when the address cannot be listened on. */
export async function expose(exposed: Exposed, host: string, port: number): Promise<Port> {
  return await openPort("metrics.listen", host, port, (request, response) => {
    // A default metric that cannot be collected (/proc hidden, descriptors used up) costs this answer, not the daemon.
    answer(exposed, request, response).catch(() => response.writeHead(500).end());
  });
}

async function answer(
  { read, health }: Exposed,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const path = request.url?.split("?", 1)[0];
  if (request.method !== "GET" && request.method !== "HEAD") {
    response.writeHead(405, { allow: "GET, HEAD" }).end();
  } else if (path === "/metrics") {
    const text = await read();
    response.writeHead(200, { "content-type": Registry.PROMETHEUS_CONTENT_TYPE }).end(text);
  } else if (path === "/healthz") {
    const problem = await health?.();
    response
      .writeHead(problem === undefined ? 200 : 503, { "content-type": "text/plain" })
      .end(`${problem ?? "ok"}\n`);
  } else {
    response.writeHead(404).end();
  }
}
