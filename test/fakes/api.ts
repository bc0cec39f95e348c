// A Kubernetes API server as far as those see it who list, watch, read and write: resource versions, pages with tokens,
// watches from a version with bookmarks, 410 for what is too old, 429 for who asks too much, connections that break;
// creations, patches and removals with their conflicts, and who may do what.
//
// Objects are kept by the path of their collection (kubernetes/store.ts). Every change has a version of its own, and a log
// of changes is kept until a test compacts it. Requests need the token that one of the kubeconfigs has.

import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { Authority, readPair } from "../harness/authority.ts";
import {
  type Identity,
  type IdentityOptions,
  identityOf,
  mustBeAllowed,
  reviewed,
} from "./kubernetes/access.ts";
import { Reads } from "./kubernetes/reads.ts";
import { Refusal, statusOf } from "./kubernetes/refusal.ts";
import { type ApiObject, type Listener, ObjectStore } from "./kubernetes/store.ts";
import { type Target, targetOf } from "./kubernetes/target.ts";
import { create, mustRead, patch, remove } from "./kubernetes/write.ts";

export interface ApiRequest {
  readonly method: string;
  readonly path: string;
  readonly query: Readonly<Record<string, string>>;
  /** The name of who asks; undefined for a token that nobody has. */
  readonly identity: string | undefined;
  readonly contentType: string;
  /** Parsed, where there is one. */
  readonly body: unknown;
}

/** What happens to a request instead of the usual; first it waits, then the rest of these. */
export interface ApiBehaviour {
  readonly hold?: Promise<void>;
  /** The connection breaks, and nothing is done. */
  readonly drop?: boolean;
  /** Answered with this, and nothing is done. */
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  /** It is done, and the connection breaks instead of an answer. */
  readonly dropAfter?: boolean;
}

interface Answer {
  readonly status: number;
  readonly body: unknown;
}

const verbs: Readonly<Record<string, string>> = { POST: "create", PATCH: "patch", DELETE: "delete" };

export class FakeApi implements AsyncDisposable {
  /** Of the node that has the kubeconfig. */
  readonly nodeName = "node-1.example.com";
  readonly kubeconfig: string;
  readonly requests: ApiRequest[] = [];
  /** What is to happen to a request; undefined for the usual. */
  behave: (request: ApiRequest) => ApiBehaviour | undefined = () => undefined;
  readonly #folder: string;
  readonly #server: Server;
  readonly #authority: Authority;
  readonly #token = randomUUID();
  readonly #identities = new Map<string, Identity>();
  readonly #store = new ObjectStore();
  readonly #sockets = new Set<Socket>();
  readonly #reads = new Reads(this.#store);

  private constructor(server: Server, authority: Authority) {
    this.#server = server;
    this.#authority = authority;
    this.#folder = mkdtempSync(join(tmpdir(), "api-"));
    this.kubeconfig = join(this.#folder, "kubelet.conf");
    this.#identities.set(this.#token, identityOf({ name: "node", nodeName: this.nodeName }));
    server.on("request", (request, response) => {
      // Whoever broke a connection off gets no answer.
      this.#answer(request, response).catch(() => response.destroy());
    });
    server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
    });
  }

  static async start(): Promise<FakeApi> {
    const authority = new Authority();
    const api = new FakeApi(createServer(readPair(authority.issue("api"))), authority);
    await new Promise<void>((resolve) => {
      api.#server.listen(0, "127.0.0.1", resolve);
    });
    api.writeKubeconfig(api.#token);
    return api;
  }

  /** With this token, or with whatever a test says instead of it all. */
  writeKubeconfig(token: string, text = this.#configFor(token)): void {
    writeFileSync(this.kubeconfig, text);
  }

  /** The path of a kubeconfig for somebody else. */
  kubeconfigFor(options: IdentityOptions): string {
    const token = randomUUID();
    this.#identities.set(token, identityOf(options));
    const path = join(this.#folder, `${token}.conf`);
    writeFileSync(path, this.#configFor(token, options.namespace));
    return path;
  }

  get token(): string {
    return this.#token;
  }

  get watching(): number {
    return this.#reads.watching;
  }

  /** Makes a collection known beside those that every API server has; a CRD. */
  register(collection: string, kind: string): void {
    this.#store.register(collection, kind);
  }

  /** Adds or changes an object; "/api/v1/pods" is the collection of all pods, whatever their namespace. */
  put(collection: string, object: ApiObject): ApiObject {
    return this.#store.put(collection, object);
  }

  read(collection: string, name: string, namespace = ""): ApiObject | undefined {
    return this.#store.read(collection, name, namespace);
  }

  /** Of one namespace, or of all. */
  list(collection: string, namespace = ""): readonly ApiObject[] {
    return this.#store.list(collection, namespace);
  }

  /** As a controller does that tries until it succeeds. What is not there is left alone, and undefined. */
  update(
    collection: string,
    name: string,
    namespace: string,
    change: (object: ApiObject) => ApiObject,
  ): ApiObject | undefined {
    const object = this.#store.read(collection, name, namespace);
    if (object === undefined) return undefined;
    const changed = change(object);
    return isDeepStrictEqual(changed, object) ? object : this.#store.put(collection, changed);
  }

  remove(collection: string, name: string, namespace = ""): void {
    this.#store.remove(collection, name, namespace);
  }

  /** Calls it after each change, in order, until what this returns is called. */
  listen(listener: Listener): () => void {
    return this.#store.listen(listener);
  }

  /** Forgets what happened so far: who comes with an older version has to list again. */
  compact(): void {
    this.#store.compact();
  }

  /** Tells watchers the latest version, and nothing else. */
  bookmark(): void {
    this.#reads.bookmark();
  }

  /** An event of type ERROR, behind which the stream ends. */
  fail(code: number): void {
    this.#reads.fail(code);
  }

  /** Ends watches as their time limit would. */
  endWatches(): void {
    this.#reads.end();
  }

  /** Breaks every connection. */
  disconnect(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.disconnect();
    await new Promise((resolve) => {
      this.#server.close(resolve);
    });
    this.#authority[Symbol.dispose]();
    rmSync(this.#folder, { recursive: true });
  }

  #configFor(token: string, namespace?: string): string {
    const { port } = this.#server.address() as AddressInfo;
    const cluster = { server: `https://127.0.0.1:${port}`, "certificate-authority": this.#authority.cert };
    return JSON.stringify({
      apiVersion: "v1",
      kind: "Config",
      clusters: [{ name: "c", cluster }],
      users: [{ name: "u", user: { token } }],
      contexts: [{ name: "x", context: { cluster: "c", user: "u", ...(namespace && { namespace }) } }],
      "current-context": "x",
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", "https://api");
    const text = await textOf(request);
    const identity = this.#identities.get((request.headers.authorization ?? "").replace(/^Bearer /, ""));
    const asked: ApiRequest = {
      method: request.method ?? "",
      path: url.pathname,
      query: Object.fromEntries(url.searchParams),
      identity: identity?.username,
      contentType: (request.headers["content-type"] ?? "").replace(/;.*/, ""),
      body: parsed(text),
    };
    this.requests.push(asked);
    const { hold, drop, status, headers, dropAfter } = this.behave(asked) ?? {};
    await hold;
    if (drop) {
      response.destroy();
    } else if (status !== undefined) {
      reply(response, { status, body: statusOf(status, "as the test says") }, headers);
    } else if (identity !== undefined && isWatch(asked) && !dropAfter) {
      this.#watch(asked, identity, response);
    } else {
      const answer = this.#answerTo(asked, identity);
      if (dropAfter) response.destroy();
      else reply(response, answer);
    }
  }

  /** Everything but watches. */
  #answerTo(asked: ApiRequest, identity: Identity | undefined): Answer {
    if (identity === undefined) return { status: 401, body: statusOf(401, "Unauthorized", "Unauthorized") };
    try {
      return this.#done(asked, identity);
    } catch (error) {
      return answerOf(error);
    }
  }

  #done(asked: ApiRequest, identity: Identity): Answer {
    const { method, path, body, contentType } = asked;
    if (method === "POST" && path.endsWith("/selfsubjectreviews")) {
      const status = { userInfo: { username: identity.username } };
      return { status: 201, body: { kind: "SelfSubjectReview", metadata: {}, status } };
    }
    if (method === "POST" && path.endsWith("/selfsubjectaccessreviews")) {
      const status = reviewed(identity, body);
      return { status: 201, body: { ...Object(body), metadata: {}, status } };
    }
    const target = this.#targetOf(path);
    if (method === "GET" && target.name === "") {
      mustBeAllowed(identity, "list", target);
      return { status: 200, body: this.#reads.list(target, asked.query) };
    }
    mustBeAllowed(identity, verbs[method] ?? "get", target);
    const store = this.#store;
    if (method === "GET") return { status: 200, body: mustRead(store, target) };
    if (method === "POST" && target.name === "") return { status: 201, body: create(store, target, body) };
    if (method === "PATCH" && target.name !== "")
      return { status: 200, body: patch(store, target, { body, contentType, identity }) };
    if (method !== "DELETE" || target.name === "")
      throw new Refusal(
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
      );
    remove(store, target, body);
    return { status: 200, body: { kind: "Status", apiVersion: "v1", metadata: {}, status: "Success" } };
  }

  #targetOf(path: string): Target {
    const target = targetOf(path);
    if (target === undefined || !this.#store.isKnown(target.collection)) throw Refusal.unknown();
    return target;
  }

  #watch({ path, query }: ApiRequest, identity: Identity, response: ServerResponse): void {
    try {
      const target = this.#targetOf(path);
      mustBeAllowed(identity, "watch", target);
      this.#reads.watch(target, query, response);
    } catch (error) {
      reply(response, answerOf(error));
    }
  }
}

function answerOf(error: unknown): Answer {
  if (error instanceof Refusal) return { status: error.code, body: error.status };
  return { status: 500, body: statusOf(500, String(error), "InternalError") };
}

function isWatch({ method, query }: ApiRequest): boolean {
  return method === "GET" && (query["watch"] === "1" || query["watch"] === "true");
}

async function textOf(request: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of request as AsyncIterable<Buffer>) parts.push(part);
  return Buffer.concat(parts).toString();
}

function parsed(text: string): unknown {
  try {
    return text === "" ? undefined : JSON.parse(text);
  } catch {
    return text;
  }
}

function reply(
  response: ServerResponse,
  { status, body }: Answer,
  headers: Readonly<Record<string, string>> = {},
): void {
  response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(body));
}
