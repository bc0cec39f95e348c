// The fuzzer: targets in turn until the time is over, each execution from a seed of its own that repeats it.

import { Canary } from "../layer/canary.ts";
import { randomness } from "../soak/random.ts";
import { targets } from "./targets.ts";

export interface FuzzOptions {
  readonly seconds: number;
  /** Of the first execution; each further one has the next number. */
  readonly seed: number;
  /** Ends after so many executions. */
  readonly executionsMax?: number;
}

interface Crash {
  readonly target: string;
  readonly seed: number;
  readonly message: string;
}

export interface FuzzResult {
  readonly executions: ReadonlyMap<string, number>;
  readonly crashes: readonly Crash[];
}

const crashesMax = 20;

export async function fuzz({ seconds, seed, executionsMax = Infinity }: FuzzOptions): Promise<FuzzResult> {
  using canary = new Canary();
  const executions = new Map(targets.map(({ name }) => [name, 0]));
  const crashes: Crash[] = [];
  const end = Date.now() + seconds * 1000;
  for (let count = 0; Date.now() < end && count < executionsMax && crashes.length < crashesMax; count++) {
    // Unsigned 32 bits, so that a seed can be given back as it was printed.
    const own = (seed + count) >>> 0;
    const target = targets[own % targets.length];
    if (target === undefined) break;
    executions.set(target.name, (executions.get(target.name) ?? 0) + 1);
    try {
      await target.run(randomness(own), canary);
    } catch (error) {
      crashes.push({ target: target.name, seed: own, message: String(error) });
    }
  }
  return { executions, crashes };
}
