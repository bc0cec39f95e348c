// One blob from one host into a spool: bounded ranges over several connections, in order of need.
//
// The first range shows whether the host serves ranges. If it does, more lanes join in, each taking the next range; if
// it sends everything instead, that one stream carries on alone. A range that breaks off is resumed where it broke. A
// redirect's target is kept for this blob alone and given up when it stops working. Lengths are verified here; the
// digest by whoever reads the spool. There is no If-Range: a blob is named by its digest, which catches a mixture, and
// entity tags differ between the replicas of one registry.

import { PullError, throwIfAborted } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Spool } from "../spool.ts";
import type { Bandwidth } from "./bandwidth.ts";
import { discard } from "./body.ts";
import { isUnreachable } from "./failure.ts";
import { Pace } from "./pace.ts";
import { backOff, StatusError, type Timing } from "./patience.ts";
import { checkContentRange, type Range, type Remaining } from "./ranges.ts";
import type { RequestPermit, RequestPermits } from "./registry.ts";
import { type Requester, type RequestInit, type Response } from "./request.ts";
import { BodyWriter } from "./writer.ts";

export interface DownloadOptions {
  readonly requester: Requester;
  readonly repository: string;
  readonly descriptor: Descriptor;
  readonly spool: Spool;
  /** What to fetch; after a failure, what the next host has still to fetch. */
  readonly remaining: Remaining;
  readonly permits: RequestPermits;
  readonly chunkBytes: number;
  /** Connections that one blob may use at this host. */
  readonly streams: number;
  /** Attempts in a row that may make no progress to speak of. */
  readonly retries: number;
  /** Another host can be asked, so that this one is not waited for: only what broke off is gone on with here. */
  readonly hasOther: boolean;
  readonly timing: Timing;
  readonly bandwidth: Bandwidth | undefined;
  /** Is told which host (host:port) they came from. */
  readonly received: (bytes: number, from: string) => void;
  readonly retried: (error: PullError) => void;
}

/** What came, how long it was waited for because of a bandwidth limit, and whether it was all. */
type Received = (bytes: number, throttledMs: number, isLast: boolean) => Promise<void> | undefined;

/** Statuses by which a redirect's target says that its signature has expired. */
const expiredStatuses = new Set([400, 401, 403, 404, 410]);
/** Less than this between two failures is no progress, so that a trickle does not go on for ever. */
const progressBytesMin = 64 * 1024;

export class Download {
  readonly #options: DownloadOptions;
  readonly #path: string;
  /** A redirect's target that has served this blob. */
  #direct: URL | undefined;

  constructor(options: DownloadOptions) {
    this.#options = options;
    this.#path = `/${options.repository}/blobs/${options.descriptor.digest}`;
  }

  /** When it throws, nothing of it goes on, and `remaining` is what is missing. */
  async run(signal: AbortSignal): Promise<void> {
    const { streams, chunkBytes, remaining } = this.#options;
    const stop = new AbortController();
    const both = AbortSignal.any([signal, stop.signal]);
    const lanesMax = Math.min(streams, Math.ceil(remaining.sizeBytes / chunkBytes));
    const lanes: Promise<void>[] = [];
    let failure: PullError | undefined;
    const start = (): void => {
      const lane = this.#lane(join, both).catch((error: unknown) => {
        failure ??= PullError.from(error);
        stop.abort(failure);
      });
      lanes.push(lane);
    };
    const join = (): void => {
      while (lanes.length < lanesMax) start();
    };
    start();
    // Lanes join while others run; the loop sees those too.
    for (const lane of lanes) await lane;
    if (failure) throw failure;
  }

  /** Fetches range after range; tells when the host has shown that it serves ranges. */
  async #lane(ranged: () => void, signal: AbortSignal): Promise<void> {
    const { remaining, streams, chunkBytes } = this.#options;
    // A host that is to be asked once at a time is asked for everything at once, which it can pass on as it is.
    const bytesMax = streams === 1 ? Number.POSITIVE_INFINITY : chunkBytes;
    for (let range = remaining.take(bytesMax); range; range = remaining.take(bytesMax)) {
      try {
        await this.#fetch(range, ranged, signal);
      } finally {
        remaining.putBack(range);
      }
    }
  }

  async #fetch(range: Range, ranged: () => void, signal: AbortSignal): Promise<void> {
    const { retries, retried, timing, hasOther, permits, requester } = this.#options;
    for (let attempt = 0; range.start < range.end; ) {
      const before = range.start;
      try {
        await this.#request(range, ranged, signal);
      } catch (error) {
        throwIfAborted(signal);
        const failure = PullError.from(error);
        attempt = range.start - before >= progressBytesMin ? 0 : attempt + 1;
        const isBetterElsewhere = hasOther && (failure instanceof StatusError || isUnreachable(failure));
        if (attempt > retries || isBetterElsewhere) throw failure;
        const began = performance.now();
        await backOff(failure, attempt, timing, signal);
        const host = failure instanceof StatusError ? failure.host : requester.host.url.host;
        permits.paused(host, performance.now() - began);
        retried(failure);
      }
    }
  }

  async #request(range: Range, ranged: () => void, signal: AbortSignal): Promise<void> {
    const { requester, permits } = this.#options;
    using permit = await permits.acquire(requester.host.url.host, signal);
    try {
      await this.#requestWith(permit, range, ranged, signal);
    } catch (error) {
      if (!signal.aborted) {
        if (isTrouble(error)) permit.troubled();
        permit.failed(error instanceof StatusError ? String(error.status) : PullError.from(error).code);
      }
      throw error;
    }
  }

  async #requestWith(
    permit: RequestPermit,
    range: Range,
    ranged: () => void,
    signal: AbortSignal,
  ): Promise<void> {
    const { requester, descriptor, remaining } = this.#options;
    using pace = new Pace(() => permit.slow());
    const revoked = permit.yielding?.revoked;
    /** Undefined when the next part may be read at once. */
    const isAll = range.start === 0 && range.end === descriptor.size;
    const headers = {
      accept: `${descriptor.mediaType}, */*`,
      "accept-encoding": "identity",
      // A range can be broken off, and gone on with.
      ...((!isAll || permit.yielding) && { range: `bytes=${range.start}-${range.end - 1}` }),
    };
    const began = performance.now();
    const response = await this.#ask({ method: "GET", path: this.#path, headers, isBulk: true }, signal);
    const isServed = response.status === 200 || response.status === 206;
    permit.answered({
      from: response.url.host,
      timeMs: performance.now() - began,
      redirectedMs: Math.max(0, response.askedMs - began),
      isServed,
    });
    const isRange = response.status === 206;
    const breakOff = (): void => response.body.destroy();
    const received: Received = (bytes, throttledMs, isLast) => {
      pace.received(bytes);
      permit.received(bytes);
      permit.throttled(throttledMs);
      return isLast ? undefined : permit.yielding?.goOn(bytes, isRange, signal);
    };
    try {
      if (isRange) {
        checkContentRange(response.headers["content-range"], range, descriptor.size);
        ranged();
        revoked?.addEventListener("abort", breakOff, { once: true });
        if (revoked?.aborted) return;
        await this.#read(response, range, undefined, received, signal);
      } else if (response.status === 200) {
        const announced = response.headers["content-length"];
        if (announced !== undefined && Number(announced) !== descriptor.size) {
          throw new PullError("corrupt", `a blob of ${descriptor.size} bytes is announced as ${announced}`);
        }
        await this.#read(response, range, remaining, received, signal);
      } else {
        throw await requester.toError(response);
      }
    } catch (error) {
      // Broken off by ourselves: what came is kept, and the rest is asked for again.
      if (!isRange || !revoked?.aborted) throw error;
      throwIfAborted(signal);
    } finally {
      revoked?.removeEventListener("abort", breakOff);
      response.body.destroy();
    }
  }

  async #ask(init: RequestInit, signal: AbortSignal): Promise<Response> {
    const { requester } = this.#options;
    const tried = this.#direct;
    const direct = tried && (await this.#askDirectly(tried, init, signal));
    if (direct) return direct;
    if (this.#direct === tried) this.#direct = undefined;
    const response = await requester.send(init, signal);
    const isElsewhere = response.url.origin !== requester.host.url.origin;
    if (isElsewhere && (response.status === 200 || response.status === 206)) this.#direct = response.url;
    return response;
  }

  /** Undefined when the target has expired or cannot be reached any more: then the registry is asked for another. */
  async #askDirectly(target: URL, init: RequestInit, signal: AbortSignal): Promise<Response | undefined> {
    try {
      const response = await this.#options.requester.sendTo(target, init, signal);
      if (!expiredStatuses.has(response.status)) return response;
      await discard(response.body);
    } catch {
      throwIfAborted(signal);
    }
    return undefined;
  }

  async #read(
    response: Response,
    range: Range,
    more: Remaining | undefined,
    told: Received,
    signal: AbortSignal,
  ): Promise<void> {
    const { spool, received, requester, bandwidth } = this.#options;
    const writer = new BodyWriter(spool, range, more);
    // What arrived before a break is good: it need not be asked for again.
    const parts = requester.parts(response, signal);
    for (let part = await parts.next(); part; part = await parts.next()) {
      received(part.length, response.url.host);
      if (!writer.push(part)) break;
      const throttledMs = (await bandwidth?.pay(part.length, signal)) ?? 0;
      await told(part.length, throttledMs, range.start === range.end && more === undefined);
    }
    if (range.start < range.end) {
      const missing = range.end - range.start;
      throw new PullError("unavailable", `the body ended ${missing} bytes early`, { temporary: true });
    }
  }
}

/** By which a host shows that it has enough: a refusal for now, or a connection that it has broken off. */
function isTrouble(error: unknown): boolean {
  if (error instanceof StatusError) return error.status === 429 || error.status === 503;
  const cause = error instanceof PullError ? error.cause : undefined;
  const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
  return code === "ECONNRESET" || code === "UND_ERR_SOCKET";
}
