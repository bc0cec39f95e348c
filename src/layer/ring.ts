// A ring of shared memory through which one thread passes a stream of bytes to another, with no message and no copy.
//
// The writer fills room ahead of the reader, the reader takes what is filled, and each sleeps (Atomics.wait) while there is
// none. Positions are counts of bytes modulo 2^32. Neither side looks at a byte.

import { PullError } from "../errors.ts";
import type { Outlet, Room } from "./outlet.ts";

/** Indexes into the cells. The last two change whenever the writer, or the reader, has done something. */
const cell = { filled: 0, taken: 1, writer: 2, reader: 3, writes: 4, reads: 5 } as const;
const states = { going: 0, ended: 1, failed: 2 } as const;
const cellCount = 6;

/** Small beside the processor's cache for what both sides touch, large enough to even out files against inflating. */
const ringBytes = 8 * 1024 * 1024;
/** What one side passes on at once, so that the other has something to do. */
const pieceBytes = 1024 * 1024;
/** Less room than this is waited on, except at the ring's edge. */
const roomBytesMin = 256 * 1024;
const askMs = 100;

/** What both threads need of it; can be posted to them. */
export interface Ring {
  readonly bytes: SharedArrayBuffer;
  readonly cells: SharedArrayBuffer;
}

/** A new one; or the memory of one that nobody uses any more, once more. */
export function makeRing(former?: Ring): Ring {
  const cells = new SharedArrayBuffer(cellCount * Int32Array.BYTES_PER_ELEMENT);
  return { bytes: former?.bytes ?? new SharedArrayBuffer(ringBytes), cells };
}

/** Waits throw `cancelled` when `isCancelled` says so, which is asked every 100 ms, or when the reader has gone. */
export class RingWriter implements Outlet, Disposable {
  readonly #cells: Int32Array;
  readonly #buffer: Buffer;
  readonly #isCancelled: () => boolean;
  /** Bytes that were filled, and those of them that the reader knows of. */
  #filled = 0;
  #passed = 0;

  constructor(ring: Ring, isCancelled: () => boolean) {
    this.#cells = new Int32Array(ring.cells);
    this.#buffer = Buffer.from(ring.bytes);
    this.#isCancelled = isCancelled;
  }

  room(): Room {
    const start = this.#filled % this.#buffer.length;
    const atOnce = Math.min(pieceBytes, this.#buffer.length - start);
    for (;;) {
      const reads = Atomics.load(this.#cells, cell.reads);
      if (Atomics.load(this.#cells, cell.reader) !== states.going || this.#isCancelled())
        throw new PullError("cancelled", "cancelled");
      const used = (this.#filled - Atomics.load(this.#cells, cell.taken)) >>> 0;
      const free = Math.min(atOnce, this.#buffer.length - used);
      if (free >= Math.min(roomBytesMin, atOnce)) return { buffer: this.#buffer, start, end: start + free };
      this.flush();
      Atomics.wait(this.#cells, cell.reads, reads, askMs);
    }
  }

  filled(bytes: number): void {
    this.#filled = (this.#filled + bytes) >>> 0;
    if ((this.#filled - this.#passed) >>> 0 >= pieceBytes) this.flush();
  }

  flush(): void {
    if (this.#filled === this.#passed) return;
    this.#passed = this.#filled;
    Atomics.store(this.#cells, cell.filled, this.#filled | 0);
    wake(this.#cells, cell.writes);
  }

  /** That was all, and it is right. */
  end(): void {
    this.flush();
    Atomics.store(this.#cells, cell.writer, states.ended);
    wake(this.#cells, cell.writes);
  }

  /** Without an end before it, the reader gets what was filled and then fails. */
  [Symbol.dispose](): void {
    if (Atomics.load(this.#cells, cell.writer) === states.ended) return;
    this.flush();
    Atomics.store(this.#cells, cell.writer, states.failed);
    wake(this.#cells, cell.writes);
  }
}

/** Waits throw `cancelled` when `isCancelled` says so, which is asked every 100 ms, or when the writer has failed. */
export class RingReader implements Disposable {
  readonly #cells: Int32Array;
  readonly #buffer: Buffer;
  readonly #isCancelled: () => boolean;
  #taken = 0;
  #pieceBytes = 0;
  waitedMs = 0;

  constructor(ring: Ring, isCancelled: () => boolean) {
    this.#cells = new Int32Array(ring.cells);
    this.#buffer = Buffer.from(ring.bytes);
    this.#isCancelled = isCancelled;
  }

  /** The next bytes, valid until the next call, or undefined at the end. */
  next(): Room | undefined {
    this.#giveBack();
    const start = this.#taken % this.#buffer.length;
    for (;;) {
      const writes = Atomics.load(this.#cells, cell.writes);
      if (this.#isCancelled()) throw new PullError("cancelled", "cancelled");
      // The state first: what was filled before the end is in the count that is read after it.
      const state = Atomics.load(this.#cells, cell.writer);
      const ready = (Atomics.load(this.#cells, cell.filled) - this.#taken) >>> 0;
      if (ready > 0) {
        this.#pieceBytes = Math.min(ready, pieceBytes, this.#buffer.length - start);
        return { buffer: this.#buffer, start, end: start + this.#pieceBytes };
      }
      if (state === states.ended) return undefined;
      if (state === states.failed) throw new PullError("cancelled", "the stream broke off");
      const began = performance.now();
      Atomics.wait(this.#cells, cell.writes, writes, askMs);
      this.waitedMs += performance.now() - began;
    }
  }

  [Symbol.dispose](): void {
    Atomics.store(this.#cells, cell.reader, states.ended);
    wake(this.#cells, cell.reads);
  }

  #giveBack(): void {
    if (this.#pieceBytes === 0) return;
    this.#taken = (this.#taken + this.#pieceBytes) >>> 0;
    this.#pieceBytes = 0;
    Atomics.store(this.#cells, cell.taken, this.#taken | 0);
    wake(this.#cells, cell.reads);
  }
}

function wake(cells: Int32Array, index: number): void {
  Atomics.add(cells, index, 1);
  Atomics.notify(cells, index);
}
