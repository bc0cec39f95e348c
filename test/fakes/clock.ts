// Time that passes only when a test lets it.

import type { Clock } from "../../src/prewarm/clock.ts";

export class TestClock implements Clock {
  #nowMs = 1_000_000;
  readonly #calls = new Set<{ readonly timeMs: number; readonly call: () => void }>();

  now = (): number => this.#nowMs;
  random = (): number => 0.5;

  at = (timeMs: number, call: () => void): Disposable => {
    const one = { timeMs, call };
    this.#calls.add(one);
    return { [Symbol.dispose]: () => void this.#calls.delete(one) };
  };

  /** Time passes, and what is due in it comes in its order. */
  async pass(ms: number): Promise<void> {
    const until = this.#nowMs + ms;
    for (;;) {
      const [next] = [...this.#calls].sort((one, other) => one.timeMs - other.timeMs);
      if (next === undefined || next.timeMs > until) break;
      this.#calls.delete(next);
      this.#nowMs = Math.max(this.#nowMs, next.timeMs);
      next.call();
      await settle();
    }
    this.#nowMs = until;
    await settle();
  }
}

/** Whatever can go on without time passing has done so. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 5; turn++)
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
}
