// The ring between two lanes: every byte once and in order, whatever the sizes, and neither side waits for one that is gone.

import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import fc from "fast-check";
import { expect, test } from "vitest";
import { buildProgram } from "../../config/build.ts";
import { makeRing, type Ring, RingReader, RingWriter } from "../../src/layer/ring.ts";

const never = (): boolean => false;
const cancelled = expect.objectContaining({ code: "cancelled" });

function fill(writer: RingWriter, bytesMax: number, from: number): number {
  const { buffer, start, end } = writer.room();
  const bytes = Math.min(bytesMax, end - start);
  for (let index = 0; index < bytes; index++) buffer[start + index] = (from + index) % 251;
  writer.filled(bytes);
  return bytes;
}

function take(reader: RingReader, from: number): number {
  const room = reader.next();
  if (room === undefined) return 0;
  for (let index = room.start; index < room.end; index++) {
    if (room.buffer[index] !== (from + index - room.start) % 251)
      throw new Error(`wrong byte ${from + index}`);
  }
  return room.end - room.start;
}

test("pieces of any size come out in order, many times around", () => {
  const sizes = fc.array(fc.integer({ min: 1, max: 1_500_000 }), { minLength: 30, maxLength: 60 });
  fc.assert(
    fc.property(sizes, (pieces) => {
      const ring = makeRing();
      const writer = new RingWriter(ring, never);
      const reader = new RingReader(ring, never);
      let written = 0;
      let read = 0;
      for (const piece of pieces) {
        const before = written;
        while (written < before + piece) {
          written += fill(writer, before + piece - written, written);
          writer.flush();
          while (written - read > 4_000_000) read += take(reader, read);
        }
      }
      writer.end();
      for (let bytes = take(reader, read); bytes > 0; bytes = take(reader, read)) read += bytes;
      expect(read).toBe(written);
    }),
    { numRuns: 10 },
  );
});

test("what was filled is read before a failure is told; an end is told only when there was one", () => {
  const ring = makeRing();
  const reader = new RingReader(ring, never);
  {
    using writer = new RingWriter(ring, never);
    fill(writer, 10, 0);
  }
  expect(take(reader, 0)).toBe(10);
  expect(() => reader.next()).toThrow(cancelled);

  const other = makeRing(ring);
  const second = new RingReader(other, never);
  {
    using writer = new RingWriter(other, never);
    fill(writer, 10, 0);
    writer.end();
  }
  expect(take(second, 0)).toBe(10);
  expect(second.next()).toBeUndefined();
});

test("both sides stop once they are cancelled, and the writer once the reader has gone", () => {
  let asked = 0;
  const soon = (): boolean => ++asked > 2;
  const empty = new RingReader(makeRing(), soon);
  expect(() => empty.next()).toThrow(cancelled);
  expect(asked).toBe(3);

  const full = makeRing();
  asked = 0;
  const writer = new RingWriter(full, soon);
  expect(() => {
    for (;;) fill(writer, 1024 * 1024, 0);
  }).toThrow(cancelled);

  const left = makeRing();
  new RingReader(left, never)[Symbol.dispose]();
  expect(() => new RingWriter(left, never).room()).toThrow(cancelled);
});

test("a reader asleep in one thread is woken up by a writer in another, and the other way round", async () => {
  const ring = makeRing();
  const folder = mkdtempSync(join(tmpdir(), "ring-"));
  try {
    // Threads load JavaScript only.
    await buildProgram(folder, { ring: "src/layer/ring.ts" });
    const worker = new Worker(
      `const { workerData, parentPort } = require("node:worker_threads");
    import(workerData.module).then(({ RingReader }) => {
      const reader = new RingReader(workerData.ring, () => false);
      let bytes = 0;
      for (let room = reader.next(); room; room = reader.next()) bytes += room.end - room.start;
      parentPort.postMessage(bytes);
    });`,
      {
        eval: true,
        workerData: { ring, module: pathToFileURL(join(folder, "ring.js")).href } satisfies {
          ring: Ring;
          module: string;
        },
      },
    );
    const writer = new RingWriter(ring, never);
    let written = 0;
    while (written < 100 * 1024 * 1024) {
      const { start, end } = writer.room();
      writer.filled(end - start);
      written += end - start;
    }
    writer.end();
    expect(await once(worker, "message")).toEqual([written]);
    await worker.terminate();
  } finally {
    rmSync(folder, { recursive: true });
  }
});
