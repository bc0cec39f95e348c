// The admin socket: what goes on, and the few things that an operator can have changed while the daemon runs.
//
// JSON over HTTP on a unix socket that is root's alone. Bodies are short and bounded; nothing here touches a pull.

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { type Listener, listen } from "../cri/listener.ts";
import { type ErrorCode, PullError } from "../errors.ts";
import type { PrewarmRequest, PrewarmStatus } from "../prewarm/prewarming.ts";
import type { SwitchState } from "./switch.ts";
import { sendJson, type Views, view } from "./viewing.ts";

/** What GET /status says. */
export interface Status {
  readonly version: string;
  readonly pid: number;
  readonly accelerating: boolean;
  /** Why not, if it is not. */
  readonly reason?: string;
  readonly detail?: string;
  readonly switch: SwitchState;
  readonly pullers: readonly { readonly pid: number; readonly state: string }[];
}

export interface AdminOptions {
  readonly socket: string;
  readonly status: () => Status;
  /** In the format that Prometheus scrapes. */
  readonly metrics: () => Promise<string>;
  /** Throws PullError. */
  readonly setSwitch: (state: SwitchState) => Promise<void>;
  /** What became of it, in a sentence for each thing that there is to say; throws PullError when nothing was changed. */
  readonly reload: () => Promise<readonly string[]>;
  /** Throws PullError. */
  readonly prewarm: (request: PrewarmRequest) => Promise<PrewarmStatus>;
  readonly views: Views;
  /** Returns once the installed version serves in this one's place; throws PullError when it does not. */
  readonly succeed: () => Promise<void>;
}

export interface Admin {
  /** Leaves the path to a successor, to which clients with nothing on their way here go with their next request. */
  yield(): void;
  close(): Promise<void>;
}

const statuses: Partial<Record<ErrorCode, number>> = {
  invalid: 400,
  not_found: 404,
  refused: 403,
  unavailable: 503,
};
/** A list of images may be long. */
const bodyBytesMax = 256 * 1024;

/** Throws `invalid` when the socket cannot be had. */
export async function serveAdmin(options: AdminOptions): Promise<Admin> {
  const connections = new Connections();
  const server = createServer({ maxHeaderSize: 16 * 1024, requestTimeout: 10_000 }, (request, response) => {
    connections.answering(request.socket, response);
    answer(options, request, response).catch((error: unknown) => {
      answerFailed(response, error);
    });
  });
  const accept = (connection: Socket): void => {
    connections.add(connection);
    server.emit("connection", connection);
  };
  const listener: Listener = await listen(options.socket, accept, "admin.listen");
  return {
    yield: () => {
      listener.leave();
      connections.leave();
    },
    close: async () => {
      listener.close();
      connections.close();
      await new Promise<void>((resolve) => {
        server.close(() => resolve());
      });
    },
  };
}

export function answerFailed(response: ServerResponse, error: unknown): void {
  const { code, message } = PullError.from(error);
  if (!response.headersSent) sendJson(response, statuses[code] ?? 500, { error: message });
}

/** Those that are open. Node's server knows only what it has accepted itself, and these are handed to it. */
class Connections {
  readonly #idle = new Set<Socket>();
  readonly #busy = new Set<Socket>();
  #isLeaving = false;

  add(connection: Socket): void {
    this.#idle.add(connection);
    connection.once("close", () => {
      this.#idle.delete(connection);
      this.#busy.delete(connection);
    });
  }

  answering(connection: Socket, response: ServerResponse): void {
    this.#idle.delete(connection);
    this.#busy.add(connection);
    response.once("close", () => {
      if (!this.#busy.delete(connection)) return;
      if (this.#isLeaving) connection.end();
      else this.#idle.add(connection);
    });
  }

  /** Ends those on which nothing is asked, and the others once they are answered. */
  leave(): void {
    this.#isLeaving = true;
    for (const connection of this.#idle) connection.end();
  }

  close(): void {
    for (const connection of [...this.#idle, ...this.#busy]) connection.destroy();
  }
}

async function answer(
  options: AdminOptions,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  refuseOthersPages(request);
  const cancelled = /^POST \/pulls\/([^/]+)\/cancel$/.exec(`${request.method} ${request.url}`)?.[1];
  if (cancelled !== undefined) {
    sendJson(response, 200, await options.views.pulls.cancel(cancelled));
    return;
  }
  switch (`${request.method} ${request.url}`) {
    case "GET /status":
      sendJson(response, 200, options.status());
      return;
    case "GET /metrics":
      response.writeHead(200, { "content-type": "text/plain" }).end(await options.metrics());
      return;
    case "PUT /passthrough":
      await options.setSwitch(switchStateOf(await bodyOf(request)));
      sendJson(response, 200, options.status());
      return;
    case "POST /reload":
      sendJson(response, 200, { messages: await options.reload() });
      return;
    case "GET /prewarm":
      sendJson(response, 200, await options.prewarm({ kind: "list" }));
      return;
    case "POST /prewarm":
      sendJson(response, 200, await options.prewarm(prewarmRequestOf(await bodyOf(request))));
      return;
    case "POST /succeed":
      await options.succeed();
      sendJson(response, 200, {});
      return;
    default:
      if (await view(options.views, request, response)) return;
      sendJson(response, 404, {
        error:
          "there are GET /status, /metrics, /pulls, /pulls/ID, /events and /prewarm, POST /prewarm, /pulls/ID/cancel, /reload and /succeed, and PUT /passthrough",
      });
  }
}

/**
 * The socket may be brought to a browser's machine (ssh -L): what a page of anybody else's has that browser send is refused.
 * Browsers say so in whatever changes anything, and name the host that they believe to speak to.
 */
function refuseOthersPages({ method, headers }: IncomingMessage): void {
  const { origin, host } = headers;
  const isChange = method !== "GET" && method !== "HEAD";
  if ((isChange && origin !== undefined) || !isLocal(host))
    throw new PullError(
      "refused",
      "only programs of this machine, and pages on localhost that look, are answered",
    );
}

/** What a request says whom it is for. */
export function isLocal(host = ""): boolean {
  return /^(localhost|127\.0\.0\.1|\[::1\]|)(:\d{1,5})?$/i.test(host);
}

function switchStateOf(body: unknown): SwitchState {
  if (typeof body === "object" && body !== null && "on" in body) {
    const persistent = "persistent" in body && body.persistent === true;
    if (body.on === true) return { kind: "on", persistent };
    if (body.on === false) return { kind: "off" };
  }
  throw new PullError("invalid", 'expected {"on": true or false, "persistent": true or false}');
}

/** Thirty years. */
const withinSecondsMax = 1e9;

/** `{"add": [REFERENCE, …], "withinSeconds": NUMBER}`, the latter if need be, or `{"remove": [REFERENCE, …]}`. */
function prewarmRequestOf(body: unknown): PrewarmRequest {
  const { add, remove, withinSeconds }: Partial<Record<string, unknown>> = Object(body);
  const isTime =
    withinSeconds === undefined ||
    (typeof withinSeconds === "number" && withinSeconds > 0 && withinSeconds <= withinSecondsMax);
  if (isNames(add) && remove === undefined && isTime) {
    const withinMs = withinSeconds === undefined ? undefined : 1000 * withinSeconds;
    return { kind: "add", references: add, withinMs };
  }
  if (isNames(remove) && add === undefined) return { kind: "remove", references: remove };
  throw new PullError(
    "invalid",
    'expected {"add": [REFERENCE, …], "withinSeconds": NUMBER (optional)} or {"remove": [REFERENCE, …]}',
  );
}

function isNames(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((one) => typeof one === "string");
}

async function bodyOf(request: IncomingMessage): Promise<unknown> {
  let text = "";
  for await (const piece of request.setEncoding("utf8")) {
    text += String(piece);
    if (text.length > bodyBytesMax) throw new PullError("invalid", "the body is too long");
  }
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw new PullError("invalid", "the body is not JSON", { cause: error });
  }
}
