// The bandwidth that blobs may take: whoever has received bytes waits, before it reads on, until all that came so far
// could have come at that rate. What is not read is held back by TCP, so a registry sends no more than that for long.

import { realTiming, type Timing } from "./patience.ts";

/** What was not used for so long may be made up for, so that short pauses cost nothing. */
const burstMs = 250;
/** Time since this process began, which nobody sets. */
const steady = { ...realTiming, now: () => performance.now() };

export class Bandwidth {
  readonly #bytesPerMs: number;
  readonly #timing: Timing;
  /** When what was received so far would have come in at just that rate. */
  #paidUntilMs = Number.NEGATIVE_INFINITY;

  constructor(bytesPerSecond: number, timing: Timing = steady) {
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#timing = timing;
  }

  /** For bytes that have come; returns for how many milliseconds it had to wait. Rejects when the signal is aborted. */
  async pay(bytes: number, signal: AbortSignal): Promise<number> {
    const now = this.#timing.now();
    this.#paidUntilMs = Math.max(this.#paidUntilMs, now - burstMs) + bytes / this.#bytesPerMs;
    const waitMs = this.#paidUntilMs - now;
    if (waitMs <= 0) return 0;
    await this.#timing.wait(waitMs, signal);
    return waitMs;
  }
}
