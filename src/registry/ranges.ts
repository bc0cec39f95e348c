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

/** What the first request asks for; blobs up to twice this are fetched in one piece. */
const firstBytes = 2 * 1024 * 1024;
/** What a request should take: long beside the wait for its head, short beside what a reader has to do meanwhile. */
const worthMs = { least: 200, heads: 5 } as const;
/** Shorter bodies say nothing about a connection's rate. */
const tellingBytes = 256 * 1024;

/**
 * How much one request asks for. A reader follows the lowest missing byte, so what several large ranges bring at once comes
 * to it late, in bursts, and the cores have nothing to do until then; of small ranges, most of the time is waiting for heads.
 */
export class RangeSize {
  readonly #bytesMax: number;
  #bytes: number;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
    this.#bytes = Math.min(firstBytes, bytesMax);
  }

  /** No request asks for less, but for the end of a blob. */
  get bytesMin(): number {
    return Math.min(firstBytes, this.#bytesMax);
  }

  /** Of so many bytes that are missing, how many to ask for next. */
  of(missingBytes: number): number {
    return missingBytes <= 2 * this.bytesMin ? Math.min(missingBytes, this.#bytesMax) : this.#bytes;
  }

  /** A request was answered after `headMs`, and its body came in `bodyMs` more. */
  took(headMs: number, bodyMs: number, bytes: number): void {
    if (bytes < tellingBytes) return;
    const worth = (bytes / Math.max(1, bodyMs)) * Math.max(worthMs.least, worthMs.heads * headMs);
    // Halfway there, since single requests differ.
    const next = Math.round((this.#bytes + worth) / 2);
    this.#bytes = Math.min(this.#bytesMax, Math.max(this.bytesMin, next));
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
