// Whether a worker that follows a spool is better given to somebody else: bytes come so slowly that it sleeps, and
// another image waits for one. What it has unpacked so far is then unpacked once more, when all of the bytes are there.

import type { Spool } from "../spool.ts";

const tickMs = 500;
/** Less than this in each of so many ticks in a row is next to nothing. */
const idle = { bytes: 64 * 1024, ticks: 3 } as const;

export class Stall implements Disposable {
  readonly #abort = new AbortController();
  readonly #timer: NodeJS.Timeout;

  constructor(spool: Pick<Spool, "watermark" | "view">, isWanted: () => boolean) {
    let before = spool.watermark;
    let ticks = 0;
    this.#timer = setInterval(() => {
      const { watermark } = spool;
      const isIdle = watermark < spool.view.sizeBytes && watermark - before < idle.bytes;
      ticks = isIdle ? ticks + 1 : 0;
      before = watermark;
      if (ticks >= idle.ticks && isWanted()) this.#abort.abort();
    }, tickMs);
  }

  /** Aborted once it is so. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}
