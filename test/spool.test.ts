// The spool: any order of writes gives the same bytes, and the watermark never runs ahead of them.

import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import fc from "fast-check";
import { afterEach, beforeEach, expect, test } from "vitest";
import { buildProgram } from "../config/build.ts";
import { Spool, waitForBytes } from "../src/spool.ts";

let folder = "";
let count = 0;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "spool-"));
});

afterEach(async () => {
  await rm(folder, { recursive: true });
});

async function makeSpool(sizeBytes: number): Promise<Spool> {
  count += 1;
  return await Spool.open(join(folder, String(count)), sizeBytes);
}

test("pieces written in any order end up in place, and the watermark is the length of the present prefix", async () => {
  const cuts = fc.uniqueArray(fc.integer({ min: 1, max: 499 }), { maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(
      cuts,
      fc.infiniteStream(fc.nat()),
      fc.uint8Array({ minLength: 500, maxLength: 500 }),
      async (at, dice, bytes) => {
        const edges = [0, ...at.sort((a, b) => a - b), 500];
        const parts = edges.slice(1).map((end, index) => ({ start: edges[index] ?? 0, end }));
        const shuffled = parts
          .map((part) => ({ part, key: dice.next().value }))
          .sort((a, b) => a.key - b.key);
        await using spool = await makeSpool(500);
        const present = new Set<number>();
        for (const { part } of shuffled) {
          spool.write(part.start, bytes.subarray(part.start, part.end));
          for (let index = part.start; index < part.end; index++) present.add(index);
          let prefix = 0;
          while (present.has(prefix)) prefix += 1;
          expect(spool.watermark).toBe(prefix);
        }
        spool.complete();
        expect(await readFile(spool.view.path)).toEqual(Buffer.from(bytes));
      },
    ),
    { numRuns: 50 },
  );
});

test("overlapping writes, as after a retried range, are counted once", async () => {
  await using spool = await makeSpool(10);
  spool.write(4, Buffer.from("efgh"));
  spool.write(2, Buffer.from("cdef"));
  expect(spool.watermark).toBe(0);
  spool.write(0, Buffer.from("abc"));
  expect(spool.watermark).toBe(8);
});

test("bytes past the blob's size are refused", async () => {
  await using spool = await makeSpool(4);
  expect(() => spool.write(2, Buffer.from("abc"))).toThrow(expect.objectContaining({ code: "corrupt" }));
  expect(() => spool.complete()).toThrow(/0 of 4 bytes/);
});

test("the file is private, must be new, and is gone after disposal", async () => {
  const spool = await makeSpool(1);
  expect((await stat(spool.view.path)).mode & 0o777).toBe(0o600);
  await expect(Spool.open(spool.view.path, 1)).rejects.toThrow(/EEXIST/);
  await spool[Symbol.asyncDispose]();
  await expect(stat(spool.view.path)).rejects.toThrow(/ENOENT/);
});

/** A thread that reads a spool behind its watermark and posts each watermark it saw, then how it ended. */
async function follow(spool: Spool): Promise<{
  readonly seen: (number | string)[];
  next(): Promise<number | string>;
  ended: Promise<void>;
}> {
  const script = `
    const { parentPort, workerData } = require("node:worker_threads");
    (async () => {
      const { waitForBytes } = await import(workerData.module);
      let at = 0;
      try {
        while (at < workerData.view.sizeBytes) parentPort.postMessage((at = waitForBytes(workerData.view, at, () => false)));
        parentPort.postMessage("end");
      } catch (error) {
        parentPort.postMessage(error.code + ": " + error.message);
      }
    })();`;
  // Threads load JavaScript only.
  await buildProgram(join(folder, "built"), { spool: "src/spool.ts" });
  const module = pathToFileURL(join(folder, "built/spool.js")).href;
  const worker = new Worker(script, { eval: true, workerData: { module, view: spool.view } });
  const seen: (number | string)[] = [];
  let wake = (): void => {};
  worker.on("message", (message: number | string) => {
    seen.push(message);
    wake();
  });
  const ended = new Promise<void>((resolve, reject) => {
    worker.once("exit", () => resolve());
    worker.once("error", reject);
  });
  return {
    seen,
    ended,
    next: async () => {
      if (seen.length === 0) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      return seen.shift() ?? "nothing";
    },
  };
}

test("a reader in another thread sleeps until bytes arrive and wakes up for each advance", async () => {
  await using spool = await makeSpool(6);
  const reader = await follow(spool);
  spool.write(0, Buffer.from("ab"));
  expect(await reader.next()).toBe(2);
  spool.write(4, Buffer.from("ef"));
  expect(reader.seen).toEqual([]);
  spool.write(2, Buffer.from("cd"));
  expect(await reader.next()).toBe(6);
  expect(await reader.next()).toBe("end");
  await reader.ended;
});

test("a reader is woken up by failure, and by the spool being dropped", async () => {
  const spool = await makeSpool(6);
  const reader = await follow(spool);
  spool.write(0, Buffer.from("ab"));
  expect(await reader.next()).toBe(2);
  await spool[Symbol.asyncDispose]();
  expect(await reader.next()).toBe("cancelled: download failed");
  await reader.ended;
});

test("an empty blob is complete from the start", async () => {
  await using spool = await makeSpool(0);
  spool.complete();
  expect(waitForBytes(spool.view, 0, () => false)).toBe(0);
});

test("a cancelled reader stops even when no byte ever comes", async () => {
  await using spool = await makeSpool(1);
  expect(() => waitForBytes(spool.view, 0, () => true)).toThrow("cancelled");
});
