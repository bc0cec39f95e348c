// Notes of a pull that nobody reads.

import { PullTrace, type Vitals } from "../../src/trace.ts";

export function makeTrace(): PullTrace {
  return new PullTrace({ id: "0".repeat(16), traceID: "0".repeat(32), isAhead: false, isSampled: true });
}

/** A machine that has nothing to do. */
export function idleVitals(): Vitals {
  const atMs = performance.now();
  return { atMs, loopMs: 0, mainUsage: undefined, coresMs: atMs, idleMs: atMs };
}
