// The time, and calls that come at a time: the real ones, and a face for tests that let it pass by themselves.

/** Milliseconds since 1970, and a call that comes at such a time. */
export interface Clock {
  readonly now: () => number;
  readonly at: (timeMs: number, call: () => void) => Disposable;
  /** From 0 to 1. */
  readonly random: () => number;
}

export const realClock: Clock = {
  now: () => Date.now(),
  at: (timeMs, call) => {
    const timer = setTimeout(call, Math.min(Math.max(0, timeMs - Date.now()), 2 ** 31 - 1)).unref();
    return { [Symbol.dispose]: () => clearTimeout(timer) };
  },
  random: () => Math.random(),
};
