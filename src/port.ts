// A port that answers plain HTTP to whoever looks: bounded heads, connections and patience.

import { createServer, type RequestListener } from "node:http";
import { PullError } from "./errors.ts";

export interface Port {
  readonly port: number;
  close(): Promise<void>;
}

/** Throws `invalid`, with the configuration's key, when the address cannot be listened on. */
export async function openPort(
  key: string,
  host: string,
  port: number,
  answer: RequestListener,
): Promise<Port> {
  const server = createServer({ maxHeaderSize: 16 * 1024, requestTimeout: 10_000 }, answer);
  server.maxConnections = 64;
  await new Promise<void>((resolve, reject) => {
    // Stays on after that: accept(2) reports EMFILE as an error of the server, which nobody must die of.
    server.on("error", (error) => {
      reject(new PullError("invalid", `${key}: cannot listen on ${host}:${port}: ${error.message}`));
    });
    server.listen(port, host, resolve);
  });
  const address = server.address();
  return {
    port: typeof address === "object" && address !== null ? address.port : port,
    close: async () => {
      await new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      });
    },
  };
}
