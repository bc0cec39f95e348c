// The status page on loopback, where it is asked for: what the admin socket lets be looked at, and none of what it lets be
// changed.

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { PullError } from "../errors.ts";
import { answerFailed, isLocal } from "./admin.ts";
import { sendJson, type Views, view } from "./viewing.ts";

export interface Window {
  readonly port: number;
  close(): Promise<void>;
}

/** Throws `invalid` when the address cannot be listened on. */
export async function openWindow(views: Views, host: string, port: number): Promise<Window> {
  const server = createServer({ maxHeaderSize: 16 * 1024, requestTimeout: 10_000 }, (request, response) => {
    answer(views, request, response).catch((error: unknown) => answerFailed(response, error));
  });
  server.maxConnections = 64;
  await new Promise<void>((resolve, reject) => {
    // Stays on after that: accept(2) reports EMFILE as an error of the server, which nobody must die of.
    server.on("error", (error) => {
      reject(new PullError("invalid", `admin.page: cannot listen on ${host}:${port}: ${error.message}`));
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

/** A name that somebody else has made to mean this machine is not answered (DNS rebinding). */
async function answer(views: Views, request: IncomingMessage, response: ServerResponse): Promise<void> {
  if (!isLocal(request.headers.host)) throw new PullError("refused", "this is only for this machine");
  if (await view(views, request, response)) return;
  sendJson(response, 404, { error: "there are /, /pull/ID, and in JSON /pulls and /pulls/ID" });
}
