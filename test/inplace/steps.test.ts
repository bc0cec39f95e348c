// Whatever befalls an upgrade, it befalls it at every step: at each request that changes something, one after another.

import { beforeAll, expect, test, vi } from "vitest";
import type { PullError } from "../../src/errors.ts";
import type { Outcome } from "../../src/inplace/inplace.ts";
import { quick, Rig } from "./rig.ts";

/** An API that is away is soon given up, or never. */
const [hasty, patient] = [
  { ...quick, awayMs: 1_000, lockMs: 500 },
  { ...quick, awayMs: 60_000 },
];
const atOnce = 10;
vi.setConfig({ testTimeout: 120_000 });
const leases = "/apis/coordination.k8s.io/v1/leases";

/** How many requests change something in an upgrade that nothing befalls. */
let steps = 0;

/** Calls back at the request of this number, before the API sees it. */
function atStep(rig: Rig, step: number, befall: () => ReturnType<Rig["api"]["behave"]>): void {
  let seen = 0;
  rig.api.behave = (request) => {
    if (!rig.isChange(request)) return undefined;
    seen += 1;
    return seen === step ? befall() : undefined;
  };
}

/** Tells of all steps at which it does not hold. */
async function atEachStep(work: (rig: Rig, step: number) => Promise<void>, replicas = 2): Promise<void> {
  const numbers = Array.from({ length: steps }, (_, index) => index + 1);
  const failures: string[] = [];
  const next = async (): Promise<void> => {
    for (let step = numbers.shift(); step !== undefined; step = numbers.shift()) {
      const rig = await Rig.open(replicas);
      try {
        await work(rig, step);
        expect(rig.worst, "pods out of service").toBeLessThanOrEqual(1);
      } catch (error) {
        failures.push(`at step ${step}: ${(error as Error).message}; ${rig.steps}`);
      } finally {
        await rig[Symbol.asyncDispose]();
      }
    }
  };
  await Promise.all(Array.from({ length: atOnce }, next));
  expect(failures).toEqual([]);
}

/** The operator hears nothing any more from now on. */
function lose(rig: Rig): { readonly drop: true } {
  rig.api.behave = ({ identity }) => (identity === "operator" ? { drop: true } : undefined);
  // Watches too, so that nothing is heard of what may be done all the same.
  rig.api.disconnect();
  return { drop: true };
}

function find(rig: Rig): void {
  rig.api.behave = () => undefined;
}

function expectUpgraded(rig: Rig, outcome: Outcome): void {
  expect(outcome.kind).toBe("upgraded");
  expect(rig.images).toEqual({ "web-0": "app:2", "web-1": "app:2" });
  expect(rig.template).toBe("app:2");
  expectClean(rig);
}

/** All is as if nothing had been begun. */
function expectBack(rig: Rig): void {
  expect(rig.images).toEqual({ "web-0": "app:1", "web-1": "app:1" });
  expect(rig.template).toBe("app:1");
  expectClean(rig);
}

function expectClean(rig: Rig): void {
  expect(rig.unready).toEqual([]);
  expect(rig.annotations).toEqual([]);
  expect(rig.api.list(leases)).toEqual([]);
}

beforeAll(async () => {
  const rig = await Rig.open(2);
  await rig.upgrade();
  steps = rig.api.requests.filter((request) => rig.isChange(request)).length;
  await rig[Symbol.asyncDispose]();
});

test("there are steps", () => {
  // A lease, two marks, and for each of two pods its gate, its images and its gate again.
  expect(steps).toBeGreaterThanOrEqual(12);
});

test("an answer that is lost", async () => {
  await atEachStep(async (rig, step) => {
    atStep(rig, step, () => ({ dropAfter: true }));
    expectUpgraded(rig, await rig.upgrade());
  });
});

test("an API that is away for a moment", async () => {
  await atEachStep(async (rig, step) => {
    atStep(rig, step, () => {
      setTimeout(() => find(rig), 300);
      return lose(rig);
    });
    expectUpgraded(rig, await rig.upgrade({}, undefined, patient));
  });
});

test("an API that throttles", async () => {
  await atEachStep(async (rig, step) => {
    atStep(rig, step, () => ({ status: 429, headers: { "retry-after": "1" } }));
    expectUpgraded(rig, await rig.upgrade());
  });
});

test.each(["drop", "dropAfter"] as const)(
  "an API that is away for too long, and then comes back: what was touched is rolled back (first: %s)",
  async (first) => {
    await atEachStep(async (rig, step) => {
      atStep(rig, step, () => {
        lose(rig);
        return { [first]: true };
      });
      rig.onEvent = ({ event }) => event === "failure" && find(rig);
      const outcome = await rig.upgrade({}, undefined, hasty).catch((error: unknown) => error as Error);
      find(rig);
      const isLate = !(outcome instanceof Error) && outcome.kind === "upgraded";
      // All that was left to do was to take away what says that it was begun.
      if (isLate) return await goOn(rig);
      const message = outcome instanceof Error ? outcome.message : (failureOf(outcome)?.message ?? "");
      expect(message).toMatch(/the cluster's API was lost for 1 s/);
      // Nothing but its lock was there, of which it has not heard.
      if (outcome instanceof Error) return await goOn(rig);
      expect(outcome.kind).toBe("rolled back");
      expectBack(rig);
    });
  },
);

test("an API that stays away, or an end of the process: the same command goes on", async () => {
  await atEachStep(async (rig, step) => {
    atStep(rig, step, () => lose(rig));
    const outcome = await rig.upgrade({}, undefined, hasty).catch((error: unknown) => error as Error);
    find(rig);
    if (!(outcome instanceof Error) && outcome.kind === "left")
      expect(outcome.left.length).toBeGreaterThan(0);
    // Whose lock it was is not there any more, and does not renew it.
    await goOn(rig);
  });
});

test("an API that stays away: a command with the former images goes back", async () => {
  await atEachStep(async (rig, step) => {
    atStep(rig, step, () => lose(rig));
    await rig.upgrade({}, undefined, hasty).catch((error: unknown) => error as Error);
    find(rig);
    const outcome = await rig.upgrade({ images: { app: "app:1" } });
    expect(outcome.kind).toBe("upgraded");
    expectBack(rig);
  });
});

test("an interruption: what was touched is rolled back", async () => {
  await atEachStep(async (rig, step) => {
    const interrupt = new AbortController();
    atStep(rig, step, () => {
      interrupt.abort();
      return undefined;
    });
    const outcome = await rig.upgrade({}, interrupt.signal).catch((error: unknown) => error as Error);
    if (outcome instanceof Error) expect(outcome).toMatchObject({ code: "cancelled" });
    else if (outcome.kind === "upgraded") return await goOn(rig);
    else expect([outcome.kind, outcome.failure.code]).toEqual(["rolled back", "cancelled"]);
    expectBack(rig);
  });
});

test("another process that has taken the lock: nothing is touched any more", async () => {
  await atEachStep(async (rig, step) => {
    const lockMs = 200;
    let taken = 0;
    atStep(rig, step, () => {
      // Nothing of ours gets through for longer than the lock is good for.
      const stopped = new Promise<void>((resolve) => {
        setTimeout(resolve, 2 * lockMs);
      }).then(() => {
        rig.api.behave = () => undefined;
        const [lease] = rig.api.list(leases);
        if (lease === undefined) return;
        const { spec } = lease as unknown as { readonly spec: object };
        rig.api.put(leases, { ...lease, spec: { ...spec, holderIdentity: "another" } });
        taken = rig.api.requests.length;
      });
      rig.api.behave = ({ identity }) => (identity === "operator" ? { hold: stopped } : undefined);
      return { hold: stopped };
    });
    const outcome = await rig
      .upgrade({}, undefined, { ...quick, lockMs })
      .catch((error: unknown) => error as Error);
    if (taken === 0) return;
    expect(rig.api.list(leases)[0]?.["spec"]).toMatchObject({ holderIdentity: "another" });
    const changes = rig.api.requests.slice(taken).filter((request) => rig.isChange(request));
    expect(changes.filter(({ path }) => !path.includes("/leases/"))).toEqual([]);
    if (outcome instanceof Error) expect(outcome).toMatchObject({ code: "conflict" });
    else if (outcome.kind !== "upgraded")
      expect(outcome).toMatchObject({ kind: "left", failure: { code: "conflict" } });
  });
});

async function goOn(rig: Rig): Promise<void> {
  expectUpgraded(rig, await rig.upgrade());
}

function failureOf(outcome: Outcome): PullError | undefined {
  return outcome.kind === "upgraded" ? undefined : outcome.failure;
}
