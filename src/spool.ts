// The spool: the sparse file that a blob is downloaded into, with a watermark that both sides share.
//
// The download writes byte ranges at their offsets, in any order. The watermark is the number of leading bytes that
// are present; it lives in shared memory, so that a worker thread can read the file right behind it and sleep on it
// (Atomics.wait) without a message. The page cache is the queue: no blob byte is ever held here. A spool never
// verifies anything; its reader does.

import { constants, writeSync } from "node:fs";
import { type FileHandle, open, rm } from "node:fs/promises";
import { PullError } from "./errors.ts";

/** Indexes into the shared BigInt64Array. */
const slots = { watermark: 0, state: 1, sequence: 2 } as const;
const states = { filling: 0n, complete: 1n, failed: 2n } as const;

/** What a worker needs to read a spool; can be posted to it as it is. */
export interface SpoolView {
  readonly path: string;
  readonly sizeBytes: number;
  /** Three 64-bit integers: watermark, state, and a sequence number that changes with either. */
  readonly shared: SharedArrayBuffer;
}

/** The bytes from `start` up to, not including, `end`. */
export interface Range {
  start: number;
  end: number;
}

export interface SpoolOptions {
  /** What the file holds already, when it was left by a former process; absent: the file is made, and must not exist. */
  readonly written?: readonly Range[];
  /** Told of each range once it is in the file. */
  readonly wrote?: (range: Range) => void;
}

export class Spool implements AsyncDisposable {
  readonly view: SpoolView;
  readonly #wrote: (range: Range) => void;
  readonly #file: FileHandle;
  readonly #cells: BigInt64Array<SharedArrayBuffer>;
  /** What has been written, as disjoint ranges in ascending order; never two that touch. */
  readonly #written: Range[] = [];
  #closed = false;

  private constructor(view: SpoolView, file: FileHandle, { written = [], wrote = () => {} }: SpoolOptions) {
    this.view = view;
    this.#file = file;
    this.#cells = new BigInt64Array(view.shared);
    this.#wrote = wrote;
    for (const range of written) this.#present(range);
  }

  /** Opens the file, or makes it (mode 0600). */
  static async open(path: string, sizeBytes: number, options: SpoolOptions = {}): Promise<Spool> {
    const flags = options.written
      ? constants.O_RDWR
      : constants.O_CREAT | constants.O_EXCL | constants.O_RDWR;
    const file = await open(path, flags | constants.O_NOFOLLOW, 0o600);
    const shared = new SharedArrayBuffer(3 * BigInt64Array.BYTES_PER_ELEMENT);
    return new Spool({ path, sizeBytes, shared }, file, options);
  }

  /** Leading bytes that are present. */
  get watermark(): number {
    return Number(Atomics.load(this.#cells, slots.watermark));
  }

  /** What is in the file, as disjoint ranges in ascending order. */
  get written(): readonly Range[] {
    return this.#written.map((range) => ({ ...range }));
  }

  /** What is not. */
  missing(): Range[] {
    const edges = [0, ...this.#written.flatMap(({ start, end }) => [start, end]), this.view.sizeBytes];
    const gaps: Range[] = [];
    for (let index = 0; index < edges.length; index += 2) {
      const [start = 0, end = 0] = edges.slice(index, index + 2);
      if (start < end) gaps.push({ start, end });
    }
    return gaps;
  }

  /**
   * Writes bytes at an offset, and advances the watermark. Throws `corrupt` for bytes past the blob's size, `exhausted`
   * when the disk is full. Not asynchronous: a copy into the page cache costs less than having another thread do it.
   */
  write(offset: number, bytes: Uint8Array): void {
    const end = offset + bytes.length;
    if (end > this.view.sizeBytes) {
      throw new PullError("corrupt", `blob is longer than its ${this.view.sizeBytes} bytes`);
    }
    if (this.#closed) throw new PullError("internal", "the spool is closed");
    try {
      for (let done = 0; done < bytes.length; )
        done += writeSync(this.#file.fd, bytes, done, bytes.length - done, offset + done);
    } catch (error) {
      throw diskError(error);
    }
    if (bytes.length === 0) return;
    const range = { start: offset, end };
    this.#present(range);
    this.#wrote(range);
  }

  /** Says that every byte is there. Throws `internal` when one is missing. */
  complete(): void {
    if (this.watermark !== this.view.sizeBytes) {
      throw new PullError("internal", `spool completed at ${this.watermark} of ${this.view.sizeBytes} bytes`);
    }
    this.#signal(slots.state, states.complete);
  }

  /** Wakes readers up with a failure; harmless on a complete spool. */
  fail(): void {
    if (Atomics.load(this.#cells, slots.state) === states.filling) this.#signal(slots.state, states.failed);
  }

  /** Makes the bytes durable (fdatasync). */
  async sync(): Promise<void> {
    await this.#file.datasync();
  }

  /** Fails a spool that is still filling, and closes the file, which stays. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.fail();
    await this.#file.close();
  }

  /** Closes the file and removes it if it is still where it was made. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
    await rm(this.view.path, { force: true });
  }

  #present(added: Range): void {
    const index = this.#written.findIndex((range) => range.end >= added.start);
    const first = index === -1 ? this.#written.length : index;
    let last = first;
    const merged = { ...added };
    for (let range = this.#written[last]; range && range.start <= merged.end; range = this.#written[++last]) {
      merged.start = Math.min(merged.start, range.start);
      merged.end = Math.max(merged.end, range.end);
    }
    this.#written.splice(first, last - first, merged);
    const head = this.#written[0];
    if (head?.start === 0 && head.end > this.watermark) this.#signal(slots.watermark, BigInt(head.end));
  }

  #signal(slot: number, value: bigint): void {
    Atomics.store(this.#cells, slot, value);
    Atomics.add(this.#cells, slots.sequence, 1n);
    Atomics.notify(this.#cells, slots.sequence);
  }
}

/**
 * The reading side, for worker threads only: it blocks. Waits until more than `position` bytes are present and returns
 * the watermark; at the end returns the blob's size. Throws `cancelled` when the spool failed or `isCancelled` says
 * so, which is asked at least every 100 ms.
 */
export function waitForBytes(view: SpoolView, position: number, isCancelled: () => boolean): number {
  const cells = new BigInt64Array(view.shared);
  for (;;) {
    const sequence = Atomics.load(cells, slots.sequence);
    const watermark = Number(Atomics.load(cells, slots.watermark));
    if (isCancelled()) throw new PullError("cancelled", "cancelled");
    if (watermark > position || watermark === view.sizeBytes) return watermark;
    if (Atomics.load(cells, slots.state) === states.failed)
      throw new PullError("cancelled", "download failed");
    Atomics.wait(cells, slots.sequence, sequence, 100);
  }
}

/** Whether waitForBytes would return or throw at once: for a reader that has other things to do meanwhile. */
export function isReady(view: SpoolView, position: number): boolean {
  const cells = new BigInt64Array(view.shared);
  const watermark = Number(Atomics.load(cells, slots.watermark));
  const isFilling = Atomics.load(cells, slots.state) === states.filling;
  return watermark > position || watermark === view.sizeBytes || !isFilling;
}

/** The same bytes as disjoint ranges in ascending order, no two of which touch. */
export function mergeRanges(ranges: readonly Range[]): Range[] {
  const merged: Range[] = [];
  for (const { start, end } of ranges.toSorted((a, b) => a.start - b.start)) {
    const last = merged.at(-1);
    if (last && start <= last.end) last.end = Math.max(last.end, end);
    else merged.push({ start, end });
  }
  return merged;
}

function diskError(error: unknown): PullError {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  const full = code === "ENOSPC" || code === "EDQUOT";
  return new PullError(full ? "exhausted" : "internal", `writing a blob to disk failed: ${String(code)}`, {
    cause: error,
  });
}
