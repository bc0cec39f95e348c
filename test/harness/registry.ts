// A private registry: Debian's docker-registry on a free loopback port, with its store in a folder of its own or in that
// of another one, so that the same images can be had over TLS, with tokens, and with neither, by which they are pushed.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { KeyPair } from "./authority.ts";
import { scratch } from "./containerd.ts";
import { ServerProcess } from "./process.ts";
import { tokenIssuer, tokenService } from "./tokens.ts";

export interface RegistryOptions {
  readonly root?: string;
  readonly login?: { readonly username: string; readonly password: string };
  /** Folder of another registry's store, to serve what is there. */
  readonly store?: string;
  /** With `clients`, the authority that clients must have a certificate of. */
  readonly tls?: KeyPair & { readonly clients?: string };
  /** Tokens from there are believed when they are signed by this certificate. */
  readonly tokens?: { readonly realm: string; readonly signer: string };
}

export interface BlobRef {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
}

/** One line of the registry's access log. */
export interface Request {
  readonly method: string;
  readonly path: string;
  readonly status: number;
  /** The client's User-Agent. */
  readonly agent: string;
}

export class PrivateRegistry implements AsyncDisposable {
  readonly host: string;
  /** Folder of its store. */
  readonly store: string;
  readonly #root: string;
  readonly #process: ServerProcess;
  readonly #headers: Record<string, string>;

  private constructor(
    host: string,
    root: string,
    store: string,
    process: ServerProcess,
    headers: Record<string, string>,
  ) {
    this.host = host;
    this.store = store;
    this.#root = root;
    this.#process = process;
    this.#headers = headers;
  }

  static async start(options: RegistryOptions = {}): Promise<PrivateRegistry> {
    const root = await mkdtemp(join(options.root ?? scratch(), "registry-"));
    const auth = options.login ? basicAuth(options.login) : { file: "", headers: {} };
    if (auth.file) await writeFile(join(root, "htpasswd"), auth.file);
    const store = options.store ?? join(root, "store");
    await writeFile(join(root, "config.yml"), configuration(root, store, options));
    const server = new ServerProcess("docker-registry", ["serve", join(root, "config.yml")]);
    try {
      const [, port] = await server.untilPrinted(/listening on 127\.0\.0\.1:(\d+)/);
      return new PrivateRegistry(`127.0.0.1:${port}`, root, store, server, auth.headers);
    } catch (error) {
      await rm(root, { recursive: true, force: true });
      throw error;
    }
  }

  get pid(): number {
    return this.#process.pid;
  }

  async pushBlob(repository: string, mediaType: string, bytes: Uint8Array): Promise<BlobRef> {
    const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
    const start = await this.#send("POST", `/v2/${repository}/blobs/uploads/`);
    const url = new URL(start.headers.get("location") ?? "", `http://${this.host}`);
    url.searchParams.set("digest", digest);
    await this.#send("PUT", url.pathname + url.search, bytes, "application/octet-stream");
    return { mediaType, digest, size: bytes.length };
  }

  /** Pushes a manifest or an index under a tag or its digest. */
  async pushManifest(repository: string, mediaType: string, json: unknown, tag?: string): Promise<BlobRef> {
    const bytes = Buffer.from(JSON.stringify(json));
    const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
    await this.#send("PUT", `/v2/${repository}/manifests/${tag ?? digest}`, bytes, mediaType);
    return { mediaType, digest, size: bytes.length };
  }

  /** Requests so far, in order. */
  requests(): Request[] {
    const lines = this.#process
      .logs()
      .matchAll(/"(GET|HEAD|PUT|POST|PATCH) (\/v2\/\S*) HTTP\/1\.1" (\d{3}) \d+ "[^"]*" "([^"]*)"/g);
    return [...lines].map(([, method = "", path = "", status, agent = ""]) => {
      return { method, path, status: Number(status), agent };
    });
  }

  /** The clients' ends of the connections over which clients of this name were served a path. */
  connectionsTo(path: string, agent: string): Set<string> {
    const field = (name: string): string => ` http\\.request\\.${name}="?([^" ]+)"?`;
    const served = new RegExp(field("remoteaddr") + field("uri") + field("useragent"), "g");
    const lines = [...this.#process.logs().matchAll(served)];
    const found = lines.filter(([, , uri, name]) => uri?.startsWith(path) && name?.startsWith(agent));
    return new Set(found.map(([, remote = ""]) => remote));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.stop();
    await rm(this.#root, { recursive: true, force: true });
  }

  async #send(method: string, path: string, body?: Uint8Array, contentType?: string): Promise<Response> {
    const headers = { ...this.#headers, ...(contentType && { "content-type": contentType }) };
    const answer = await fetch(`http://${this.host}${path}`, {
      method,
      headers,
      ...(body && { body: new Uint8Array(body) }),
      redirect: "manual",
    });
    if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
    return answer;
  }
}

function basicAuth({ username, password }: NonNullable<RegistryOptions["login"]>) {
  const made = spawnSync("htpasswd", ["-Bbn", username, password], { encoding: "utf8" });
  if (made.status !== 0) throw new Error(`htpasswd: ${made.stderr}`);
  const header = Buffer.from(`${username}:${password}`).toString("base64");
  return { file: made.stdout, headers: { authorization: `Basic ${header}` } };
}

function configuration(root: string, store: string, { login, tls, tokens }: RegistryOptions): string {
  const clients = tls?.clients === undefined ? "" : `, clientcas: ["${tls.clients}"]`;
  return `
version: 0.1
log: { level: info, accesslog: { disabled: false } }
storage:
  filesystem: { rootdirectory: ${store} }
  delete: { enabled: true }
http:
  addr: 127.0.0.1:0
${tls ? `  tls: { certificate: ${tls.cert}, key: ${tls.key}${clients} }` : ""}
${login ? `auth:\n  htpasswd: { realm: test, path: ${root}/htpasswd }` : ""}
${
  tokens
    ? `auth:
  token:
    realm: ${tokens.realm}
    service: ${tokenService}
    issuer: ${tokenIssuer}
    rootcertbundle: ${tokens.signer}`
    : ""
}
`;
}
