// What can be looked at of pulls, as JSON and as pages, on whatever listener it is asked for; nothing here changes anything.

import type { IncomingMessage, ServerResponse } from "node:http";
import { PullError } from "../errors.ts";
import type { PullRecord } from "../history/record.ts";
import type { Events, Telling } from "./events.ts";
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
  views: Views,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<boolean> {
  if (request.method !== "GET") return false;
  const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
  const [, what = "", id, ...more] = pathname.split("/");
  if (more.length > 0) return false;
  switch (`/${what}${id === undefined ? "" : "/"}`) {
    case "/pulls":
      sendJson(response, 200, await views.pulls.list(countOf(searchParams.get("count"))));
      return true;
    case "/pulls/":
      sendJson(response, 200, await views.pulls.find(id ?? ""));
      return true;
    case "/events":
      follow(views, response, async (running) => ({ event: "pulls", data: JSON.stringify(running) }));
      return true;
    case "/":
    case "/pull/":
      await sendPage(views, response, id);
      return true;
    case "/changes":
      follow(views, response, overviewOf(views));
      return true;
    case "/changes/":
      follow(views, response, changesOf(views, (await views.pulls.find(id ?? "")).id));
      return true;
    default:
      return false;
  }
}

export function sendJson(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" }).end(`${JSON.stringify(body)}\n`);
}

function follow({ events }: Views, response: ServerResponse, tell: Telling): void {
  if (!events.follow(response, tell)) throw new PullError("unavailable", "too many follow already");
}

/** Of one pull, or of all. Pages are loaded when somebody looks at one. */
async function sendPage({ pulls }: Views, response: ServerResponse, id: string | undefined): Promise<void> {
  const { overview, pageHeaders, pageOf, pullView } = await import("../page/page.ts");
  let page: string;
  if (id === undefined) {
    const content = overview(await pulls.running(), await pulls.ended(countPreset));
    page = pageOf("Hawser: pulls", content, { events: "/changes", json: "/pulls" });
  } else {
    const pull = await pulls.find(id);
    const places = { events: `/changes/${pull.id}`, json: `/pulls/${pull.id}` };
    page = pageOf(`Hawser: ${pull.image}`, pullView(pull), places);
  }
  response.writeHead(200, pageHeaders).end(page);
}

/** Those that have ended are read again when there is another one. */
function overviewOf({ pulls }: Views): Telling {
  let known: string | undefined;
  let ended: readonly PullRecord[] = [];
  return async (running) => {
    const { overview } = await import("../page/page.ts");
    const version = await pulls.version();
    if (version !== known) ended = await pulls.ended(countPreset);
    known = version;
    return { event: "page", data: JSON.stringify(overview(running, ended).text) };
  };
}

function changesOf({ pulls }: Views, id: string): Telling {
  let isOver = false;
  return async (running) => {
    if (isOver) return { event: "over", data: "", isLast: true };
    const { pullView } = await import("../page/page.ts");
    const going = running.find((pull) => pull.id === id);
    isOver = going === undefined;
    return { event: "page", data: JSON.stringify(pullView(going ?? (await pulls.find(id))).text) };
  };
}

function countOf(text: string | null): number {
  if (text === null) return countPreset;
  const count = Number(text);
  if (/^\d+$/.test(text) && count > 0 && count <= countMax) return count;
  throw new PullError("invalid", `expected a number from 1 to ${countMax} behind count=`);
}
