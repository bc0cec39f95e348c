// A Kubernetes API server as far as those see it who list, watch and read: resource versions, pages with tokens, watches
// from a version with bookmarks, 410 for what is too old, 429 for who asks too much, connections that break.
//
// Objects are kept by the path of their collection. Every change has a version of its own, and a log of changes is kept
// until a test compacts it. Requests need the token that the kubeconfig has.

import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Authority, readPair } from "../harness/authority.ts";

export interface ApiObject {
  readonly metadata: Readonly<Record<string, unknown>> & {
    readonly name: string;
    readonly namespace?: string;
  };
  readonly [key: string]: unknown;
}

interface Change {
  readonly type: "ADDED" | "MODIFIED" | "DELETED";
  readonly collection: string;
  readonly object: ApiObject;
  readonly version: number;
}

interface Watch {
  readonly collection: string;
  readonly selector: string;
  readonly response: ServerResponse;
}

export interface ApiRequest {
  readonly method: string;
  readonly path: string;
  readonly query: Readonly<Record<string, string>>;
}

/** A page's next one. */
interface Page {
  readonly items: readonly ApiObject[];
  readonly version: number;
}

export class FakeApi implements AsyncDisposable {
  /** Of the node that has the kubeconfig. */
  readonly nodeName = "node-1.example.com";
  readonly kubeconfig: string;
  readonly requests: ApiRequest[] = [];
  /** Answers instead of the server: a status, with a body and headers of the test's. */
  behave: (request: ApiRequest) => { status: number; headers?: Record<string, string> } | undefined = () =>
    undefined;
  readonly #folder: string;
  readonly #server: Server;
  readonly #authority: Authority;
  readonly #token = randomUUID();
  readonly #collections = new Map<string, Map<string, ApiObject>>();
  readonly #sockets = new Set<Socket>();
  readonly #watches = new Set<Watch>();
  readonly #pages = new Map<string, Page>();
  #log: Change[] = [];
  #version = 1000;
  /** Changes up to this version are forgotten. */
  #compacted = 0;

  private constructor(server: Server, authority: Authority) {
    this.#server = server;
    this.#authority = authority;
    this.#folder = mkdtempSync(join(tmpdir(), "api-"));
    this.kubeconfig = join(this.#folder, "kubelet.conf");
    server.on("request", (request, response) => void this.#answer(request, response));
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

  get token(): string {
    return this.#token;
  }

  get watching(): number {
    return this.#watches.size;
  }

  /** Adds or changes an object; "/api/v1/pods" is the collection of all pods, whatever their namespace. */
  put(collection: string, object: ApiObject): void {
    const key = `${object.metadata.namespace ?? ""}/${object.metadata.name}`;
    const objects = this.#collections.get(collection) ?? new Map<string, ApiObject>();
    this.#collections.set(collection, objects);
    const type = objects.has(key) ? "MODIFIED" : "ADDED";
    const former = objects.get(key)?.metadata["uid"];
    const version = ++this.#version;
    const uid = object.metadata["uid"] ?? former ?? randomUUID();
    const stored = { ...object, metadata: { ...object.metadata, uid, resourceVersion: String(version) } };
    objects.set(key, stored);
    this.#tell({ type, collection, object: stored, version });
  }

  remove(collection: string, name: string, namespace = ""): void {
    const objects = this.#collections.get(collection);
    const object = objects?.get(`${namespace}/${name}`);
    if (object === undefined) throw new Error(`there is no ${namespace}/${name}`);
    objects?.delete(`${namespace}/${name}`);
    const version = ++this.#version;
    const last = { ...object, metadata: { ...object.metadata, resourceVersion: String(version) } };
    this.#tell({ type: "DELETED", collection, object: last, version });
  }

  /** Forgets what happened so far: who comes with an older version has to list again. */
  compact(): void {
    this.#log = [];
    this.#compacted = this.#version;
  }

  /** Tells watchers the latest version, and nothing else. */
  bookmark(): void {
    for (const { response } of this.#watches) {
      const object = { kind: "Pod", apiVersion: "v1", metadata: { resourceVersion: String(this.#version) } };
      response.write(`${JSON.stringify({ type: "BOOKMARK", object })}\n`);
    }
  }

  /** An event of type ERROR, behind which the stream ends. */
  fail(code: number): void {
    this.#end(`${JSON.stringify({ type: "ERROR", object: statusOf(code, "too old resource version") })}\n`);
  }

  /** Ends watches as their time limit would. */
  endWatches(): void {
    this.#end("");
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

  #configFor(token: string): string {
    const { port } = this.#server.address() as AddressInfo;
    const cluster = { server: `https://127.0.0.1:${port}`, "certificate-authority": this.#authority.cert };
    return JSON.stringify({
      apiVersion: "v1",
      kind: "Config",
      clusters: [{ name: "c", cluster }],
      users: [{ name: "u", user: { token } }],
      contexts: [{ name: "x", context: { cluster: "c", user: "u" } }],
      "current-context": "x",
    });
  }

  #end(last: string): void {
    for (const { response } of this.#watches) response.end(last);
    this.#watches.clear();
  }

  #tell(change: Change): void {
    this.#log.push(change);
    for (const watch of this.#watches) if (isMeant(watch, change)) watch.response.write(lineOf(change));
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", "https://api");
    const query = Object.fromEntries(url.searchParams);
    const asked = { method: request.method ?? "", path: url.pathname, query };
    this.requests.push(asked);
    request.resume();
    const behaviour = this.behave(asked);
    if (behaviour) {
      reply(response, behaviour.status, statusOf(behaviour.status, "as the test says"), behaviour.headers);
      return;
    }
    if (request.headers.authorization !== `Bearer ${this.#token}`) {
      reply(response, 401, statusOf(401, "Unauthorized"));
    } else if (asked.method === "POST" && asked.path.endsWith("/selfsubjectreviews")) {
      const username = `system:node:${this.nodeName}`;
      reply(response, 201, { kind: "SelfSubjectReview", metadata: {}, status: { userInfo: { username } } });
    } else if (this.#collections.has(asked.path)) {
      if (query["watch"] === "1") this.#watch(asked, response);
      else this.#list(asked, response);
    } else {
      this.#get(asked.path, response);
    }
  }

  #get(path: string, response: ServerResponse): void {
    const [, collection = "", namespace = "", kind = "", name = ""] =
      /^(.*)\/namespaces\/([^/]+)\/([^/]+)\/([^/]+)$/.exec(path) ?? [];
    const object = this.#collections.get(`${collection}/${kind}`)?.get(`${namespace}/${name}`);
    if (object) reply(response, 200, object);
    else reply(response, 404, statusOf(404, `${kind} "${name}" not found`));
  }

  #list({ path, query }: ApiRequest, response: ServerResponse): void {
    const token = query["continue"] ?? "";
    const page = token === "" ? this.#firstPage(path, query) : this.#pages.get(token);
    if (page === undefined) {
      reply(response, 410, statusOf(410, "The provided continue parameter is too old"));
      return;
    }
    const limit = Number(query["limit"] ?? page.items.length);
    const rest = page.items.slice(limit);
    const next = rest.length > 0 ? randomUUID() : "";
    if (next) this.#pages.set(next, { items: rest, version: page.version });
    const metadata = { resourceVersion: String(page.version), ...(next && { continue: next }) };
    reply(response, 200, { kind: "List", apiVersion: "v1", metadata, items: page.items.slice(0, limit) });
  }

  #firstPage(path: string, { fieldSelector = "" }: ApiRequest["query"]): Page {
    const all = [...(this.#collections.get(path)?.values() ?? [])];
    return { items: all.filter((object) => isSelected(object, fieldSelector)), version: this.#version };
  }

  #watch({ path, query }: ApiRequest, response: ServerResponse): void {
    const from = Number(query["resourceVersion"]);
    response.writeHead(200, { "content-type": "application/json" });
    if (from < this.#compacted) {
      const object = statusOf(410, `too old resource version: ${from} (${this.#compacted})`);
      response.end(`${JSON.stringify({ type: "ERROR", object })}\n`);
      return;
    }
    const watch: Watch = { collection: path, selector: query["fieldSelector"] ?? "", response };
    for (const change of this.#log)
      if (change.version > from && isMeant(watch, change)) response.write(lineOf(change));
    // Headers go out with the first event, or with this.
    response.flushHeaders();
    this.#watches.add(watch);
    response.once("close", () => this.#watches.delete(watch));
  }
}

function lineOf({ type, object }: Change): string {
  return `${JSON.stringify({ type, object })}\n`;
}

function isMeant({ collection, selector }: Watch, change: Change): boolean {
  return change.collection === collection && isSelected(change.object, selector);
}

/** The two selectors that matter here. */
function isSelected(object: ApiObject, selector: string): boolean {
  const [field, value] = selector.split("=");
  if (field === "metadata.name") return object.metadata.name === value;
  if (field === "spec.nodeName") return (object["spec"] as { nodeName?: string }).nodeName === value;
  return true;
}

function statusOf(code: number, message: string): object {
  return { kind: "Status", apiVersion: "v1", metadata: {}, status: "Failure", message, code };
}

function reply(
  response: ServerResponse,
  status: number,
  body: unknown,
  headers: Readonly<Record<string, string>> = {},
): void {
  response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(body));
}
