// One reference as one caller sees it: what it stands for, and its manifests, configs and layers, from the first of its
// hosts that has them.

import { PullError, throwIfAborted } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { type Digest, parseDigest, sha256 } from "../oci/digest.ts";
import { isIndex, isManifest, mediaTypes } from "../oci/media.ts";
import type { Reference } from "../oci/reference.ts";
import type { Spool } from "../spool.ts";
import type { Bandwidth } from "./bandwidth.ts";
import { discard } from "./body.ts";
import { Download } from "./download.ts";
import { isUnreachable, plain, transportError } from "./failure.ts";
import type { Health } from "./health.ts";
import { isLoopback } from "./hosts.ts";
import { backOff, StatusError, type Timing } from "./patience.ts";
import { Remaining } from "./ranges.ts";
import type { AskingFailed, Repository, RequestPermits, Resolved } from "./registry.ts";
import type { Requester, RequestInit, Response } from "./request.ts";

export interface RepositoryOptions {
  readonly reference: Reference;
  /** The hosts to ask, in order; called once. */
  readonly requesters: () => Promise<readonly Requester[]>;
  readonly health: Health;
  readonly timing: Timing;
  readonly chunkBytes: number;
  readonly streams: number;
  readonly hostStreams: ReadonlyMap<string, number>;
  readonly retries: number;
  readonly bandwidth?: Bandwidth | undefined;
  readonly fallbackAfterMs: number;
  readonly events: { bytes(count: number, host: string): void; retry(reason: string): void };
  readonly failed?: AskingFailed | undefined;
}

interface Asking {
  /** Only hosts that may say what a tag stands for. */
  readonly resolving: boolean;
  /** Whether the last host, after which there is none to turn to, is asked again after this. */
  readonly again: (failure: PullError) => boolean;
  readonly failed: AskingFailed | undefined;
  /** Retry-After longer than this is not waited for. */
  readonly patienceMs?: number;
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

export class HttpRepository implements Repository {
  readonly #options: RepositoryOptions;
  #requesters: Promise<readonly Requester[]> | undefined;

  constructor(options: RepositoryOptions) {
    this.#options = options;
  }

  async resolve(known: boolean, signal: AbortSignal): Promise<Resolved> {
    const { fallbackAfterMs, reference, failed } = this.#options;
    const patience = new AbortController();
    const slow = new PullError("slow", `no answer for ${reference.name} within ${fallbackAfterMs} ms`);
    const timer = setTimeout(() => patience.abort(slow), fallbackAfterMs);
    const both = AbortSignal.any([signal, patience.signal]);
    // Where nothing listens, the pull is better left to containerd at once.
    const again = (failure: PullError): boolean => failure.temporary && !isUnreachable(failure);
    try {
      const asking = { resolving: true, again, patienceMs: fallbackAfterMs, failed };
      return await this.#overHosts(asking, signal, both, async (requester) => {
        const head = known ? await this.#readHead(requester, both) : undefined;
        return head ?? (await this.#readManifest(requester, both));
      });
    } finally {
      clearTimeout(timer);
    }
  }

  async fetch(descriptor: Descriptor, limitBytes: number, signal: AbortSignal): Promise<Uint8Array> {
    const { digest, mediaType, size } = descriptor;
    const kind = isManifest(mediaType) || isIndex(mediaType) ? "manifests" : "blobs";
    const path = `/${this.#options.reference.repository}/${kind}/${digest}`;
    const headers = { accept: `${mediaType}, */*`, "accept-encoding": "identity" };
    const { failed } = this.#options;
    const asking = { resolving: false, again: (failure: PullError) => failure.temporary, failed };
    return await this.#overHosts(asking, signal, signal, async (requester) => {
      const response = await requester.send({ method: "GET", path, headers }, signal);
      if (response.status !== 200) throw await requester.toError(response);
      const bytes = await readBody(requester, response, Math.min(limitBytes, size), signal);
      if (bytes.length !== size) {
        throw new PullError("corrupt", `${digest} has ${bytes.length} bytes instead of ${size}`);
      }
      mustEqual(sha256(bytes), digest);
      return bytes;
    });
  }

  async download(
    descriptor: Descriptor,
    spool: Spool,
    permits: RequestPermits,
    signal: AbortSignal,
  ): Promise<void> {
    const { chunkBytes, hostStreams, streams, retries, events, timing, reference, bandwidth } = this.#options;
    const { repository } = reference;
    const remaining = new Remaining(spool.missing());
    if (remaining.sizeBytes > 0) {
      // Each range is retried by itself.
      const asking = { resolving: false, again: () => false, failed: undefined };
      await this.#overHosts(asking, signal, signal, async (requester, hasOther) => {
        const { host } = requester;
        // A peer-to-peer proxy on this machine fetches each range separately, so it is asked for all at once.
        const usual = host.isMirror && isLoopback(host.url.hostname) ? 1 : streams;
        const download = new Download({
          requester,
          repository,
          descriptor,
          spool,
          remaining,
          permits,
          chunkBytes,
          streams: hostStreams.get(host.url.host) ?? usual,
          retries,
          hasOther,
          timing,
          bandwidth,
          received: (count, from) => events.bytes(count, from),
          retried: (error) => events.retry(error.code),
        });
        await download.run(signal);
      });
    }
    spool.complete();
  }

  #manifestRequest(method: "GET" | "HEAD"): RequestInit {
    const { repository, digest, tag } = this.#options.reference;
    const path = `/${repository}/manifests/${digest ?? tag ?? ""}`;
    return { method, path, headers: { accept, "accept-encoding": "identity" } };
  }

  /** Undefined when HEAD is not served, or its answer does not say enough. */
  async #readHead(requester: Requester, signal: AbortSignal): Promise<Resolved | undefined> {
    const response = await requester.send(this.#manifestRequest("HEAD"), signal);
    if (response.status !== 200 && response.status !== 405) throw await requester.toError(response);
    await discard(response.body);
    const digest = response.headers["docker-content-digest"] ?? "";
    const length = response.headers["content-length"] ?? "";
    const isTold = response.status === 200 && digest !== "" && /^\d{1,9}$/.test(length);
    if (!isTold) return undefined;
    const size = Number(length);
    return { descriptor: this.#expect({ mediaType: mediaTypeOf(response), digest: told(digest), size }) };
  }

  async #readManifest(requester: Requester, signal: AbortSignal): Promise<Resolved> {
    const response = await requester.send(this.#manifestRequest("GET"), signal);
    if (response.status !== 200) throw await requester.toError(response);
    const body = await readBody(requester, response, manifestBytesMax, signal);
    const digest = sha256(body);
    const header = response.headers["docker-content-digest"];
    if (header) mustEqual(digest, told(header));
    const descriptor = { mediaType: mediaTypeOf(response), digest, size: body.length };
    return { descriptor: this.#expect(descriptor), body };
  }

  #expect(descriptor: Descriptor): Descriptor {
    const { digest, mediaType, size } = descriptor;
    if (this.#options.reference.digest !== undefined) mustEqual(digest, this.#options.reference.digest);
    if (!isManifest(mediaType) && !isIndex(mediaType)) {
      throw new PullError("unsupported", `manifest of type ${JSON.stringify(mediaType.slice(0, 200))}`);
    }
    if (size > manifestBytesMax) throw new PullError("corrupt", `a manifest of ${size} bytes`);
    return descriptor;
  }

  /**
   * Tries the hosts in order. When all have failed it throws the error that containerd would name, the first that is no
   * 404; but a refusal of the caller's credentials goes before all others.
   */
  async #overHosts<Result>(
    asking: Asking,
    caller: AbortSignal,
    signal: AbortSignal,
    use: (requester: Requester, hasOther: boolean) => Promise<Result>,
  ): Promise<Result> {
    const { health, reference } = this.#options;
    this.#requesters ??= this.#options.requesters();
    const needsResolve = asking.resolving && reference.digest === undefined;
    const requesters = (await this.#requesters).filter(({ host }) => host.canResolve || !needsResolve);
    const failures = [new PullError("not_found", `no host knows ${reference.name}`)];
    for (const [index, requester] of requesters.entries()) {
      const name = requester.host.url.host;
      if (health.isOpen(name)) {
        const why = `${name} has failed repeatedly and is not asked for now`;
        failures.push(new PullError("unavailable", why));
        continue;
      }
      try {
        const hasOther = requesters.slice(index + 1).some(({ host }) => !health.isOpen(host.url.host));
        const again = hasOther ? () => false : asking.again;
        const attempt = async (): Promise<Result> => await use(requester, hasOther);
        const result = await this.#retrying({ ...asking, again }, name, signal, attempt);
        health.succeeded(name);
        return result;
      } catch (error) {
        // The caller going away says nothing of the host; no answer within our patience does.
        throwIfAborted(caller);
        const failure = transportError(error, requester.host.url, signal);
        asking.failed?.(name, wordOf(failure), 0);
        if (isOurs(failure)) throw failure;
        if (isSilence(failure)) health.failed(name, () => requester.probe());
        else health.succeeded(name);
        throwIfAborted(signal);
        failures.push(failure);
      }
    }
    const gravest = failures.reduce(graver);
    // Credentials that were good enough to resolve a name are not wrong: containerd may show them again. And where
    // another host has failed before, that is what containerd speaks of, in words that only it has.
    const isFirst = failures.slice(0, failures.indexOf(gravest)).every(({ code }) => code === "not_found");
    const isTold = asking.resolving && isFirst;
    throw isTold ? gravest : new PullError(gravest.code, gravest.message, { cause: gravest });
  }

  async #retrying<Result>(
    { again, patienceMs, failed }: Asking,
    host: string,
    signal: AbortSignal,
    use: () => Promise<Result>,
  ): Promise<Result> {
    const { retries, timing, events } = this.#options;
    for (let attempt = 0; ; attempt++) {
      try {
        return await use();
      } catch (error) {
        throwIfAborted(signal);
        const failure = PullError.from(error);
        if (attempt >= retries || !again(failure)) throw failure;
        const began = performance.now();
        await backOff(failure, attempt, timing, signal, patienceMs);
        failed?.(host, wordOf(failure), performance.now() - began);
        events.retry(failure.code);
      }
    }
  }
}

/** The status that was answered, or what went wrong instead. */
function wordOf(failure: PullError): string {
  return failure instanceof StatusError ? String(failure.status) : failure.code;
}

/** No host can make up for these. */
function isOurs({ code }: PullError): boolean {
  return code === "exhausted" || code === "internal" || code === "cancelled";
}

/** Whether the host failed to answer; being told to wait is an answer. */
function isSilence(failure: PullError): boolean {
  if (failure instanceof StatusError && failure.status === 429) return false;
  return failure.code === "unavailable" || failure.code === "slow";
}

function graver(one: PullError, other: PullError): PullError {
  const gravity = ({ code, credentialsSent }: PullError): number => {
    if (code === "refused" && credentialsSent) return 2;
    return code === "not_found" ? 0 : 1;
  };
  return gravity(other) > gravity(one) ? other : one;
}

function mediaTypeOf(response: Response): string {
  return (response.headers["content-type"] ?? "").split(";", 1)[0]?.trim() ?? "";
}

/** A digest that a header tells; throws `corrupt` when it is none. */
function told(header: string): Digest {
  try {
    return parseDigest(header);
  } catch (error) {
    const failure = PullError.from(error);
    throw failure.code === "invalid" ? new PullError("corrupt", failure.message) : failure;
  }
}

function mustEqual(actual: Digest, expected: Digest): void {
  if (actual !== expected) throw new PullError("corrupt", `${expected} has the digest ${actual}`);
}

/** Throws `corrupt` past the limit. */
async function readBody(
  requester: Requester,
  response: Response,
  bytesMax: number,
  signal: AbortSignal,
): Promise<Buffer> {
  const read: Buffer[] = [];
  let bytes = 0;
  const parts = requester.parts(response, signal);
  for (let part = await parts.next(); part; part = await parts.next()) {
    read.push(Buffer.from(part));
    bytes += part.length;
    if (bytes <= bytesMax) continue;
    response.body.destroy();
    throw new PullError("corrupt", `${plain(response.url)} is over ${bytesMax} bytes long`);
  }
  return Buffer.concat(read);
}
