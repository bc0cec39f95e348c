// Permits: several limits at once, urgency first, and no waiter that holds up another.

import fc from "fast-check";
import { expect, test } from "vitest";
import { PullError } from "../../src/errors.ts";
import { Permits } from "../../src/pull/permits.ts";

const never = new AbortController().signal;

/** Lets every promise that can settle do so. */
async function settle(): Promise<void> {
  await new Promise((resolve) => {
    setImmediate(resolve);
  });
}

test("no limit is ever exceeded, and every waiter gets its permit in the end", async () => {
  const limit = fc.record({
    name: fc.constantFrom("node", "image a", "image b", "host"),
    max: fc.constant(0),
  });
  const max = { node: 4, "image a": 2, "image b": 1, host: 3 } as const;
  const waiter = fc.record({
    limits: fc.uniqueArray(limit, { minLength: 1, selector: (l) => l.name }),
    urgency: fc.nat(3),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(waiter, { maxLength: 30 }), async (waiters) => {
      const permits = new Permits();
      const out: Disposable[] = [];
      const asked = waiters.map(async ({ limits, urgency }) => {
        const real = limits.map(({ name }) => ({ name, max: max[name] }));
        out.push(await permits.acquire(real, urgency, never));
        for (const { name, max: most } of real) expect(permits.count(name)).toBeLessThanOrEqual(most);
      });
      let granted = 0;
      for (; granted < waiters.length; granted++) {
        await settle();
        const permit = out.shift();
        if (permit === undefined) break;
        permit[Symbol.dispose]();
        permit[Symbol.dispose]();
      }
      expect(granted).toBe(waiters.length);
      await Promise.all(asked);
      for (const name of Object.keys(max)) expect(permits.count(name)).toBe(0);
    }),
  );
});

test("the most urgent goes first, and among equals the one that waited longest", async () => {
  const permits = new Permits();
  const limits = [{ name: "node", max: 1 }];
  const order: string[] = [];
  let held = await permits.acquire(limits, 0, never);
  const wait = async (name: string, urgency: number): Promise<void> => {
    held = await permits.acquire(limits, urgency, never);
    order.push(name);
  };
  const all = [wait("late", 5), wait("first", 1), wait("second", 1), wait("urgent", 0)];
  for (const _ of all) {
    held[Symbol.dispose]();
    await settle();
  }
  await Promise.all(all);
  expect(order).toEqual(["urgent", "first", "second", "late"]);
});

test("a waiter whose limit is full does not hold up others", async () => {
  const permits = new Permits();
  const full = { name: "image a", max: 1 };
  const node = { name: "node", max: 2 };
  using _a = await permits.acquire([node, full], 0, never);
  let granted = false;
  const blocked = permits.acquire([node, full], 0, never).then(() => {
    granted = true;
  });
  using _b = await permits.acquire([node, { name: "image b", max: 1 }], 9, never);
  await settle();
  expect(granted).toBe(false);
  _a[Symbol.dispose]();
  await blocked;
  expect(granted).toBe(true);
});

test("an aborted waiter leaves the queue with the reason of the signal", async () => {
  const permits = new Permits();
  const limits = [{ name: "node", max: 1 }];
  const held = await permits.acquire(limits, 0, never);
  const abort = new AbortController();
  const waiting = permits.acquire(limits, 0, abort.signal);
  const behind = permits.acquire(limits, 0, never);
  abort.abort(new PullError("slow", "no first byte"));
  await expect(waiting).rejects.toMatchObject({ code: "slow" });
  await expect(permits.acquire(limits, 0, abort.signal)).rejects.toMatchObject({ code: "slow" });
  held[Symbol.dispose]();
  (await behind)[Symbol.dispose]();
  expect(permits.count("node")).toBe(0);
});

test("what is lent serves whoever waits for that name alone, and is given back once", async () => {
  const permits = new Permits();
  const node = { name: "node", max: 1 };
  const slow = await permits.acquire([node, { name: "slow host", max: 1 }], 0, never);
  const quick = permits.acquire([node, { name: "quick host", max: 1 }], 0, never);
  const other = permits.acquire([node, { name: "slow host", max: 1 }], 0, never);
  expect(permits.isWanted("node")).toBe(true);
  expect(permits.isWanted("quick host")).toBe(false);
  slow.lend("node");
  slow.lend("node");
  const granted = await quick;
  expect([permits.count("node"), permits.count("slow host")]).toEqual([1, 1]);
  // The one that is left waits for its host as well.
  expect(permits.isWanted("node")).toBe(false);
  granted[Symbol.dispose]();
  slow[Symbol.dispose]();
  (await other)[Symbol.dispose]();
  expect([permits.count("node"), permits.count("slow host")]).toEqual([0, 0]);
});

test("who waits is told while it waits, and for how long once it does not, whether it was granted or went away", async () => {
  const queue: string[] = [];
  const waits: (readonly [string, number])[] = [];
  const permits = new Permits({
    queued: (key, count) => void queue.push(`${key} ${count}`),
    waited: (key, seconds) => void waits.push([key, seconds]),
  });
  const limits = [{ name: "downloads of image 7", key: "download.max_concurrent_per_image", max: 1 }];
  const first = await permits.acquire(limits, 0, never);
  expect(queue).toEqual([]);
  const went = new AbortController();
  const second = permits.acquire(limits, 0, never);
  const third = permits.acquire(limits, 0, went.signal);
  await settle();
  expect(permits.most((name) => name.startsWith("downloads of "))).toBe(1);
  expect(permits.most((name) => name.startsWith("unpacks"))).toBe(0);
  went.abort();
  await expect(third).rejects.toThrow(PullError);
  first[Symbol.dispose]();
  (await second)[Symbol.dispose]();
  const key = "download.max_concurrent_per_image";
  expect(queue).toEqual([`${key} 1`, `${key} 2`, `${key} 1`, `${key} 0`]);
  expect(waits.map(([what]) => what)).toEqual([key, key]);
  for (const [, seconds] of waits) expect(seconds).toBeGreaterThan(0);
});
