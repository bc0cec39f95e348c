// Which bytes of a blob are still missing, and who fetches which of them.
//
// Every byte is handed out once at a time and is written once: what a request did not get is put back, whoever asks
// next (another lane, another host) takes it from there, and nothing that a reader may have verified is written again.

import { PullError } from "../errors.ts";
import type { Range } from "../spool.ts";

export type { Range };

export class Remaining {
  /** Disjoint, none empty, in ascending order. */
  readonly #gaps: Range[] = [];

  constructor(gaps: readonly Range[]) {
    for (const gap of gaps) this.putBack({ ...gap });
  }

  /** Bytes that nobody fetches at the moment. */
  get sizeBytes(): number {
    return this.#gaps.reduce((sum, { start, end }) => sum + end - start, 0);
  }

  /** The lowest of them, at most this many in a row; undefined when all are taken. */
  take(bytesMax: number): Range | undefined {
    const [gap] = this.#gaps;
    if (gap === undefined) return undefined;
    const taken = { start: gap.start, end: Math.min(gap.end, gap.start + bytesMax) };
    if (taken.end === gap.end) this.#gaps.shift();
    else gap.start = taken.end;
    return taken;
  }

  /** Gives back what is left of a range that was taken; nothing when it was fetched whole. */
  putBack({ start, end }: Range): void {
    if (start >= end) return;
    const index = this.#gaps.findIndex((gap) => gap.start > start);
    this.#gaps.splice(index === -1 ? this.#gaps.length : index, 0, { start, end });
  }
}

/**
 * RFC 9110, 14.4: throws `corrupt` unless the Content-Range of an answer is the range that was asked for, of a blob of
 * the expected length.
 */
export function checkContentRange(header: string | undefined, range: Range, sizeBytes: number): void {
  const match = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16}|\*)$/.exec(header ?? "");
  const isRight =
    match !== null &&
    Number(match[1]) === range.start &&
    Number(match[2]) === range.end - 1 &&
    (match[3] === "*" || Number(match[3]) === sizeBytes);
  if (isRight) return;
  const got = JSON.stringify((header ?? "").slice(0, 100));
  throw new PullError(
    "corrupt",
    `asked for bytes ${range.start}-${range.end - 1}/${sizeBytes} and got ${got}`,
  );
}
