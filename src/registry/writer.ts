// From an answer's body to the spool: the parts that are wanted, each written as it comes.
//
// The body of a 206 is one range and nothing else. The body of a 200 is the whole blob: what is not wanted is passed
// over, and behind its own range it goes on with whatever nobody else fetches. Lengths are verified here, never
// digests.

import { PullError } from "../errors.ts";
import type { Spool } from "../spool.ts";
import type { Range, Remaining } from "./ranges.ts";

export class BodyWriter {
  readonly #spool: Spool;
  readonly #range: Range;
  /** Where a body of the whole blob finds more to do; undefined when the body is just the range. */
  readonly #more: Remaining | undefined;
  /** Offset in the blob of the next byte of the body. */
  #position: number;

  /** `range` is advanced as its bytes are written, and moved on to further bytes when the body is the whole blob. */
  constructor(spool: Spool, range: Range, more: Remaining | undefined) {
    this.#spool = spool;
    this.#range = range;
    this.#more = more;
    this.#position = more === undefined ? range.start : 0;
  }

  /** Writes the next part of the body; false when no more of it is wanted. Throws `corrupt` for bytes too many. */
  push(part: Uint8Array): boolean {
    for (let rest = part; rest.length > 0; ) {
      if (this.#range.start === this.#range.end && !this.#goOn()) return false;
      const unwanted = Math.min(rest.length, Math.max(0, this.#range.start - this.#position));
      const wanted = Math.min(rest.length - unwanted, this.#range.end - this.#range.start);
      if (wanted > 0) {
        this.#spool.write(this.#range.start, rest.subarray(unwanted, unwanted + wanted));
        this.#range.start += wanted;
      }
      this.#position += unwanted + wanted;
      rest = rest.subarray(unwanted + wanted);
    }
    return true;
  }

  /** There are bytes behind the range: more of the blob, or more than there should be. */
  #goOn(): boolean {
    if (this.#more === undefined || this.#range.end === this.#spool.view.sizeBytes) {
      throw new PullError("corrupt", "the body is longer than announced");
    }
    const next = this.#more.take(Number.POSITIVE_INFINITY);
    if (next === undefined) return false;
    if (next.start < this.#position) {
      this.#more.putBack(next);
      return false;
    }
    Object.assign(this.#range, next);
    return true;
  }
}
