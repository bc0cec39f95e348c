// The store: what is kept, in which order, and what becomes of what is no record.

import { mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { PullRecord } from "../../src/history/record.ts";
import { Store } from "../../src/history/store.ts";

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "store-"));
});

afterEach(() => {
  vi.useRealTimers();
  rmSync(folder, { recursive: true });
});

function record(number: number): PullRecord {
  return {
    id: number.toString(16).padStart(16, "0"),
    traceId: "1".repeat(32),
    image: `example.com/image:${number}`,
    startedAt: "2026-01-01T00:00:00.000Z",
    seconds: 1,
    state: "ok",
    isAhead: false,
    isJoined: false,
    presentLayers: 0,
    stages: [],
    layers: [],
    hosts: [],
  };
}

async function images(store: Store): Promise<string[]> {
  return (await store.latest(100)).map(({ image }) => image);
}

test("the last so many, the newest first; one is read whole, and found by the beginning of its id", async () => {
  const store = new Store(join(folder, "pulls"), 3);
  for (let number = 1; number <= 5; number++) await store.add(record(number));
  expect(await images(store)).toEqual(["example.com/image:5", "example.com/image:4", "example.com/image:3"]);
  expect((await store.latest(1)).map(({ image }) => image)).toEqual(["example.com/image:5"]);
  expect(await store.read(record(4).id)).toEqual(record(4));
  expect(await store.read(record(1).id)).toBeUndefined();
  expect(await store.find("000000000000000")).toEqual([record(5).id, record(4).id, record(3).id]);
  expect(await store.find(record(3).id)).toEqual([record(3).id]);
});

test("a clock that is set back loses nothing", async () => {
  vi.useFakeTimers({ now: Date.parse("2030-01-01"), toFake: ["Date"] });
  const store = new Store(folder, 2);
  await store.add(record(1));
  const before = await store.version();
  vi.setSystemTime(Date.parse("2020-01-01"));
  await store.add(record(2));
  await store.add(record(3));
  expect(await images(store)).toEqual(["example.com/image:3", "example.com/image:2"]);
  expect(await store.version()).not.toBe(before);
});

test("none are kept where none are to be", async () => {
  const store = new Store(join(folder, "pulls"), 0);
  await store.add(record(1));
  expect(readdirSync(folder)).toEqual([]);
});

test("what is no record, or another version's, is not there", async () => {
  const store = new Store(folder, 10);
  await store.add(record(1));
  const [name = ""] = readdirSync(folder);
  const good = readFileSync(join(folder, name), "utf8");
  const texts = ["", "{", "null\nnull\n", "[]\n[]\n", "{}\n{}\n", good.replace('"format":1', '"format":2')];
  for (const [index, text] of texts.entries())
    writeFileSync(join(folder, `${String(index).padStart(15, "0")}-${record(index + 2).id}.json`), text);
  expect(await images(store)).toEqual(["example.com/image:1"]);
  for (const index of texts.keys()) expect(await store.read(record(index + 2).id)).toBeUndefined();
});

test("a long name is read whole in a list, and an absurd one costs its own pull alone", async () => {
  const store = new Store(folder, 10);
  const long = { ...record(1), image: "x".repeat(8000) };
  await store.add(long);
  await store.add({ ...record(2), image: "x".repeat(100_000) });
  expect(await images(store)).toEqual([long.image]);
  expect((await store.read(record(2).id))?.image).toHaveLength(100_000);
});

test("what was not finished goes, once it cannot be finished any more", async () => {
  const store = new Store(folder, 10);
  const old = `${String(Date.now() - 120_000).padStart(15, "0")}-${record(7).id}.json.new`;
  const young = `${String(Date.now()).padStart(15, "0")}-${record(8).id}.json.new`;
  for (const name of [old, young, "other.new"]) writeFileSync(join(folder, name), "");
  utimesSync(join(folder, old), 0, 0);
  await store.add(record(1));
  expect(readdirSync(folder).filter((name) => name.endsWith(".new"))).toEqual([young, "other.new"]);
});
