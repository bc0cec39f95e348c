// From an answer's body to the spool: the parts that are wanted, in writes as large as the network makes them.
//
// The body of a 206 is one range and nothing else. The body of a 200 is the whole blob: what is not wanted is passed
// over, and behind its own range it goes on with whatever nobody else fetches. Lengths are verified here, never
// digests.

import { PullError } from "../errors.ts";
import type { Spool } from "../spool.ts";
import type { Range, Remaining } from "./ranges.ts";

/** Most bytes that wait while a write is on its way. */
const batchBytes = 512 * 1024;

export class BodyWriter {
  readonly #spool: Spool;
  readonly #range: Range;
  /** Where a body of the whole blob finds more to do; undefined when the body is just the range. */
  readonly #more: Remaining | undefined;
  #writer: RangeWriter;
  /** Offset in the blob of the next byte of the body. */
  #position: number;

  /** `range` is advanced as its bytes are written, and moved on to further bytes when the body is the whole blob. */
  constructor(spool: Spool, range: Range, more: Remaining | undefined) {
    this.#spool = spool;
    this.#range = range;
    this.#more = more;
    this.#writer = new RangeWriter(spool, range);
    this.#position = more === undefined ? range.start : 0;
  }

  /** Takes the next part of the body; false when no more of it is wanted. Throws `corrupt` for bytes too many. */
  async push(part: Uint8Array): Promise<boolean> {
    for (let rest = part; rest.length > 0; ) {
      if (this.#writer.next === this.#range.end && !(await this.#goOn())) return false;
      const unwanted = Math.min(rest.length, Math.max(0, this.#writer.next - this.#position));
      const wanted = Math.min(rest.length - unwanted, this.#range.end - this.#writer.next);
      if (wanted > 0) await this.#writer.push(rest.subarray(unwanted, unwanted + wanted));
      this.#position += unwanted + wanted;
      rest = rest.subarray(unwanted + wanted);
    }
    return true;
  }

  /** Waits until everything that was taken is written or has failed. Never throws. */
  async settle(): Promise<void> {
    await this.#writer.settle();
  }

  throwIfFailed(): void {
    this.#writer.throwIfFailed();
  }

  /** There are bytes behind the range: more of the blob, or more than there should be. */
  async #goOn(): Promise<boolean> {
    if (this.#more === undefined || this.#range.end === this.#spool.view.sizeBytes) {
      throw new PullError("corrupt", "the body is longer than announced");
    }
    await this.#writer.settle();
    this.#writer.throwIfFailed();
    const next = this.#more.take(Number.POSITIVE_INFINITY);
    if (next === undefined) return false;
    if (next.start < this.#position) {
      this.#more.putBack(next);
      return false;
    }
    Object.assign(this.#range, next);
    this.#writer = new RangeWriter(this.#spool, this.#range);
    return true;
  }
}

/**
 * Writes one range from its start. While a write is on its way the parts that follow are collected for the next one,
 * so that writes are large when the network is fast and nothing waits when it is slow.
 */
class RangeWriter {
  /** Offset of the next byte to be pushed; runs ahead of the range's start. */
  next: number;
  readonly #spool: Spool;
  readonly #range: Range;
  #parts: Uint8Array[] = [];
  #collectedBytes = 0;
  #writing: Promise<void> | undefined;
  #failure: PullError | undefined;

  constructor(spool: Spool, range: Range) {
    this.#spool = spool;
    this.#range = range;
    this.next = range.start;
  }

  /** Waits only when much is collected already. */
  async push(part: Uint8Array): Promise<void> {
    this.throwIfFailed();
    this.next += part.length;
    this.#parts.push(part);
    this.#collectedBytes += part.length;
    this.#writing ??= this.#drain();
    if (this.#collectedBytes >= batchBytes) await this.#writing;
  }

  async settle(): Promise<void> {
    await this.#writing;
  }

  throwIfFailed(): void {
    if (this.#failure) throw this.#failure;
  }

  async #drain(): Promise<void> {
    try {
      while (this.#parts.length > 0) {
        const [parts, bytes] = [this.#parts, this.#collectedBytes];
        this.#parts = [];
        this.#collectedBytes = 0;
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
