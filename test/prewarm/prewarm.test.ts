// The pre-warm engine between a clock that a test turns, holds in memory, and fetches that a test lets end.

import { expect, test } from "vitest";
import type { Hold, Holdable, Holds } from "../../src/containerd/containerd.ts";
import { PullError } from "../../src/errors.ts";
import { type Digest, sha256 } from "../../src/oci/digest.ts";
import { type Fetched, Prewarm, type PrewarmLimits } from "../../src/prewarm/prewarm.ts";
import { settle, TestClock } from "../fakes/clock.ts";

const minute = 60_000;
const list = { priority: 2, isUrgent: false };
const command = { priority: 1, isUrgent: false };
const pod = { priority: 0, isUrgent: true };
const limits: PrewarmLimits = { concurrentMax: 2, refreshMs: 60 * minute, keepMs: 24 * 60 * minute };

class MemoryHolds implements Holds {
  readonly all = new Map<string, { readonly hold: Hold; readonly lifeMs: number }>();
  failure: PullError | undefined;
  #count = 0;

  async make(name: string, { target, bytes }: Holdable, lifeMs: number): Promise<Hold> {
    this.#count += 1;
    const hold = { id: `hold ${this.#count}`, name, target, bytes };
    this.all.set(hold.id, { hold, lifeMs });
    return hold;
  }

  async renew(hold: Hold, lifeMs: number): Promise<Hold | undefined> {
    if (!this.all.delete(hold.id)) return undefined;
    return await this.make(hold.name, { ...hold, contents: [], chainID: undefined }, lifeMs);
  }

  async release({ id }: Hold): Promise<void> {
    this.all.delete(id);
  }

  async list(): Promise<readonly Hold[]> {
    if (this.failure) throw this.failure;
    return Array.from(this.all.values(), ({ hold }) => hold);
  }
}

interface Fetch {
  readonly name: string;
  readonly isKnown: boolean;
  readonly signal: AbortSignal;
  readonly end: (outcome: Fetched) => void;
}

function contentOf(text: string): Fetched {
  const held = { target: sha256(Buffer.from(text)), contents: [] as Digest[], chainID: undefined, bytes: 7 };
  return { failure: undefined, held, [Symbol.asyncDispose]: async () => {} };
}

function failing(failure: PullError): Fetched {
  return { failure, [Symbol.asyncDispose]: async () => {} };
}

class Stage {
  readonly clock = new TestClock();
  readonly holds: MemoryHolds;
  readonly fetches: Fetch[] = [];
  readonly told: string[] = [];
  readonly prewarm: Prewarm;
  isFull = false;
  readonly listed = new Set<string>();

  constructor(holds = new MemoryHolds()) {
    this.holds = holds;
    this.prewarm = new Prewarm({
      holds,
      limits,
      clock: this.clock,
      isFull: async () => this.isFull,
      isListed: async (name) => this.listed.has(name),
      fetch: async (name, { isKnown }, signal) =>
        await new Promise((resolve) => {
          signal.addEventListener("abort", () => resolve(failing(new PullError("cancelled", "cancelled"))));
          this.fetches.push({ name, isKnown, signal, end: resolve });
        }),
      events: {
        done: (name, outcome) =>
          this.told.push(`${name} ${"code" in outcome ? outcome.code : outcome.isNew}`),
        dropped: (name, why) => this.told.push(`${name} ${why}`),
        changed: () => {},
      },
    });
  }

  async open(): Promise<void> {
    await this.prewarm.open();
    await settle();
  }

  /** The fetch of this image, which must be under way, ends. */
  async end(name: string, outcome: Fetched): Promise<void> {
    const index = this.fetches.findIndex((one) => one.name === name);
    const [fetch] = this.fetches.splice(index, index === -1 ? 0 : 1);
    if (fetch === undefined) throw new Error(`${name} is not being fetched`);
    fetch.end(outcome);
    await settle();
  }

  get underWay(): string[] {
    return this.fetches.filter(({ signal }) => !signal.aborted).map(({ name }) => name);
  }

  get states(): string[] {
    return this.prewarm.entries.map(({ name, condition }) => `${name} ${condition.kind}`);
  }
}

const [a, b, c] = ["example.com/a:1", "example.com/b:1", "example.com/c:1"] as const;

test("images are fetched so many at once, the more urgent first, and are then warm and held", async () => {
  const stage = new Stage();
  stage.prewarm.want(a, "config", list);
  stage.prewarm.want(b, "config", list);
  stage.prewarm.want(c, "command", command);
  expect(stage.underWay).toEqual([]);
  await stage.open();
  expect(stage.underWay).toEqual([c, a]);
  await stage.end(c, contentOf("c"));
  expect(stage.underWay).toEqual([a, b]);
  expect([...stage.holds.all.values()]).toEqual([
    { hold: { id: "hold 1", name: c, target: sha256(Buffer.from("c")), bytes: 7 }, lifeMs: 27 * 60 * minute },
  ]);
  expect(stage.states).toEqual([`${a} wanted`, `${b} wanted`, `${c} warm`]);
  expect(stage.told).toEqual([`${c} true`]);
});

test("what is not to be had for now is tried again with growing pauses, anything else with the next refresh", async () => {
  const stage = new Stage();
  stage.prewarm.want(a, "config", list);
  await stage.open();
  await stage.end(a, failing(new PullError("unavailable", "no answer", { temporary: true })));
  expect(stage.states).toEqual([`${a} failed`]);
  await stage.clock.pass(4_999);
  expect(stage.underWay).toEqual([]);
  await stage.clock.pass(1);
  await stage.end(a, failing(new PullError("unavailable", "no answer", { temporary: true })));
  await stage.clock.pass(9_999);
  expect(stage.underWay).toEqual([]);
  await stage.clock.pass(1);
  await stage.end(a, failing(new PullError("not_found", "no such image")));
  await stage.clock.pass(60 * minute - 1);
  expect(stage.underWay).toEqual([]);
  await stage.clock.pass(1);
  await stage.end(a, contentOf("a"));
  expect(stage.states).toEqual([`${a} warm`]);
});

test("what a pod is about to ask for is tried again soon, whatever it was that failed", async () => {
  const stage = new Stage();
  stage.prewarm.want(a, "pod", pod);
  await stage.open();
  await stage.end(a, failing(new PullError("refused", "no basic auth credentials")));
  await stage.clock.pass(5_000);
  expect(stage.underWay).toEqual([a]);
});

test("a warm image is looked at again, and what its tag stands for then takes the place of what it was", async () => {
  const stage = new Stage();
  stage.prewarm.want(a, "config", list);
  await stage.open();
  await stage.end(a, contentOf("old"));
  await stage.clock.pass(60 * minute);
  expect(stage.fetches.map(({ isKnown }) => isKnown)).toEqual([true]);
  await stage.end(a, contentOf("old"));
  await stage.clock.pass(60 * minute);
  await stage.end(a, contentOf("new"));
  expect(Array.from(stage.holds.all.values(), ({ hold }) => hold.target)).toEqual([
    sha256(Buffer.from("new")),
  ]);
  expect(stage.told).toEqual([`${a} true`, `${a} false`, `${a} true`]);
});

test("a registry that does not answer costs a warm image nothing", async () => {
  const stage = new Stage();
  stage.prewarm.want(a, "config", list);
  await stage.open();
  await stage.end(a, contentOf("a"));
  await stage.clock.pass(60 * minute);
  await stage.end(a, failing(new PullError("unavailable", "no answer", { temporary: true })));
  expect(stage.states).toEqual([`${a} warm`]);
  expect(stage.holds.all.size).toBe(1);
  expect(stage.prewarm.entries[0]?.trouble?.message).toBe("no answer");
  await stage.clock.pass(5_000);
  await stage.end(a, contentOf("a"));
  expect(stage.prewarm.entries[0]?.trouble).toBeUndefined();
});

test("an image whose hold has ended, and that cannot be had, is not called warm", async () => {
  const stage = new Stage();
  stage.prewarm.want(a, "config", list);
  await stage.open();
  await stage.end(a, contentOf("a"));
  stage.holds.all.clear();
  await stage.clock.pass(60 * minute);
  await stage.end(a, failing(new PullError("unavailable", "no answer", { temporary: true })));
  expect(stage.states).toEqual([`${a} failed`]);
});

test("an image that nobody wants any more is not fetched on, and one that is warm stays for a while", async () => {
  const stage = new Stage();
  for (const name of [a, b]) stage.prewarm.want(name, "config", list);
  stage.prewarm.want(b, "command", command);
  await stage.open();
  await stage.end(b, contentOf("b"));
  stage.prewarm.unwant(a, "config");
  await settle();
  expect(stage.states).toEqual([`${b} warm`]);
  expect(stage.underWay).toEqual([]);
  stage.prewarm.unwant(b, "config");
  await stage.clock.pass(25 * 60 * minute);
  expect(stage.holds.all.size).toBe(1);
  stage.prewarm.unwant(b, "command");
  await stage.clock.pass(24 * 60 * minute - 1);
  expect(stage.holds.all.size).toBe(1);
  await stage.clock.pass(1);
  expect(stage.holds.all.size).toBe(0);
  expect(stage.states).toEqual([]);
  expect(stage.told.at(-1)).toBe(`${b} unwanted`);
});

test("what a pod has come to use is held no more once nobody wants it ahead of need", async () => {
  const stage = new Stage();
  for (const name of [a, b]) stage.prewarm.want(name, "pod", pod);
  await stage.open();
  for (const name of [a, b]) await stage.end(name, contentOf(name));
  stage.listed.add(a);
  for (const name of [a, b]) stage.prewarm.unwant(name, "pod");
  await settle();
  expect(stage.states).toEqual([`${b} warm`]);
  expect(Array.from(stage.holds.all.values(), ({ hold }) => hold.name)).toEqual([b]);
  expect(stage.told.at(-1)).toBe(`${a} listed`);
});

test("what an earlier process held is warm, is looked at, and goes in time if nobody wants it", async () => {
  const holds = new MemoryHolds();
  const former = new Stage(holds);
  for (const name of [a, b]) former.prewarm.want(name, "config", list);
  await former.open();
  await former.end(a, contentOf("a"));
  await former.end(b, contentOf("b"));
  await former.prewarm.close();
  const stage = new Stage(holds);
  stage.prewarm.want(a, "config", list);
  holds.failure = new PullError("unavailable", "containerd is away");
  await expect(stage.open()).rejects.toThrow("away");
  holds.failure = undefined;
  await stage.open();
  expect(stage.states).toEqual([`${a} warm`, `${b} warm`]);
  expect(stage.fetches.map(({ name, isKnown }) => [name, isKnown])).toEqual([[a, true]]);
  await stage.end(a, contentOf("a"));
  await stage.clock.pass(24 * 60 * minute);
  expect(Array.from(holds.all.values(), ({ hold }) => hold.name)).toEqual([a]);
});

test("on a disk that fills up nothing is fetched, and warm images go one by one, those first that nobody wants", async () => {
  const stage = new Stage();
  for (const name of [a, b]) stage.prewarm.want(name, "config", list);
  await stage.open();
  await stage.end(a, contentOf("a"));
  await stage.clock.pass(1);
  await stage.end(b, contentOf("b"));
  stage.prewarm.unwant(b, "config");
  stage.prewarm.want(c, "config", list);
  await settle();
  expect(stage.underWay).toEqual([c]);
  stage.isFull = true;
  await stage.clock.pass(15_000);
  expect(stage.underWay).toEqual([]);
  expect(stage.states).toEqual([`${a} warm`, `${c} wanted`]);
  await stage.clock.pass(15_000);
  expect(stage.states).toEqual([`${a} wanted`, `${c} wanted`]);
  expect(stage.told.slice(2)).toEqual([`${b} disk`, `${a} disk`]);
  stage.fetches.length = 0;
  stage.isFull = false;
  await stage.clock.pass(15_000);
  expect(stage.underWay).toEqual([c]);
});

test("a source's images are exactly those that it names, and what is no reference is left out", async () => {
  const stage = new Stage();
  const refused = stage.prewarm.replace("directory", ["busybox", "BAD", a], list);
  expect(Array.from(refused, ([reference, { code }]) => [reference, code])).toEqual([["BAD", "invalid"]]);
  stage.prewarm.replace("directory", [a], list);
  await stage.open();
  expect(stage.states).toEqual([`${a} wanted`]);
  expect(() => stage.prewarm.want("BAD", "command", command)).toThrow("not an image reference");
});

test("closing ends what goes on, and leaves what is warm", async () => {
  const stage = new Stage();
  for (const name of [a, b]) stage.prewarm.want(name, "config", list);
  await stage.open();
  await stage.end(a, contentOf("a"));
  await stage.prewarm.close();
  expect(stage.underWay).toEqual([]);
  expect(stage.holds.all.size).toBe(1);
  stage.prewarm.want(c, "config", list);
  await settle();
  expect(stage.underWay).toEqual([]);
});

test("of images of one priority those come first that are needed soonest", async () => {
  const stage = new Stage();
  const now = stage.clock.now();
  stage.prewarm.want(a, "command", command);
  stage.prewarm.want(b, "command", { ...command, deadlineMs: now + 2 * minute });
  stage.prewarm.want(c, "command", { ...command, deadlineMs: now + minute });
  await stage.open();
  expect(stage.underWay).toEqual([c, b]);
});

test("what is not here by its deadline is given up, broken off, and tried again only when it is asked for anew", async () => {
  const stage = new Stage();
  const deadlineMs = stage.clock.now() + minute;
  stage.prewarm.want(a, "command", { ...command, deadlineMs });
  stage.prewarm.want(b, "command", { ...command, deadlineMs });
  await stage.open();
  await stage.end(b, failing(new PullError("unavailable", "no answer", { temporary: true })));
  await stage.clock.pass(5_000);
  expect(stage.underWay).toEqual([a, b]);
  await stage.clock.pass(minute - 5_001);
  expect(stage.underWay).toEqual([a, b]);
  await stage.clock.pass(1);
  expect(stage.underWay).toEqual([]);
  const failures = stage.prewarm.entries.map(({ condition }) =>
    condition.kind === "failed" ? condition.failure : undefined,
  );
  expect(failures).toEqual([
    { code: "slow", message: "not here by its deadline", isTemporary: false, times: 0 },
    { code: "slow", message: "not here by its deadline: no answer", isTemporary: false, times: 1 },
  ]);
  stage.fetches.length = 0;
  await stage.clock.pass(20 * 60 * minute);
  expect(stage.underWay).toEqual([]);
  stage.prewarm.want(a, "command", command);
  stage.prewarm.hasten(a);
  await settle();
  expect(stage.underWay).toEqual([a]);
  await stage.end(a, contentOf("a"));
  expect(stage.states).toEqual([`${a} warm`, `${b} failed`]);
});

test("a deadline is kept to the moment also where others wait for a place, and what is long past one is forgotten", async () => {
  const stage = new Stage();
  const deadlineMs = stage.clock.now() + 4_000;
  for (const name of [a, b]) stage.prewarm.want(name, "config", { ...list, priority: 0 });
  stage.prewarm.want(c, "command", { ...command, deadlineMs });
  await stage.open();
  expect(stage.underWay).toEqual([a, b]);
  await stage.clock.pass(4_000);
  expect(stage.states).toEqual([`${a} wanted`, `${b} wanted`, `${c} failed`]);
  await stage.clock.pass(24 * 60 * minute);
  expect(stage.states).toEqual([`${a} wanted`, `${b} wanted`]);
});

test("a deadline is over for nobody who has none, and takes nothing away that is here", async () => {
  const stage = new Stage();
  const deadlineMs = stage.clock.now() + minute;
  stage.prewarm.want(a, "command", { ...command, deadlineMs });
  stage.prewarm.want(a, "config", list);
  stage.prewarm.want(b, "command", { ...command, deadlineMs });
  await stage.open();
  await stage.end(b, contentOf("b"));
  await stage.clock.pass(2 * minute);
  expect(stage.underWay).toEqual([a]);
  expect(stage.states).toEqual([`${a} wanted`, `${b} warm`]);
});

test("an image that was listed is held by its record, and is nothing that a full disk could be helped by", async () => {
  const stage = new Stage();
  stage.prewarm.want(a, "config", list);
  await stage.open();
  const listed = { failure: undefined, registered: {}, [Symbol.asyncDispose]: async () => {} };
  await stage.end(a, listed);
  expect(stage.told).toEqual([`${a} true`]);
  expect(stage.holds.all.size).toBe(0);
  stage.isFull = true;
  await stage.clock.pass(minute);
  expect(stage.states).toEqual([`${a} warm`]);
  stage.isFull = false;
  await stage.clock.pass(60 * minute);
  await stage.end(a, listed);
  expect(stage.told).toEqual([`${a} true`, `${a} false`]);
});

test("who asks anew gets an attempt that begins after that, and knows its outcome by its number", async () => {
  const stage = new Stage();
  stage.prewarm.want(a, "pod", pod);
  await stage.open();
  const { known } = stage.prewarm;
  const before = known.attempts;
  stage.prewarm.hasten(a, true);
  await stage.end(a, contentOf("old"));
  expect(known.get(a)).toMatchObject({ endedAttempt: before, goodAttempt: before });
  expect(stage.underWay).toEqual([a]);
  await stage.end(a, failing(new PullError("not_found", "no such tag")));
  expect(known.get(a)).toMatchObject({ endedAttempt: before + 1, goodAttempt: before });
  // Once.
  expect(stage.underWay).toEqual([]);
  await stage.clock.pass(5_000);
  stage.isFull = true;
  await stage.clock.pass(15_000);
  expect(known.attempts).toBe(before + 2);
  expect(known.get(a)).toMatchObject({ endedAttempt: before + 1, busySinceMs: undefined });
});

test("of more images than a node keeps account of the rest is refused, and there is room again for those of another list", async () => {
  const stage = new Stage();
  const names = (word: string): string[] =>
    Array.from({ length: 5_001 }, (_, nth) => `example.com/${word}:${nth}`);
  const refused = stage.prewarm.replace("directory", names("former"), list);
  expect(Array.from(refused, ([reference, { code }]) => [reference, code])).toEqual([
    ["example.com/former:5000", "exhausted"],
  ]);
  expect(() => stage.prewarm.want(a, "command", command)).toThrow("no more images");
  expect(stage.prewarm.replace("directory", names("latter").slice(1), list).size).toBe(0);
});
