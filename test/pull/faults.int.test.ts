// A status instead of an answer, at every step of a pull that containerd is asked for: the pull is whole, or fails in
// a way that lets containerd be asked, and nothing of it is left.
//
// The steps are those that a pull without faults takes, one by one; a Write counts message by message, so that it
// fails after STAT, between its data and at COMMIT.

import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { PullError } from "../../src/errors.ts";
import { eventually } from "../harness/process.ts";
import { Rig } from "./rig.ts";
import { type Pullable, type Scene, scenes } from "./scenes.ts";
import { answered, faults, nameOf, type Strike, strikeOf, strikesAt } from "./strikes.ts";

// Hundreds of pulls, on a machine that may have other work.
vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

interface Outcome {
  readonly image: Pullable;
  readonly failure: PullError | undefined;
  readonly isRegistered: boolean;
  /** Steps of the pull and of all that followed. */
  readonly steps: readonly string[];
  /** How often the strikes struck. */
  readonly struck: number;
}

/** A pull from its setting to the end of what follows it. */
async function pullUnder(rig: Rig, scene: Scene, ...strikes: readonly Strike[]): Promise<Outcome> {
  const what = strikes.map(nameOf).join(" and ");
  const { serving } = rig.fake;
  const image = await scene.set(rig);
  const began = serving.steps.length;
  const warned = rig.warnings.length;
  rig.anotherLetsGo();
  const struck = strikeOf(strikes);
  serving.fault = (step) => {
    scene.meddle?.(rig, step);
    return struck.fault(step);
  };
  const pulled = await rig.pull(image);
  rig.anotherLetsGo();
  if (pulled.failure === undefined) {
    expect(rig.lacks(image), `${what}: missing or not held`).toEqual([]);
    // Where we have made them, records and labels are left as we made them.
    if (!pulled.registered) rig.register(image);
  } else {
    mustBeDelegable(pulled.failure, what);
  }
  await pulled[Symbol.asyncDispose]();
  await rig.puller.settle();
  rig.anotherLetsGo();
  serving.fault = () => undefined;
  await nothingLeft(rig, what);
  const steps = serving.steps.slice(began);
  if (pulled.failure === undefined) {
    expect(rig.lacks(image), `${what}: lost`).toEqual([]);
    const warnings = rig.warnings.slice(warned);
    if (warnings.length === 0) expect(rig.notKept(image), `${what}: not kept`).toEqual([]);
    // What is unavailable now is so for a while only.
    else expect(strikes.map(({ fault }) => fault.code)).not.toContain(status.UNAVAILABLE);
  }
  const isRegistered = pulled.registered !== undefined;
  return { image, failure: pulled.failure, isRegistered, steps, struck: struck.count() };
}

/** Adoptions that had to wait, and the collection of what a lease held, are over a little later. */
async function nothingLeft(rig: Rig, what: string): Promise<void> {
  await eventually(async () => {
    rig.fake.metadata.collect();
    expect(rig.leftovers(), `${what}: left behind`).toEqual([]);
  }, "the end of what follows a pull");
}

function mustBeDelegable(failure: PullError, what: string): void {
  expect(failure, what).toBeInstanceOf(PullError);
  expect(failure.message, what).toMatch(/^containerd's |is collected as fast as it is/);
  // These two are answered by Hawser itself (cri/images.ts).
  expect(["cancelled", "refused"], `${what}: ${failure.message}`).not.toContain(failure.code);
}

/** The same image once more, with nothing in its way. */
async function pullAgain(rig: Rig, { image }: Outcome, what: string): Promise<void> {
  await rig.mustPull(image);
  expect(rig.lacks(image), `${what}: the next pull`).toEqual([]);
  await nothingLeft(rig, `${what}: the next pull`);
}

/** What only clears up: its failure costs the pull nothing. */
const harmless = new Set(["Snapshots/Remove", "Content/Abort", "Leases/Delete"]);

/** Every step that a pull may take, so that scenes which cover less than they seem to are noticed. */
const everyStep = [
  "Content/Abort",
  "Content/Info",
  "Content/Update",
  "Content/Write COMMIT",
  "Content/Write STAT",
  "Content/Write WRITE",
  "ImageService/ImageStatus",
  "Images/Create",
  "Images/Delete",
  "Images/Get",
  "Leases/AddResource",
  "Leases/Create",
  "Leases/Delete",
  // These two are of the sweep that goes with an adoption that had to wait.
  "Leases/List",
  "Namespaces/List",
  "Snapshots/Commit",
  "Snapshots/Prepare",
  "Snapshots/Remove",
  "Snapshots/Stat",
];

const taken = new Set<string>();

describe.each(scenes)("$name", (scene) => {
  let rig: Rig;
  /** Of a pull without faults. */
  let steps: readonly string[];

  beforeAll(async () => {
    rig = await Rig.open({ isolated: scene.isolated ?? false, direct: scene.direct ?? false });
    const outcome = await pullUnder(rig, scene);
    expect(outcome.isRegistered).toBe(scene.direct ?? false);
    expect(outcome.failure).toBeUndefined();
    ({ steps } = outcome);
    expect(steps.length).toBeGreaterThan(10);
  });

  afterAll(async () => {
    await rig[Symbol.asyncDispose]();
  });

  /** And the next pull of the image is whole. */
  async function mustEnd(...strikes: readonly Strike[]): Promise<Outcome> {
    const outcome = await pullUnder(rig, scene, ...strikes);
    expect(outcome.struck, strikes.map(nameOf).join(" and ")).toBeGreaterThan(0);
    if (outcome.failure) await pullAgain(rig, outcome, strikes.map(nameOf).join(" and "));
    return outcome;
  }

  /** What clears up behind a failure fails as well: the reason that is told is still the first one. */
  async function mustTellFirst(strike: Strike, alone: Outcome): Promise<number> {
    const clearing = new Set(alone.steps.filter((step) => !steps.includes(step)));
    for (const step of clearing) {
      const second = { step, which: "all", fault: { ...strike.fault, code: status.ALREADY_EXISTS } } as const;
      const outcome = await mustEnd(strike, second);
      expect(outcome.failure?.message, nameOf(strike)).toBe(alone.failure?.message);
    }
    return clearing.size;
  }

  test.each(faults.map((fault) => [answered(fault), fault] as const))(
    "%s, once at each step, and always where it comes more than once",
    async (_, fault) => {
      const met = new Set<string>();
      for (const strike of strikesAt(steps, fault, scene.from)) {
        const { step } = strike;
        const outcome = await mustEnd(strike);
        expect(outcome.struck, nameOf(strike)).toBe(1);
        if (harmless.has(step)) expect(outcome.failure, nameOf(strike)).toBeUndefined();
        for (const one of outcome.steps) taken.add(one);
        const comesAgain = outcome.steps.filter((one) => one === step).length > 1;
        // A lease that can never be deleted has a test of its own (held.test.ts).
        if (comesAgain && fault.moment === "before" && step !== "Leases/Delete" && !met.has(step))
          await mustEnd({ ...strike, which: "all" });
        met.add(step);
      }
    },
  );

  test("and what then clears up fails as well: the reason that is told is the first one", async () => {
    const fault = { code: status.UNAVAILABLE, moment: "before" } as const;
    const strikes = strikesAt(steps, fault, scene.from);
    let pairs = 0;
    for (const step of new Set(strikes.map((strike) => strike.step))) {
      const strike = { step, which: 1, fault };
      pairs += await mustTellFirst(strike, await mustEnd(strike));
    }
    expect(pairs).toBeGreaterThan(0);
  });
});

test("every step that a pull may take was taken", () => {
  expect([...taken].sort()).toEqual(everyStep);
});
