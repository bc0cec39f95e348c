// A registry whose blobs lie elsewhere, as those on S3, GCS and Azure do: a front in front of a docker-registry, which
// answers for blobs with 307 and a signed URL, and the blob store on another address, which takes signatures only.
//
// The front leaves every decision to the registry behind it, whose answers to the same request it passes on. The store
// refuses an Authorization beside a signature, as S3 does, and signatures that have expired.

import { createHmac, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { Agent, request as send } from "undici";
import { type KeyPair, readPair } from "./authority.ts";
import type { PrivateRegistry } from "./registry.ts";

interface Fetched {
  readonly method: string;
  readonly path: string;
  readonly range: string | undefined;
  readonly status: number;
  readonly agent: string;
  /** The client's end of the connection. */
  readonly connection: string;
  readonly authorization: string | undefined;
}

abstract class HttpsServer implements AsyncDisposable {
  readonly asked: Fetched[] = [];
  readonly #server: Server;
  readonly #address: string;

  protected constructor(tls: KeyPair, address: string) {
    this.#server = createServer(readPair(tls), (request, response) => void this.#log(request, response));
    this.#address = address;
  }

  get host(): string {
    return `${this.#address}:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  protected async listen(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.listen(0, this.#address, resolve);
    });
  }

  protected abstract answer(request: IncomingMessage, response: ServerResponse): Promise<void>;

  async #log(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = "", url = "", headers, socket } = request;
    response.once("close", () => {
      this.asked.push({
        method,
        path: url,
        range: headers.range,
        status: response.statusCode,
        agent: headers["user-agent"] ?? "",
        connection: `${socket.remoteAddress}:${socket.remotePort}`,
        authorization: headers.authorization,
      });
    });
    await this.answer(request, response);
  }
}

export class BlobStore extends HttpsServer {
  /** Signatures given so far. */
  readonly signatures: string[] = [];
  /** Those that are good no longer. */
  readonly expired = new Set<string>();
  /** Waited for in the middle of each body, which is served for this signature. */
  halfway: (signature: string) => Promise<void> = async () => {};
  /** No signature is good enough. */
  isClosed = false;
  readonly #root: string;
  readonly #key = randomBytes(32);

  private constructor(tls: KeyPair, root: string) {
    super(tls, "127.0.0.2");
    this.#root = root;
  }

  /** Serves the blobs of a registry's store. */
  static async start(tls: KeyPair, root: string): Promise<BlobStore> {
    const store = new BlobStore(tls, root);
    await store.listen();
    return store;
  }

  urlOf(digest: string): string {
    const nonce = String(this.signatures.length);
    const signature = this.#sign(digest, nonce);
    this.signatures.push(signature);
    return `https://${this.host}/bucket/${digest}?X-Amz-Date=${nonce}&X-Amz-Signature=${signature}`;
  }

  protected override async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", "https://store");
    const [, digest = ""] = /^\/bucket\/(sha256:[0-9a-f]{64})$/.exec(url.pathname) ?? [];
    const signature = url.searchParams.get("X-Amz-Signature") ?? "";
    const isRight = signature === this.#sign(digest, url.searchParams.get("X-Amz-Date") ?? "");
    if (request.headers.authorization !== undefined) {
      response.writeHead(400).end("<Error><Code>InvalidArgument</Code></Error>");
    } else if (this.isClosed || !isRight || this.expired.has(signature)) {
      response.writeHead(403).end("<Error><Code>AccessDenied</Code></Error>");
    } else {
      await this.#serve(request, response, digest, signature);
    }
  }

  async #serve(
    request: IncomingMessage,
    response: ServerResponse,
    digest: string,
    signature: string,
  ): Promise<void> {
    const hex = digest.slice("sha256:".length);
    const bytes = readFileSync(
      join(this.#root, "docker/registry/v2/blobs/sha256", hex.slice(0, 2), hex, "data"),
    );
    const [isRange, from, to] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "") ?? [];
    const start = Number(from ?? 0);
    const end = to ? Math.min(bytes.length, Number(to) + 1) : bytes.length;
    const middle = start + Math.floor((end - start) / 2);
    response.writeHead(isRange ? 206 : 200, {
      "content-length": end - start,
      ...(isRange && { "content-range": `bytes ${start}-${end - 1}/${bytes.length}` }),
    });
    response.write(bytes.subarray(start, middle));
    await this.halfway(signature);
    response.end(bytes.subarray(middle, end));
  }

  #sign(digest: string, nonce: string): string {
    return createHmac("sha256", this.#key).update(`${digest} ${nonce}`).digest("hex");
  }
}

export class RegistryFront extends HttpsServer {
  readonly #registry: PrivateRegistry;
  readonly #store: BlobStore;
  readonly #behind: Agent;

  private constructor(tls: KeyPair, authority: string, registry: PrivateRegistry, store: BlobStore) {
    super(tls, "127.0.0.1");
    this.#registry = registry;
    this.#store = store;
    this.#behind = new Agent({ connect: { ca: readFileSync(authority) } });
  }

  /** `authority` is what the registry's own certificate is trusted by. */
  static async start(
    tls: KeyPair,
    authority: string,
    registry: PrivateRegistry,
    store: BlobStore,
  ): Promise<RegistryFront> {
    const front = new RegistryFront(tls, authority, registry, store);
    await front.listen();
    return front;
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    await this.#behind.destroy();
  }

  protected override async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = "", url = "", headers } = request;
    const [, digest] = /\/blobs\/(sha256:[0-9a-f]{64})(?:\?|$)/.exec(url) ?? [];
    const { host: _host, connection: _connection, range: _range, ...passed } = headers;
    const answer = await send(`https://${this.#registry.host}${url}`, {
      method: digest === undefined ? method : "HEAD",
      headers: passed,
      dispatcher: this.#behind,
    });
    const body = Buffer.from(await answer.body.arrayBuffer());
    if (digest !== undefined && answer.statusCode === 200) {
      response.writeHead(307, { location: this.#store.urlOf(digest) }).end();
    } else {
      response.writeHead(answer.statusCode, answer.headers).end(body);
    }
  }
}
