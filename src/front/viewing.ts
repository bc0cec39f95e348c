// What can be looked at of pulls, in JSON and as pages, on whatever listener it is asked for; nothing here changes anything.

import type { IncomingMessage, ServerResponse } from "node:http";
import { PullError } from "../errors.ts";
import type { Events } from "./events.ts";
import type { Pulls } from "./pulls.ts";

export interface Views {
  readonly pulls: Pulls;
  readonly events: Events;
}

/** Pulls that have ended, where nobody says how many. */
const countPreset = 50;
const countMax = 10_000;

/** False where it is asked for something else. Throws `invalid`, and `not_found` for a pull that is not there. */
export async function view(
  { pulls, events }: Views,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<boolean> {
  if (request.method !== "GET") return false;
  const url = new URL(request.url ?? "/", "http://localhost");
  const id = /^\/pulls\/([^/]+)$/.exec(url.pathname)?.[1];
  if (id !== undefined) {
    sendJson(response, 200, await pulls.find(id));
  } else if (url.pathname === "/pulls") {
    sendJson(response, 200, await pulls.list(countOf(url.searchParams.get("count"))));
  } else if (url.pathname === "/events") {
    if (!events.follow(response)) throw new PullError("unavailable", "too many follow already");
  } else {
    return false;
  }
  return true;
}

export function sendJson(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" }).end(`${JSON.stringify(body)}\n`);
}

function countOf(text: string | null): number {
  if (text === null) return countPreset;
  const count = Number(text);
  if (/^\d+$/.test(text) && count > 0 && count <= countMax) return count;
  throw new PullError("invalid", `expected a number from 1 to ${countMax} behind count=`);
}
