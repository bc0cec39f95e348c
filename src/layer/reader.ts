// Reads a spool from start to end right behind its watermark. Blocks the thread that it runs in; for workers only.

import { closeSync, openSync, readSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import { PullError } from "../errors.ts";
import { isReady, type SpoolView, waitForBytes } from "../spool.ts";
import { sharedNowMs } from "../usage.ts";

const inputBytes = 256 * 1024;
const pollMs = 10;

export class SpoolReader implements Disposable {
  readonly #spool: SpoolView;
  readonly #isCancelled: () => boolean;
  readonly #fd: number;
  #buffer: Buffer | undefined;
  #position = 0;
  waitedMs = 0;
  /** When it last had something to read after there was nothing, as sharedNowMs() has it; undefined while there always was. */
  caughtUpAtMs: number | undefined;

  constructor(spool: SpoolView, isCancelled: () => boolean) {
    this.#spool = spool;
    this.#isCancelled = isCancelled;
    this.#fd = openSync(spool.path, "r");
  }

  /** Resolves once next() need not block. For what must let its thread's other work go on. */
  async ready(): Promise<void> {
    if (isReady(this.#spool, this.#position)) return;
    const began = performance.now();
    while (!isReady(this.#spool, this.#position) && !this.#isCancelled()) await setTimeout(pollMs);
    this.#waitedSince(began);
  }

  /** Some bytes, valid until the next call, or undefined at the end. */
  next(): Buffer | undefined {
    this.#buffer ??= Buffer.allocUnsafeSlow(inputBytes);
    const read = this.into(this.#buffer, 0, inputBytes);
    return read === 0 ? undefined : this.#buffer.subarray(0, read);
  }

  /** Fills the beginning of buffer[start, end) and returns how much of it; 0 at the end. */
  into(buffer: Buffer, start: number, end: number): number {
    if (this.#position === this.#spool.sizeBytes) return 0;
    const hasToWait = !isReady(this.#spool, this.#position);
    const began = performance.now();
    const watermark = waitForBytes(this.#spool, this.#position, this.#isCancelled);
    if (hasToWait) this.#waitedSince(began);
    const wanted = Math.min(end - start, inputBytes, watermark - this.#position);
    const read = readSync(this.#fd, buffer, start, wanted, this.#position);
    if (read === 0) throw new PullError("internal", `the spool ends at ${this.#position} bytes`);
    this.#position += read;
    return read;
  }

  #waitedSince(began: number): void {
    this.waitedMs += performance.now() - began;
    this.caughtUpAtMs = sharedNowMs();
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}
