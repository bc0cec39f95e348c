// Many pods at once, but not all of them at the API at once.

import { setMaxListeners } from "node:events";
import { PullError } from "../errors.ts";

const atOnceMax = 16;

/** As soon as one fails, the others are told by the signal, and the first failure is thrown once all have ended. */
export async function allOrFirstFailure<Value>(
  values: readonly Value[],
  work: (value: Value, signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const abort = new AbortController();
  const both = AbortSignal.any([signal, abort.signal]);
  // Node takes more than ten listeners for a leak.
  setMaxListeners(0, both);
  const all = values.map(async (value) => {
    try {
      await work(value, both);
    } catch (error) {
      abort.abort(PullError.from(error));
      throw error;
    }
  });
  await Promise.allSettled(all);
  if (abort.signal.aborted) throw PullError.from(abort.signal.reason);
}

/** Work that is done for so many at a time; others wait for their turn. */
export class Turns {
  #free = atOnceMax;
  readonly #waiting: (() => void)[] = [];

  async during<Value>(work: () => Promise<Value>): Promise<Value> {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#free += 1;
    }
  }
}
