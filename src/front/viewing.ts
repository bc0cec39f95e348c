// What can be looked at of pulls, as JSON and as pages, on whatever listener it is asked for; nothing here changes anything.

import type { IncomingMessage, ServerResponse } from "node:http";
import { PullError } from "../errors.ts";
import type { Events, Telling } from "./events.ts";
import type { Pulls } from "./pulls.ts";

export interface Views {
  readonly pulls: Pulls;
  readonly events: Events;
}

/** Pulls that have ended: where nobody says how many, and the most that are shown at once. */
const countPreset = 50;
const countMax = 1000;

/** False where it is asked for something else. Throws `invalid`, and `not_found` for a pull that is not there. */
export async function view(
  views: Views,
  { method, url = "/" }: IncomingMessage,
  response: ServerResponse,
): Promise<boolean> {
  if (method !== "GET" && method !== "HEAD") return false;
  if (!URL.canParse(url, "http://localhost")) throw new PullError("invalid", "that is no path");
  const { pathname, searchParams } = new URL(url, "http://localhost");
  const [, what = "", id, ...more] = pathname.split("/");
  if (more.length > 0 || id === "") return false;
  // Of what never ends there is no end to wait for.
  if (method === "HEAD" && (what === "events" || what === "changes")) {
    response.writeHead(200, { "content-type": "text/event-stream" }).end();
    return true;
  }
  switch (`/${what}${id === undefined ? "" : "/"}`) {
    case "/pulls":
      sendJson(response, 200, await views.pulls.list(countOf(searchParams.get("count"))));
      return true;
    case "/pulls/":
      sendJson(response, 200, await views.pulls.find(id ?? ""));
      return true;
    case "/events":
      follow(views, response, pullsOf(views, searchParams.get("trace")));
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

/** Those that go on, in brief; or the one of this trace, whole, if it does. */
function pullsOf({ pulls }: Views, traceID: string | null): Telling {
  return async () => {
    const told = traceID === null ? await pulls.running() : ((await pulls.underway(traceID)) ?? null);
    return { event: "pulls", data: JSON.stringify(told) };
  };
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

function overviewOf({ pulls }: Views): Telling {
  return async () => {
    const { overview } = await import("../page/page.ts");
    const content = overview(await pulls.running(), await pulls.ended(countPreset));
    return { event: "page", data: JSON.stringify(content.text) };
  };
}

function changesOf({ pulls }: Views, id: string): Telling {
  let isOver = false;
  return async () => {
    if (isOver) return { event: "over", data: "", isLast: true };
    const { pullView } = await import("../page/page.ts");
    const pull = await pulls.find(id);
    isOver = pull.state !== "running";
    return { event: "page", data: JSON.stringify(pullView(pull).text) };
  };
}

function countOf(text: string | null): number {
  if (text === null) return countPreset;
  const count = Number(text);
  if (/^\d+$/.test(text) && count > 0 && count <= countMax) return count;
  throw new PullError("invalid", `expected a number from 1 to ${countMax} behind count=`);
}
