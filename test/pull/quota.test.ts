// The quota: never more than the maximum, in order, and what is not needed is asked for only under pressure.

import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Quota } from "../../src/pull/quota.ts";

const never = new AbortController().signal;

/** Says who was granted, in order. */
function queue(quota: Quota) {
  const granted: string[] = [];
  const held = new Map<string, Disposable>();
  const ask = (name: string, bytes: number, urgency = 0, signal = never): Promise<void> =>
    quota.reserve(bytes, urgency, signal).then((reservation) => {
      granted.push(name);
      held.set(name, reservation);
    });
  return { granted, ask, release: (name: string) => held.get(name)?.[Symbol.dispose]() };
}

test("who does not fit waits, the urgent go first, and nobody overtakes a large one", async () => {
  const { granted, ask, release } = queue(new Quota(10));
  const asked = [ask("a", 6), ask("large", 8, 1), ask("small", 1, 1), ask("urgent", 9, 0)];
  await setImmediate();
  expect(granted).toEqual(["a"]);
  release("a");
  await setImmediate();
  expect(granted).toEqual(["a", "urgent"]);
  release("urgent");
  await Promise.all(asked);
  expect(granted).toEqual(["a", "urgent", "large", "small"]);
});

test("giving back twice counts once, and an aborted wait leaves the queue to those behind it", async () => {
  const quota = new Quota(10);
  const { granted, ask, release } = queue(quota);
  const abort = new AbortController();
  await ask("a", 6);
  const large = ask("large", 9, 0, abort.signal);
  const small = ask("small", 4);
  abort.abort();
  await expect(large).rejects.toMatchObject({ code: "cancelled" });
  await small;
  release("a");
  release("a");
  expect(quota.reservedBytes).toBe(4);
  expect(granted).toEqual(["a", "small"]);
});

test("offers are taken up once somebody waits, and never after they were withdrawn", async () => {
  const quota = new Quota(10);
  const { ask, release } = queue(quota);
  const calls: string[] = [];
  await ask("a", 10);
  const withdrawn = quota.offer(() => calls.push("withdrawn"));
  quota.offer(() => {
    calls.push("offered");
    release("a");
  });
  withdrawn[Symbol.dispose]();
  expect(calls).toEqual([]);
  await ask("b", 5);
  expect(calls).toEqual(["offered"]);
  const c = ask("c", 9);
  quota.offer(() => {
    calls.push("at once");
    release("b");
  });
  await c;
  expect(calls).toEqual(["offered", "at once"]);
});

test("whatever is asked for, the maximum holds and everybody is served", async () => {
  const asks = fc.array(fc.record({ bytes: fc.integer({ min: 0, max: 20 }), urgency: fc.nat(3) }), {
    maxLength: 30,
  });
  await fc.assert(
    fc.asyncProperty(asks, async (all) => {
      const quota = new Quota(20);
      await Promise.all(
        all.map(async ({ bytes, urgency }) => {
          using _held = await quota.reserve(bytes, urgency, never);
          expect(quota.reservedBytes).toBeLessThanOrEqual(20);
          await setImmediate();
        }),
      );
      expect(quota.reservedBytes).toBe(0);
    }),
  );
});

test("offers that are meant for the more urgent are taken up for those alone, and once an urgency has changed", async () => {
  const quota = new Quota(10);
  const { granted, ask, release } = queue(quota);
  await ask("ahead", 8, 100);
  let isTaken = false;
  using _offer = quota.offer(() => {
    isTaken = true;
    release("ahead");
  }, 100);
  const urgency = { value: 101 };
  const waiting = quota.reserve(8, urgency, never).then(() => granted.push("raised"));
  await setImmediate();
  expect(isTaken).toBe(false);
  urgency.value = 1;
  quota.review();
  await waiting;
  expect(granted).toEqual(["ahead", "raised"]);
});

test("who has to wait is told, and for how long; who does not, is not", async () => {
  const lengths: number[] = [];
  const waits: number[] = [];
  const quota = new Quota(10, {
    queued: (count) => void lengths.push(count),
    waited: (seconds) => void waits.push(seconds),
  });
  const { ask, release } = queue(quota);
  const went = new AbortController();
  await ask("a", 6);
  expect(lengths).toEqual([]);
  const [large, small] = [ask("large", 9, 0, went.signal), ask("small", 5)];
  expect(lengths).toEqual([1, 2]);
  went.abort();
  await expect(large).rejects.toThrow(/cancel/);
  release("a");
  await small;
  expect(lengths).toEqual([1, 2, 1, 0]);
  expect(waits).toHaveLength(2);
  for (const seconds of waits) expect(seconds).toBeGreaterThan(0);
});
