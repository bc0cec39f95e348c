// The status page on loopback, where it is asked for: what the admin socket lets be looked at, and none of what it lets be
// changed.

import type { IncomingMessage, ServerResponse } from "node:http";
import { PullError } from "../errors.ts";
import { openPort, type Port } from "../port.ts";
import { answerFailed, isLocal } from "./admin.ts";
import { sendJson, type Views, view } from "./viewing.ts";

/** Throws `invalid` when the address cannot be listened on. */
export async function openWindow(views: Views, host: string, port: number): Promise<Port> {
  return await openPort("admin.page", host, port, (request, response) => {
    answer(views, request, response).catch((error: unknown) => answerFailed(response, error));
  });
}

/** A name that somebody else has made to mean this machine is not answered (DNS rebinding). */
async function answer(views: Views, request: IncomingMessage, response: ServerResponse): Promise<void> {
  if (!isLocal(request.headers.host)) throw new PullError("refused", "this is only for this machine");
  if (await view(views, request, response)) return;
  sendJson(response, 404, { error: "there are /, /pull/ID, and in JSON /pulls and /pulls/ID" });
}
