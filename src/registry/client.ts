// The registry room put together: one pool of connections, tokens and breakers for the node, and a Repository for each
// pull, which asks its hosts in order.

import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { parseDigest, sha256 } from "../oci/digest.ts";
import { isIndex, isManifest, mediaTypes } from "../oci/media.ts";
import type { Reference } from "../oci/reference.ts";
import type { Spool } from "../spool.ts";
import { TokenCache } from "./auth.ts";
import { Connections } from "./connections.ts";
import { Download } from "./download.ts";
import { Health } from "./health.ts";
import { hostsOf, isLoopback } from "./hosts.ts";
import type { Credentials, Registry, Repository, RequestPermits, Resolved } from "./registry.ts";
import { backOff, plain, Requester, type RequestInit, type Response, transportError } from "./request.ts";

export interface RegistryOptions {
  /** Directories with a folder for each registry (certs.d). */
  readonly configPath: readonly string[];
  readonly userAgent: string;
  readonly chunkBytes: number;
  /** Connections for one blob, unless overridden for a host (host:port). */
  readonly streams: number;
  readonly hostStreams: ReadonlyMap<string, number>;
  readonly connectTimeoutMs: number;
  readonly progressTimeoutMs: number;
  readonly retries: number;
  /** Resolving gives up when no host has answered by then. */
  readonly fallbackAfterMs: number;
  readonly breaker: { readonly failures: number; readonly resetMs: number };
  readonly events: RegistryEvents;
}

interface RegistryEvents {
  bytes(count: number): void;
  retry(reason: string): void;
  breaker(host: string, open: boolean): void;
}

/** Manifests over this are refused, as by containerd (reference 6.3). */
const manifestBytesMax = 4 * 1048 * 1048;
const accept = [
  mediaTypes.dockerManifest,
  mediaTypes.dockerIndex,
  mediaTypes.ociManifest,
  mediaTypes.ociIndex,
  "*/*",
].join(", ");
export function createRegistry(options: RegistryOptions): Registry {
  return new HttpRegistry(options);
}

class HttpRegistry implements Registry {
  readonly options: RegistryOptions;
  readonly tokens = new TokenCache();
  readonly health: Health;
  readonly connections: Connections;

  constructor(options: RegistryOptions) {
    this.options = options;
    this.connections = new Connections(options.connectTimeoutMs, options.progressTimeoutMs);
    this.health = new Health({
      ...options.breaker,
      changed: (host, open) => options.events.breaker(host, open),
    });
  }

  repository(reference: Reference, credentials: Credentials | undefined): Repository {
    return new HttpRepository(this, reference, credentials);
  }

  async close(): Promise<void> {
    this.health.close();
    await this.connections.close();
  }
}

class HttpRepository implements Repository {
  readonly #registry: HttpRegistry;
  readonly #reference: Reference;
  readonly #credentials: Credentials | undefined;
  #requesters: Promise<Requester[]> | undefined;

  constructor(registry: HttpRegistry, reference: Reference, credentials: Credentials | undefined) {
    this.#registry = registry;
    this.#reference = reference;
    this.#credentials = credentials;
  }

  async resolve(known: boolean, signal: AbortSignal): Promise<Resolved> {
    const { fallbackAfterMs } = this.#registry.options;
    const patience = new AbortController();
    const slow = new PullError("slow", `no answer for ${this.#reference.name} within ${fallbackAfterMs} ms`);
    const timer = setTimeout(() => patience.abort(slow), fallbackAfterMs);
    const both = AbortSignal.any([signal, patience.signal]);
    try {
      return await this.#overHosts({ resolving: true, retries: 0 }, both, async (requester) => {
        const init = this.#manifestRequest(
          known ? "HEAD" : "GET",
          this.#reference.digest ?? this.#reference.tag ?? "",
        );
        const response = await requester.send(init, both);
        if (known && response.status === 405) {
          await response.body.dump();
          const get = { ...init, method: "GET" as const };
          return await this.#readManifest(await requester.send(get, both), get, requester);
        }
        if (response.status !== 200) throw await requester.toError(response, init);
        return known
          ? await this.#readHead(response, init, requester, both)
          : await this.#readManifest(response, init, requester);
      });
    } finally {
      clearTimeout(timer);
    }
  }

  async fetch(descriptor: Descriptor, limitBytes: number, signal: AbortSignal): Promise<Uint8Array> {
    const { digest, mediaType } = descriptor;
    const isOfManifests = isManifest(mediaType) || isIndex(mediaType);
    const path = `/${this.#reference.repository}/${isOfManifests ? "manifests" : "blobs"}/${digest}`;
    const headers = { accept: `${mediaType}, */*`, "accept-encoding": "identity" };
    return await this.#overHosts(
      { resolving: false, retries: this.#registry.options.retries },
      signal,
      async (requester) => {
        const init: RequestInit = { method: "GET", path, headers };
        const response = await requester.send(init, signal);
        if (response.status !== 200) throw await requester.toError(response, init);
        const bytes = await readBody(response, Math.min(limitBytes, descriptor.size), signal);
        if (bytes.length !== descriptor.size) {
          throw new PullError("corrupt", `${digest} has ${bytes.length} bytes instead of ${descriptor.size}`);
        }
        const actual = sha256(bytes);
        if (actual !== digest) throw new PullError("corrupt", `${digest} has the digest ${actual}`);
        return bytes;
      },
    );
  }

  async download(
    descriptor: Descriptor,
    spool: Spool,
    permits: RequestPermits,
    signal: AbortSignal,
  ): Promise<void> {
    const { chunkBytes, hostStreams, streams, retries, events } = this.#registry.options;
    if (descriptor.size > 0) {
      // Each range is retried by itself.
      await this.#overHosts({ resolving: false, retries: 0 }, signal, async (requester) => {
        const { host } = requester;
        // A peer-to-peer proxy on this machine fetches each range separately, so it is asked for all at once.
        const usual = host.isMirror && isLoopback(host.url.hostname) ? 1 : streams;
        const download = new Download(
          {
            requester,
            repository: this.#reference.repository,
            descriptor,
            spool,
            permits,
            chunkBytes,
            streams: hostStreams.get(host.url.host) ?? usual,
            retries,
            received: (count) => events.bytes(count),
            retried: (error) => events.retry(error.code),
          },
          spool.watermark,
        );
        await download.run(signal);
      });
    }
    spool.complete();
  }

  #manifestRequest(method: "GET" | "HEAD", version: string): RequestInit {
    const path = `/${this.#reference.repository}/manifests/${version}`;
    return { method, path, headers: { accept, "accept-encoding": "identity" } };
  }

  /** A HEAD's answer, or a GET where it does not say enough. */
  async #readHead(
    response: Response,
    init: RequestInit,
    requester: Requester,
    signal: AbortSignal,
  ): Promise<Resolved> {
    await response.body.dump();
    const digest = response.headers["docker-content-digest"];
    const length = response.headers["content-length"];
    if (typeof digest !== "string" || length === undefined) {
      const get = { ...init, method: "GET" as const };
      return await this.#readManifest(await requester.send(get, signal), get, requester);
    }
    const descriptor = {
      mediaType: mediaTypeOf(response),
      digest: parseDigest(digest),
      size: Number(length),
    };
    return { descriptor: this.#expect(descriptor) };
  }

  async #readManifest(response: Response, init: RequestInit, requester: Requester): Promise<Resolved> {
    if (response.status !== 200) throw await requester.toError(response, init);
    const body = await readBody(response, manifestBytesMax, undefined);
    const descriptor = { mediaType: mediaTypeOf(response), digest: sha256(body), size: body.length };
    const told = response.headers["docker-content-digest"];
    if (typeof told === "string" && told.startsWith("sha256:") && told !== descriptor.digest) {
      throw new PullError("corrupt", `manifest ${told} has the digest ${descriptor.digest}`);
    }
    return { descriptor: this.#expect(descriptor), body };
  }

  #expect(descriptor: Descriptor): Descriptor {
    const { digest } = this.#reference;
    if (digest !== undefined && digest !== descriptor.digest) {
      throw new PullError("corrupt", `manifest ${digest} has the digest ${descriptor.digest}`);
    }
    if (!isManifest(descriptor.mediaType) && !isIndex(descriptor.mediaType)) {
      throw new PullError(
        "unsupported",
        `manifest of type ${JSON.stringify(descriptor.mediaType.slice(0, 200))}`,
      );
    }
    return descriptor;
  }

  /** Tries the hosts in order; the first error counts, as with containerd, unless a later one is a refusal. */
  async #overHosts<Result>(
    { resolving, retries }: { readonly resolving: boolean; readonly retries: number },
    signal: AbortSignal,
    use: (requester: Requester) => Promise<Result>,
  ): Promise<Result> {
    this.#requesters ??= this.#makeRequesters();
    const { health } = this.#registry;
    let first: PullError | undefined;
    for (const requester of await this.#requesters) {
      const { host } = requester;
      const name = host.url.host;
      if (resolving && this.#reference.digest === undefined && !host.canResolve) continue;
      if (health.isOpen(name)) {
        first ??= new PullError("unavailable", `${name} has failed repeatedly and is not asked for now`);
        continue;
      }
      try {
        const result = await this.#retrying(retries, signal, () => use(requester));
        health.succeeded(name);
        return result;
      } catch (error) {
        const failure = transportError(error, host.url, signal);
        // The caller going away says nothing of the host; no answer within our patience does.
        if (failure.code === "cancelled") throw failure;
        if (failure.code === "unavailable" || failure.code === "slow")
          health.failed(name, () => this.#probe(requester));
        if (signal.aborted) throw failure;
        first ??= failure;
      }
    }
    throw first ?? new PullError("not_found", `no host can resolve ${this.#reference.name}`);
  }

  async #retrying<Result>(retries: number, signal: AbortSignal, use: () => Promise<Result>): Promise<Result> {
    for (let attempt = 0; ; attempt++) {
      try {
        return await use();
      } catch (error) {
        const failure = PullError.from(error);
        if (!failure.temporary || attempt >= retries) throw failure;
        this.#registry.options.events.retry(failure.code);
        await backOff(attempt, 0, signal);
      }
    }
  }

  async #probe(requester: Requester): Promise<void> {
    const init: RequestInit = { method: "GET", path: "/", headers: {} };
    const { connectTimeoutMs } = this.#registry.options;
    const dispatcher = await this.#registry.connections.to(requester.host);
    const { body } = await dispatcher.request({
      origin: requester.host.url.origin,
      path: `${requester.host.url.pathname}${init.path}`,
      method: "GET",
      signal: AbortSignal.timeout(connectTimeoutMs),
    });
    await body.dump();
  }

  async #makeRequesters(): Promise<Requester[]> {
    const { options, tokens } = this.#registry;
    const { host: registryHost, repository } = this.#reference;
    const hosts = await hostsOf(registryHost, options.configPath);
    return await Promise.all(
      hosts.map(async (host) => {
        const dispatcher = await this.#registry.connections.to(host);
        const credentials = this.#credentials;
        return new Requester({
          host,
          registryHost,
          repository,
          credentials,
          dispatcher,
          tokens,
          userAgent: options.userAgent,
        });
      }),
    );
  }
}

function mediaTypeOf(response: Response): string {
  return (response.headers["content-type"] ?? "").split(";", 1)[0]?.trim() ?? "";
}

/** Throws `corrupt` past the limit. */
async function readBody(
  response: Response,
  bytesMax: number,
  signal: AbortSignal | undefined,
): Promise<Buffer> {
  const parts: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const part of response.body as AsyncIterable<Buffer>) {
      parts.push(part);
      bytes += part.length;
      if (bytes > bytesMax)
        throw new PullError("corrupt", `${plain(response.url)} is over ${bytesMax} bytes long`);
    }
  } catch (error) {
    throw transportError(error, response.url, signal ?? new AbortController().signal);
  }
  return Buffer.concat(parts);
}
