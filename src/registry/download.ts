// One blob from one host into a spool: bounded ranges over several connections, in order of need.
//
// The first range shows whether the host serves ranges. If it does, more lanes join in, each taking the next range;
// if it sends everything instead, that one stream carries on alone. A range that breaks off is resumed where it broke.
// A redirect's target is kept for this blob alone and given up when it stops working. Lengths are verified here; the
// digest by whoever reads the spool.

import { PullError, throwIfAborted } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Spool } from "../spool.ts";
import type { RequestPermits } from "./registry.ts";
import {
  backOff,
  isTemporary,
  type Requester,
  type Response,
  retryAfterMs,
  transportError,
} from "./request.ts";

export interface DownloadOptions {
  readonly requester: Requester;
  readonly repository: string;
  readonly descriptor: Descriptor;
  readonly spool: Spool;
  readonly permits: RequestPermits;
  readonly chunkBytes: number;
  /** Connections that one blob may use at this host. */
  readonly streams: number;
  readonly retries: number;
  readonly received: (bytes: number) => void;
  readonly retried: (error: PullError) => void;
}

/** Most bytes of a range that wait for their turn to be written. */
const batchBytes = 512 * 1024;
/** A server that asks for more patience than this is given up. */
const retryAfterMsMax = 30_000;
/** Statuses by which a redirect's target says that its signature has expired. */
const expiredStatuses = new Set([400, 401, 403, 404, 410]);

interface Range {
  start: number;
  end: number;
}

export class Download {
  readonly #options: DownloadOptions;
  readonly #path: string;
  /** Start of the first byte that no lane has taken. */
  #next: number;
  /** A redirect's target that has served this blob. */
  #direct: URL | undefined;

  /** `from` leading bytes are in the spool already, from another host. */
  constructor(options: DownloadOptions, from: number) {
    this.#options = options;
    this.#path = `/${options.repository}/blobs/${options.descriptor.digest}`;
    this.#next = from;
  }

  async run(signal: AbortSignal): Promise<void> {
    const { streams, descriptor, chunkBytes } = this.#options;
    const stop = new AbortController();
    const both = AbortSignal.any([signal, stop.signal]);
    const left = descriptor.size - this.#next;
    // A host that is to be asked once at a time gets one request for all, which it can pass on as it is.
    const first = this.#take(streams === 1 ? left : chunkBytes);
    const lanes: Promise<void>[] = [];
    const join = (): void => {
      const wanted = Math.min(streams, Math.ceil(left / chunkBytes)) - 1;
      for (let lane = 0; lane < wanted; lane++) lanes.push(this.#lane(undefined, both));
    };
    lanes.push(this.#lane(first, both, join));
    try {
      // Lanes may join while the first one runs, so wait for it before looking at how many there are.
      await lanes[0];
      await Promise.all(lanes);
    } finally {
      stop.abort();
      await Promise.allSettled(lanes);
    }
  }

  #take(bytes: number): Range | undefined {
    const { size } = this.#options.descriptor;
    if (this.#next >= size) return undefined;
    const start = this.#next;
    this.#next = Math.min(size, start + bytes);
    return { start, end: this.#next };
  }

  async #lane(first: Range | undefined, signal: AbortSignal, rangesServed?: () => void): Promise<void> {
    let joined = rangesServed;
    const { chunkBytes } = this.#options;
    for (let range = first ?? this.#take(chunkBytes); range; range = this.#take(chunkBytes)) {
      await this.#fetch(range, signal, () => {
        joined?.();
        joined = undefined;
      });
    }
  }

  /** Fetches a range, resuming it as often as it makes progress and `retries` times when it makes none. */
  async #fetch(range: Range, signal: AbortSignal, ranged: () => void): Promise<void> {
    const { retries, retried } = this.#options;
    for (let attempt = 0; range.start < range.end; ) {
      const before = range.start;
      try {
        await this.#attempt(range, signal, ranged);
      } catch (error) {
        const failure = error instanceof Failure ? error.error : PullError.from(error);
        throwIfAborted(signal);
        attempt = range.start > before ? 0 : attempt + 1;
        const askedMs = error instanceof Failure ? error.retryAfterMs : 0;
        if (!failure.temporary || attempt > retries || askedMs > retryAfterMsMax) throw failure;
        retried(failure);
        await backOff(attempt, askedMs, signal);
      }
    }
  }

  async #attempt(range: Range, signal: AbortSignal, ranged: () => void): Promise<void> {
    const { requester, permits, descriptor } = this.#options;
    using _permit = await permits.acquire(requester.host.url.host, signal);
    const isWhole = range.start === 0 && range.end === descriptor.size;
    const bytes = `bytes=${range.start}-${range.end - 1}`;
    const headers = { "accept-encoding": "identity", ...(!isWhole && { range: bytes }) };
    const init = { method: "GET" as const, path: this.#path, headers, direct: this.#direct };
    const response = await requester.send(init, signal);
    if (init.direct && expiredStatuses.has(response.status)) {
      await response.body.dump();
      this.#direct = undefined;
      throw new PullError("unavailable", "a redirect's target has expired", { temporary: true });
    }
    if (response.status === 206) {
      this.#checkRange(response, range);
      this.#remember(response);
      ranged();
      await this.#read(response, range, 0, signal);
    } else if (response.status === 200) {
      // All of the blob: this range grows to its end, and what is there already is passed over.
      this.#next = descriptor.size;
      this.#remember(response);
      range.end = descriptor.size;
      await this.#read(response, range, range.start, signal);
    } else {
      const error = await requester.toError(response, init);
      throw new Failure(
        error,
        isTemporary(response.status) ? (retryAfterMs(response.headers, Date.now()) ?? 0) : 0,
      );
    }
  }

  #remember(response: Response): void {
    if (response.url.origin !== this.#options.requester.host.url.origin) this.#direct = response.url;
  }

  /** RFC 9110, 14.4: the range that was asked for, of a blob of the expected length. */
  #checkRange(response: Response, range: Range): void {
    const { size } = this.#options.descriptor;
    const text = response.headers["content-range"] ?? "";
    const match = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(text);
    const isRight =
      match !== null &&
      Number(match[1]) === range.start &&
      Number(match[2]) === range.end - 1 &&
      (match[3] === "*" || Number(match[3]) === size);
    if (isRight) return;
    response.body.destroy();
    throw new PullError(
      "corrupt",
      `asked for bytes ${range.start}-${range.end - 1}/${size} and got ${JSON.stringify(text.slice(0, 100))}`,
    );
  }

  /** Writes the body at the range's start; `skip` leading bytes are dropped. Advances range.start. */
  async #read(response: Response, range: Range, skip: number, signal: AbortSignal): Promise<void> {
    const { spool, received } = this.#options;
    const writer = new RangeWriter(spool, range);
    let toSkip = skip;
    try {
      for await (const part of response.body as AsyncIterable<Buffer>) {
        received(part.length);
        const kept = part.subarray(Math.min(toSkip, part.length));
        toSkip -= part.length - kept.length;
        await writer.push(kept);
      }
    } catch (error) {
      throw transportError(error, response.url, signal);
    } finally {
      // What arrived before a break is good: it need not be asked for again.
      await writer.settle();
    }
    writer.throwIfFailed();
    if (range.start < range.end) {
      throw new PullError("unavailable", `the body ended ${range.end - range.start} bytes early`, {
        temporary: true,
      });
    }
  }
}

/**
 * Puts parts into the spool as they come. While one write is on its way the parts that follow are collected for the
 * next, so that writes are large when the network is fast and nothing waits when it is slow.
 */
class RangeWriter {
  readonly #spool: Spool;
  readonly #range: Range;
  #parts: Uint8Array[] = [];
  #collected = 0;
  #writing: Promise<void> | undefined;
  #failure: PullError | undefined;

  constructor(spool: Spool, range: Range) {
    this.#spool = spool;
    this.#range = range;
  }

  /** Waits only when much is collected already. Throws `corrupt` past the range's end. */
  async push(part: Uint8Array): Promise<void> {
    this.throwIfFailed();
    if (part.length === 0) return;
    this.#parts.push(part);
    this.#collected += part.length;
    this.#writing ??= this.#drain();
    if (this.#collected >= batchBytes) await this.#writing;
  }

  /** Waits until nothing is collected any more. */
  async settle(): Promise<void> {
    await this.#writing;
  }

  throwIfFailed(): void {
    if (this.#failure) throw this.#failure;
  }

  async #drain(): Promise<void> {
    try {
      while (this.#parts.length > 0) {
        const [parts, bytes] = [this.#parts, this.#collected];
        this.#parts = [];
        this.#collected = 0;
        if (this.#range.start + bytes > this.#range.end) {
          throw new PullError("corrupt", "the blob is longer than announced");
        }
        await this.#spool.write(this.#range.start, parts);
        this.#range.start += bytes;
      }
    } catch (error) {
      this.#failure ??= PullError.from(error);
    } finally {
      this.#writing = undefined;
    }
  }
}

/** An error with the patience that the server asked for. */
class Failure extends Error {
  readonly error: PullError;
  readonly retryAfterMs: number;

  constructor(error: PullError, afterMs: number) {
    super(error.message);
    this.error = error;
    this.retryAfterMs = afterMs;
  }
}
