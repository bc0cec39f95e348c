// The rate that all blobs together are held to, on a clock of the test's own.

import fc from "fast-check";
import { expect, test } from "vitest";
import { Bandwidth } from "../../src/registry/bandwidth.ts";
import { realTiming } from "../../src/registry/patience.ts";

const never = new AbortController().signal;

/** A clock that jumps to the end of each wait. */
class Clock {
  ms = 1000;
  readonly random = (): number => 0;
  readonly now = (): number => this.ms;
  readonly wait = async (timeMs: number): Promise<void> => {
    this.ms += timeMs;
  };
}

test("whatever the parts, they take the time that the rate gives them, but for the burst", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 100_000 }), { minLength: 1 }), async (parts) => {
      const clock = new Clock();
      const bandwidth = new Bandwidth(1_000_000, clock);
      for (const part of parts) await bandwidth.pay(part, never);
      const bytes = parts.reduce((sum, part) => sum + part, 0);
      expect(clock.ms - 1000).toBeCloseTo(Math.max(0, bytes / 1000 - 250), 3);
    }),
  );
});

test("lanes share it: each waits for what all have received", async () => {
  const waits: number[] = [];
  const wait = async (timeMs: number): Promise<void> => void waits.push(timeMs);
  const bandwidth = new Bandwidth(1_000_000, { ...realTiming, now: () => 0, wait });
  await Promise.all([250_000, 100_000, 100_000].map((bytes) => bandwidth.pay(bytes, never)));
  expect(waits).toEqual([100, 200]);
});

test("what was not used long ago is not made up for", async () => {
  const clock = new Clock();
  const bandwidth = new Bandwidth(1_000_000, clock);
  await bandwidth.pay(1, never);
  clock.ms += 3_600_000;
  const before = clock.ms;
  await bandwidth.pay(1_250_000, never);
  expect(clock.ms - before).toBe(1000);
});

test("who is aborted does not wait", async () => {
  const bandwidth = new Bandwidth(1_000_000);
  const abort = new AbortController();
  const paid = bandwidth.pay(3_600_000_000, abort.signal);
  abort.abort();
  await expect(paid).rejects.toMatchObject({ code: "cancelled" });
});
