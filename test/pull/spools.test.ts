// Spools: what a broken-off pull left is gone on with, within bounds of size and age, and nothing else stays.

import { mkdir, mkdtemp, readdir, readFile, rename, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { sha256 } from "../../src/oci/digest.ts";
import { type HeldSpool, Spools } from "../../src/pull/spools.ts";
import { Spans } from "../../src/trace.ts";

const isThere = async (image: string): Promise<boolean> => image === "there";
const never = new AbortController().signal;
const hour = 3_600_000;

let root = "";
let opened: Spools[] = [];
const taken: HeldSpool[] = [];
let seen = { live: 0, parked: 0 };

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "spools-"));
  opened = [];
});

afterEach(async () => {
  for (const held of taken.splice(0)) await held.discard().catch(() => {});
  for (const spools of opened) await spools[Symbol.asyncDispose]();
  await rm(root, { recursive: true });
});

async function open(name = "own", bytesMax = 1000, ageMaxMs = hour): Promise<Spools> {
  const changed = (bytes: typeof seen): void => {
    seen = bytes;
  };
  const limits = { bytesMax, ageMaxMs };
  const spools = await Spools.open({ folder: join(root, name), limits, deferred: () => {}, changed });
  opened.push(spools);
  return spools;
}

const blob = (name: string, size = 100) => ({ mediaType: "any", digest: sha256(name), size });

async function take(spools: Spools, name: string, size = 100): Promise<HeldSpool> {
  const held = await spools.take(blob(name, size), 0, new Spans(), never);
  taken.push(held);
  return held;
}

async function park(spools: Spools, name: string, bytes: number): Promise<void> {
  const held = await take(spools, name);
  held.spool.write(0, Buffer.alloc(bytes, name));
  await held.park();
}

/** Where the blob is parked. */
async function parkedAt(folder: string, name: string): Promise<string> {
  const hex = sha256(name).slice("sha256:".length);
  const found = (await readdir(folder)).find((one) => one.startsWith(hex) && !one.endsWith(".journal"));
  return join(folder, found ?? "nowhere");
}

/** Files below the root, without the digests' tails. */
async function files(): Promise<string[]> {
  const all = await readdir(root, { recursive: true, withFileTypes: true });
  return all
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(root.length + 1));
}

test("a parked spool is gone on with, byte for byte", async () => {
  const spools = await open();
  const first = await take(spools, "a");
  expect(first.isResumed).toBe(false);
  first.spool.write(60, Buffer.alloc(40, "z"));
  first.spool.write(0, Buffer.alloc(10, "a"));
  await first.park();
  const second = await take(spools, "a");
  expect(second.isResumed).toBe(true);
  expect(second.spool.watermark).toBe(10);
  expect(second.spool.missing()).toEqual([{ start: 10, end: 60 }]);
  second.spool.write(10, Buffer.alloc(50, "m"));
  second.spool.complete();
  const bytes = await readFile(second.spool.view.path, "latin1");
  expect(bytes).toBe("a".repeat(10) + "m".repeat(50) + "z".repeat(40));
  await second.discard();
  expect(await files()).toEqual([]);
  expect(seen).toEqual({ live: 0, parked: 0 });
});

test("nothing written is nothing parked, and a claim of another size starts anew", async () => {
  const spools = await open();
  await (await take(spools, "a")).park();
  expect(await files()).toEqual([]);
  await park(spools, "a", 10);
  const held = await take(spools, "a", 90);
  expect(held.isResumed).toBe(false);
  await held.discard();
});

test("live and parked spools together stay below the maximum: the oldest parked ones go first", async () => {
  const spools = await open("own", 200);
  await park(spools, "a", 60);
  await park(spools, "b", 50);
  expect(seen).toEqual({ live: 0, parked: 110 });
  await park(spools, "c", 45);
  expect(seen).toEqual({ live: 0, parked: 95 });
  const b = await take(spools, "b");
  expect(b.isResumed).toBe(true);
  expect(seen).toEqual({ live: 100, parked: 45 });
  await b.discard();
  expect((await take(spools, "a")).isResumed).toBe(false);
});

test("a blob that can never fit is refused, and one that does not fit now waits", async () => {
  const spools = await open("own", 150);
  await expect(take(spools, "huge", 151)).rejects.toMatchObject({
    code: "exhausted",
    message: expect.stringContaining("over content.spool_max_size (150)"),
  });
  const a = await take(spools, "a");
  const b = take(spools, "b");
  await a.discard();
  await (await b).discard();
  expect(seen.live).toBe(0);
});

test("parked spools go when they are too old", async () => {
  const spools = await open("own", 1000, 0);
  await park(spools, "a", 10);
  await spools.tidy();
  expect(await files()).toEqual([]);
  expect(seen.parked).toBe(0);
});

test("a clock that is set back makes nothing stay for longer than it may", async () => {
  const spools = await open();
  const now = Date.now();
  try {
    vi.setSystemTime(now + 100 * hour);
    await park(spools, "a", 10);
    vi.setSystemTime(now);
    await spools.tidy();
    expect(seen.parked).toBe(10);
    vi.setSystemTime(now + hour);
    await spools.tidy();
    expect(seen.parked).toBe(0);
  } finally {
    vi.useRealTimers();
  }
});

test("what cannot be parked can be discarded", async () => {
  const spools = await open();
  const held = await take(spools, "a");
  held.spool.write(0, Buffer.alloc(10));
  await rm(join(root, "own/parked"), { recursive: true });
  await expect(held.park()).rejects.toThrow(/ENOENT/);
  await held.discard();
  expect(await files()).toEqual([]);
  expect(seen).toEqual({ live: 0, parked: 0 });
});

test("what is parked of a blob counts for its own size alone, and stays when everything else is dropped", async () => {
  const spools = await open();
  await park(spools, "a", 60);
  await park(spools, "b", 40);
  expect([
    spools.presentBytes(blob("a")),
    spools.presentBytes(blob("a", 99)),
    spools.presentBytes(blob("c")),
  ]).toEqual([60, 0, 0]);
  expect(await spools.dropAllBut(new Set([blob("a").digest]))).toBe(true);
  expect([spools.presentBytes(blob("a")), spools.presentBytes(blob("b"))]).toEqual([60, 0]);
  expect(await spools.dropAllBut(new Set([blob("a").digest]))).toBe(false);
});

test("what a dead instance left is taken over: ranges to go on with, adoptions to finish, nothing else", async () => {
  const dead = await open("dead");
  await park(dead, "parked", 30);
  const live = await take(dead, "live");
  live.spool.write(20, Buffer.alloc(1, "x"));
  const kept = await take(dead, "kept");
  kept.spool.write(0, Buffer.alloc(100, "k"));
  kept.keep({ image: "there", labels: { label: "value" } });
  const vain = await take(dead, "vain");
  vain.spool.write(0, Buffer.alloc(100, "v"));
  vain.keep({ image: "not there", labels: {} });
  await vain.spool.close();
  // Closed without an end, as far as the files are concerned: what a crash leaves.
  await live.spool.close();
  await kept.spool.close();
  await writeFile(join(root, "dead/stranger"), "");
  await writeFile(join(root, "dead/torn.journal"), "{");
  const own = await open("own");
  await rename(join(root, "dead"), join(root, "own/inherited-dead"));
  const pending = await own.inherit(join(root, "own/inherited-dead"), isThere);
  expect(pending).toEqual([
    {
      descriptor: { mediaType: "application/octet-stream", digest: sha256("kept"), size: 100 },
      file: expect.stringContaining("own/inherited-dead/"),
      keep: { image: "there", labels: { label: "value" } },
    },
  ]);
  const names = (await files()).map((name) => name.replace(/[0-9a-f]{62}/, ""));
  expect(names.filter((name) => !/parked/.test(name)).length).toBe(2);
  expect(names.join()).not.toMatch(/stranger|torn/);
  const resumed = await take(own, "parked");
  expect(resumed.spool.written).toEqual([{ start: 0, end: 30 }]);
  await resumed.discard();
  expect((await take(own, "vain")).spool.missing()).toEqual([]);
});

test("a whole blob that lies elsewhere is gone on with, and left as it is", async () => {
  const spools = await open();
  const theirs = join(root, "theirs");
  await writeFile(theirs, Buffer.alloc(100, "t"));
  await spools.borrow(blob("theirs"), theirs);
  await spools.borrow(blob("of another size", 99), theirs);
  await spools.borrow(blob("not there"), join(root, "nowhere"));
  expect(["theirs", "of another size", "not there"].map((name) => spools.isParked(sha256(name)))).toEqual([
    true,
    false,
    false,
  ]);
  expect(await files()).toHaveLength(3);
  const held = await take(spools, "theirs");
  expect(held.isResumed).toBe(true);
  expect(held.spool.missing()).toEqual([]);
  expect(await readFile(held.spool.view.path, "utf8")).toBe("t".repeat(100));
  await held.discard();
  expect(await files()).toEqual(["theirs"]);
  expect(await readFile(theirs, "utf8")).toBe("t".repeat(100));
});

test("ranges that the file cannot have, and those of another boot, are not believed", async () => {
  const dead = await open("dead");
  await park(dead, "short", 30);
  await park(dead, "rebooted", 30);
  const parked = join(root, "dead/parked");
  const [one, two] = [await parkedAt(parked, "short"), await parkedAt(parked, "rebooted")];
  await writeFile(one, "only a few");
  const journal = await readFile(`${two}.journal`, "utf8");
  await writeFile(`${two}.journal`, journal.replace(/"boot":"[^"]+"/, '"boot":"another"'));
  const own = await open("own");
  await mkdir(join(root, "own"), { recursive: true });
  await rename(join(root, "dead"), join(root, "own/inherited-dead"));
  expect(await own.inherit(join(root, "own/inherited-dead"), isThere)).toEqual([]);
  expect(await files()).toEqual([]);
  expect((await take(own, "short")).isResumed).toBe(false);
});

test("the age of a parked spool is counted across instances", async () => {
  const dead = await open("dead");
  await park(dead, "old", 30);
  const file = await parkedAt(join(root, "dead/parked"), "old");
  const before = new Date(Date.now() - 2 * hour);
  await utimes(file, before, before);
  const own = await open("own");
  await rename(join(root, "dead"), join(root, "own/inherited-dead"));
  await own.inherit(join(root, "own/inherited-dead"), isThere);
  expect(await files()).toEqual([]);
});
