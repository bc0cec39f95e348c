// Layers that nobody waits for: in workers of their own, in the time that others leave, and like any other layer as soon
// as somebody comes to wait.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Demand } from "../../src/demand.ts";
import type { LayerEngine } from "../../src/layer/layer.ts";
import { createEngine } from "../../src/layer/pool.ts";
import { file, tar, tarGz } from "../fakes/tar.ts";
import { Staging } from "./staging.ts";

const never = new AbortController().signal;
const entries = [file("first", "x".repeat(5000)), file("last", "y")];
const whole = { bytes: tarGz(entries), tar: tar(entries) };
const plain = { bytes: tar(entries) };

let staging: Staging;
let engine: LayerEngine;

beforeEach(async () => {
  staging = await Staging.make();
  engine = createEngine({
    engine: "native",
    threads: 1,
    workerFile: new URL("../../dist/worker.js", import.meta.url),
  });
});

afterEach(async () => {
  engine.pause(false);
  await engine.close();
  await staging[Symbol.asyncDispose]();
});

async function unpackWhole(demand: Demand): Promise<void> {
  await using spool = await staging.filled(whole.bytes);
  await engine.unpack(await staging.job(spool, whole), never, demand);
}

/** Threads of this process that the kernel gives only what nobody else wants (proc_pid_stat(5), fields 3 and 41). */
function idleThreads(wanted?: "S"): number {
  const all = readdirSync("/proc/self/task").map((thread) => {
    const stat = readFileSync(`/proc/self/task/${thread}/stat`, "latin1");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return { state: fields[0], policy: fields[38] };
  });
  const schedIdle = "5";
  return all.filter(({ state, policy }) => policy === schedIdle && (wanted ?? state) === state).length;
}

test("neither those who are awaited nor the others ever wait for each other's threads", async () => {
  for (const [stuck, other] of [
    [true, false],
    [false, true],
  ] as const) {
    await using spool = await staging.spool(whole.bytes.length);
    const unpacked = engine.unpack(await staging.job(spool, whole), never, new Demand(stuck));
    await unpackWhole(new Demand(other));
    spool.write(0, whole.bytes);
    spool.complete();
    await unpacked;
  }
});

test("they pause, and go on, when they are told to; those that are awaited do not", async () => {
  await unpackWhole(new Demand(false));
  engine.pause(true);
  await using spool = await staging.filled(whole.bytes);
  const job = await staging.job(spool, whole);
  const unpacked = engine.unpack(job, never, new Demand(false));
  // It has all of its bytes, and sleeps for nothing else.
  await vi.waitUntil(() => idleThreads("S") === 1, { timeout: 30_000, interval: 5 });
  for (let count = 0; count < 20; count++) await unpackWhole(new Demand(true));
  expect(existsSync(join(job.staging, "last"))).toBe(false);
  engine.pause(false);
  const { pausedMs, elapsedMs } = await unpacked;
  expect(existsSync(join(job.staging, "last"))).toBe(true);
  expect(pausedMs).toBeGreaterThan(0);
  expect(pausedMs).toBeLessThan(elapsedMs);
  const again = { ...job, staging: await staging.root() };
  expect(await engine.unpack(again, never, new Demand(false))).toMatchObject({ pausedMs: 0 });
});

test("one that somebody comes to wait for goes on, although the others pause", async () => {
  engine.pause(true);
  await using spool = await staging.filled(whole.bytes);
  const demand = new Demand(false);
  const unpacked = engine.unpack(await staging.job(spool, whole), never, demand);
  await unpackWhole(new Demand(true));
  demand.raise();
  await unpacked;
});

test("one that pauses is cancelled like any other", async () => {
  engine.pause(true);
  await using spool = await staging.filled(whole.bytes);
  const abort = new AbortController();
  const unpacked = engine.unpack(await staging.job(spool, whole), abort.signal, new Demand(false));
  await unpackWhole(new Demand(true));
  abort.abort();
  await expect(unpacked).rejects.toMatchObject({ code: "cancelled" });
});

test("their threads get what nobody else wants of the cores, until somebody waits for them", async () => {
  await using spool = await staging.spool(plain.bytes.length);
  const job = await staging.job(spool, plain);
  const demand = new Demand(false);
  const unpacked = engine.unpack(job, never, demand);
  spool.write(0, plain.bytes.subarray(0, 6000));
  await vi.waitUntil(() => existsSync(join(job.staging, "first")), { timeout: 20_000, interval: 5 });
  expect(idleThreads()).toBe(1);
  demand.raise();
  expect(idleThreads()).toBe(0);
  spool.write(6000, plain.bytes.subarray(6000));
  spool.complete();
  await unpacked;
});

test("threads that have nothing to do, or are to stop, take their share: a busy machine would not let them end", async () => {
  await unpackWhole(new Demand(false));
  expect(idleThreads()).toBe(0);
  // One that waits for bytes that never come.
  await using spool = await staging.spool(whole.bytes.length);
  const abort = new AbortController();
  const unpacked = engine.unpack(await staging.job(spool, whole), abort.signal, new Demand(false));
  await vi.waitFor(() => expect(idleThreads()).toBe(1), { timeout: 30_000, interval: 5 });
  abort.abort();
  expect(idleThreads()).toBe(0);
  await expect(unpacked).rejects.toMatchObject({ code: "cancelled" });
});
