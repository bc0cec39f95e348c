// Both engines in their worker threads: behind the watermark, off the main thread, cancelled between chunks, and strict
// about every digest and limit.

import { randomBytes } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { getPriority } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { PullError } from "../../src/errors.ts";
import { noDirectories } from "../../src/layer/directories.ts";
import type { LayerEngine } from "../../src/layer/layer.ts";
import { createEngine } from "../../src/layer/pool.ts";
import { sha256 } from "../../src/oci/digest.ts";
import { dir, file, tar, tarGz } from "../fakes/tar.ts";
import { zstdFrame } from "../fakes/zstd.ts";
import { readTree } from "../harness/tree.ts";
import { type LayerSpec, layerTypes, Staging } from "./staging.ts";

const workerFile = new URL("../../dist/worker.js", import.meta.url);
const never = new AbortController().signal;
const small = tarGz([file("a", "content")]);
const smallTar = tar([file("a", "content")]);

/** A layer of two members, the first of which holds a file's whole content. */
const halves = ((): { readonly bytes: Buffer; readonly first: Buffer; readonly tar: Buffer } => {
  const stream = tar([file("first", "x".repeat(5000)), file("last", "y")]);
  const first = gzipSync(stream.subarray(0, 6000));
  return { bytes: Buffer.concat([first, gzipSync(stream.subarray(6000))]), first, tar: stream };
})();

let staging: Staging;

beforeEach(async () => {
  staging = await Staging.make();
});

afterEach(async () => {
  await staging[Symbol.asyncDispose]();
});

async function run(engine: LayerEngine, spec: LayerSpec): Promise<string> {
  await using spool = await staging.filled(spec.bytes);
  const job = await staging.job(spool, spec);
  await engine.unpack(job, never);
  return job.staging;
}

describe.each(["native", "portable"] as const)("%s", (name) => {
  let engine: LayerEngine;

  beforeAll(async () => {
    engine = createEngine({ engine: name, threads: 1, workerFile });
  });

  afterAll(async () => {
    await engine.close();
  });

  test("files are there before the last byte of the blob is", async () => {
    const { bytes, first, tar: stream } = halves;
    await using spool = await staging.spool(bytes.length);
    const job = await staging.job(spool, halves);
    const unpacked = engine.unpack(job, never);
    spool.write(0, first);
    await vi.waitUntil(() => existsSync(join(job.staging, "first")), { timeout: 20_000, interval: 5 });
    spool.write(first.length, bytes.subarray(first.length, -1));
    expect(spool.watermark).toBe(bytes.length - 1);
    spool.write(bytes.length - 1, bytes.subarray(-1));
    spool.complete();
    expect(await unpacked).toMatchObject({
      bytes: stream.length,
      entries: 2,
      implicitDirectories: noDirectories,
    });
    expect(readFileSync(join(job.staging, "last"), "utf8")).toBe("y");
  });

  test("it says when bytes were last waited for", async () => {
    const stream = tar(Array.from({ length: 10 }, (_, index) => file(`${index}`, "x".repeat(2000))));
    // A header, and 2000 bytes in blocks of 512.
    const entryBytes = 512 + 2048;
    const members = Array.from({ length: 10 }, (_, index) =>
      gzipSync(stream.subarray(index * entryBytes, index === 9 ? undefined : (index + 1) * entryBytes)),
    );
    const bytes = Buffer.concat(members);
    await using spool = await staging.spool(bytes.length);
    const job = await staging.job(spool, { bytes, tar: stream });
    const began = performance.now();
    const unpacked = engine.unpack(job, never);
    let seenMs = 0;
    for (const [index, member] of members.entries()) {
      spool.write(spool.watermark, member);
      if (index === 9) break;
      // What comes next is waited for soon behind that, if not this time, then the next.
      await vi.waitUntil(() => existsSync(join(job.staging, `${index}`)), { timeout: 20_000, interval: 5 });
      if (index === 0) seenMs = performance.now() - began;
    }
    spool.complete();
    const { caughtUpMs, waitedMs, elapsedMs } = await unpacked;
    expect(caughtUpMs).toBeGreaterThan(seenMs);
    expect(caughtUpMs).toBeLessThanOrEqual(elapsedMs);
    expect(waitedMs).toBeGreaterThan(0);

    await using filled = await staging.filled(bytes);
    const again = await staging.job(filled, { bytes, tar: stream });
    expect(await engine.unpack(again, never)).toMatchObject({ caughtUpMs: 0, waitedMs: 0 });
  });

  test("a layer is unpacked while the main thread does nothing but look", async () => {
    await run(engine, { bytes: small, tar: smallTar });
    const stream = tar([file("random", randomBytes(3_000_000)), file("done")]);
    await using spool = await staging.filled(gzipSync(stream));
    const job = await staging.job(spool, { bytes: gzipSync(stream), tar: stream });
    const unpacked = engine.unpack(job, never);
    // The event loop does not turn in here.
    const deadline = performance.now() + 20_000;
    while (!existsSync(join(job.staging, "done")))
      if (performance.now() > deadline) throw new Error("nothing happened");
    await unpacked;
  });

  test("all packings that it takes; an empty blob is an empty layer; what follows the archive counts for the diffID", async () => {
    const trailing = Buffer.concat([smallTar, tar([file("never")]), Buffer.alloc(3000, 9)]);
    const specs: LayerSpec[] = [
      { bytes: small, tar: smallTar },
      { bytes: small, tar: smallTar, mediaType: layerTypes.zstd },
      { bytes: smallTar, mediaType: layerTypes.plain },
      { bytes: smallTar },
      { bytes: gzipSync(trailing), tar: trailing },
      {
        bytes: Buffer.concat([gzipSync(trailing.subarray(0, 600)), gzipSync(trailing.subarray(600))]),
        tar: trailing,
      },
    ];
    for (const spec of specs) expect([...readTree(await run(engine, spec)).keys()]).toEqual(["", "a"]);
    for (const spec of [{ bytes: Buffer.alloc(0) }, { bytes: gzipSync(""), tar: Buffer.alloc(0) }]) {
      expect([...readTree(await run(engine, spec)).keys()]).toEqual([""]);
    }
  });

  test("a plain layer that is not plain tar, a truncated one, and one with a broken tar are corrupt", async () => {
    const broken = Buffer.from(smallTar);
    broken[0] = 1;
    const specs: LayerSpec[] = [
      { bytes: small, tar: smallTar, mediaType: layerTypes.plain },
      { bytes: small.subarray(0, -4), tar: smallTar },
      { bytes: gzipSync(smallTar.subarray(0, 515)), tar: smallTar.subarray(0, 515) },
      { bytes: gzipSync(broken), tar: broken },
      { bytes: Buffer.concat([small, Buffer.from("garbage, a lot of it")]), tar: smallTar },
    ];
    for (const spec of specs) {
      const error = await run(engine, spec).catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(PullError);
      expect(error).toMatchObject({ code: "corrupt" });
    }
  });

  test("a wrong size, digest or diffID is corrupt, and the message has both sides", async () => {
    await using spool = await staging.filled(small);
    const job = await staging.job(spool, { bytes: small, tar: smallTar });
    const other = sha256("other");
    const { descriptor } = job;
    const attempts = [
      [{ ...job, descriptor: { ...descriptor, size: 5 } }, `${small.length} bytes instead of 5`],
      [{ ...job, descriptor: { ...descriptor, digest: other } }, sha256(small)],
      [{ ...job, diffID: other }, `${sha256(smallTar)} instead of ${other}`],
    ] as const;
    for (const [attempt, message] of attempts) {
      const unpacked = engine.unpack({ ...attempt, staging: await staging.root() }, never);
      await expect(unpacked).rejects.toMatchObject({
        code: "corrupt",
        message: expect.stringContaining(message),
      });
    }
  });

  test("entries, bytes and ratio have limits; a type that is no layer is unsupported", async () => {
    const bomb = tar([file("zeros", Buffer.alloc(70 * 1024 * 1024))]);
    const packed = gzipSync(bomb);
    const attempts: [LayerSpec, string][] = [
      [{ bytes: small, tar: smallTar, limits: { bytesMax: 1000 } }, "max_layer_size"],
      [{ bytes: packed, tar: bomb, limits: { ratioMax: 100 } }, "max_ratio"],
      [{ bytes: tarGz([file("a"), file("b")]), limits: { entriesMax: 1 } }, "max_entries"],
    ];
    for (const [spec, message] of attempts) {
      await expect(run(engine, spec)).rejects.toMatchObject({
        code: "exhausted",
        message: expect.stringContaining(message),
      });
    }
    await expect(run(engine, { bytes: small, mediaType: "text/plain" })).rejects.toMatchObject({
      code: "unsupported",
    });
  });

  test("cancelling stops a layer under way, with the signal's own reason, and frees its worker", async () => {
    await using spool = await staging.spool(halves.bytes.length);
    const job = await staging.job(spool, halves);
    const abort = new AbortController();
    const unpacked = engine.unpack(job, abort.signal);
    spool.write(0, halves.first);
    await vi.waitUntil(() => existsSync(join(job.staging, "first")), { timeout: 20_000, interval: 5 });
    abort.abort(new PullError("slow", "no progress"));
    await expect(unpacked).rejects.toMatchObject({ code: "slow", message: "no progress" });
    await expect(engine.unpack(job, abort.signal)).rejects.toMatchObject({ code: "slow" });
    await run(engine, { bytes: small, tar: smallTar });
  });

  test("a spool that fails ends the layer", async () => {
    const spool = await staging.spool(small.length);
    const job = await staging.job(spool, { bytes: small, tar: smallTar });
    const failed = expect(engine.unpack(job, never)).rejects.toMatchObject({ code: "cancelled" });
    spool.fail();
    await failed;
    await spool[Symbol.asyncDispose]();
  });

  // The portable engine writes a piece at a time, and looks between those.
  if (name === "native")
    test("cancelling stops it between two entries, though all came in one chunk", async () => {
      const entries = Array.from({ length: 2000 }, (_, index) => file(`${index}/${"d/".repeat(200)}f`));
      const stream = tar(entries);
      const spec = { bytes: gzipSync(stream), tar: stream };
      // Less than is read at a time.
      expect(spec.bytes.length).toBeLessThan(256 * 1024);
      await using spool = await staging.filled(spec.bytes);
      const job = await staging.job(spool, spec);
      const abort = new AbortController();
      const unpacked = engine.unpack(job, abort.signal);
      await vi.waitUntil(() => existsSync(join(job.staging, "1")), { timeout: 20_000, interval: 1 });
      abort.abort();
      await expect(unpacked).rejects.toMatchObject({ code: "cancelled" });
      expect(existsSync(join(job.staging, "1999"))).toBe(false);
    });

  test("a layer that is cancelled while it waits for a worker is left at once and never begun", async () => {
    await using stuck = await staging.spool(small.length);
    const first = engine.unpack(await staging.job(stuck, { bytes: small, tar: smallTar }), never);
    await using ready = await staging.filled(small);
    const job = await staging.job(ready, { bytes: small, tar: smallTar });
    const abort = new AbortController();
    const second = engine.unpack(job, abort.signal);
    abort.abort();
    await expect(second).rejects.toMatchObject({ code: "cancelled" });
    stuck.write(0, small);
    stuck.complete();
    await first;
    await run(engine, { bytes: small, tar: smallTar });
    expect(readdirSync(job.staging)).toEqual([]);
  });

  test("nothing stays open, whatever becomes of a layer", async () => {
    const names = Array.from({ length: 20 }, (_, index) => dir(`d${index}`));
    const good = tarGz([...names, file("d1/f", "x".repeat(2_000_000))]);
    const attempts = [good, good.subarray(0, good.length / 2), Buffer.from("no archive at all")];
    const round = async (): Promise<void> => {
      for (const bytes of attempts) await run(engine, { bytes }).catch(() => {});
    };
    await round();
    const before = readdirSync("/proc/self/fd").length;
    for (let count = 0; count < 5; count++) await round();
    expect(readdirSync("/proc/self/fd").length).toBeLessThanOrEqual(before);
  });
});

test("zstd is for the native engine", async () => {
  const stream = tar([file("z", "z".repeat(200_000))]);
  const blocks = [stream.subarray(0, 100_000), stream.subarray(100_000, 200_000), stream.subarray(200_000)];
  const bytes = zstdFrame(blocks).packed;
  const native = createEngine({ engine: "native", threads: 1, workerFile });
  const portable = createEngine({ engine: "portable", threads: 1, workerFile });
  try {
    const root = await run(native, { bytes, tar: stream, mediaType: layerTypes.zstd });
    expect(readFileSync(join(root, "z"), "utf8")).toBe("z".repeat(200_000));
    await expect(run(portable, { bytes, tar: stream })).rejects.toMatchObject({ code: "unsupported" });
  } finally {
    await native.close();
    await portable.close();
  }
});

test("layers run side by side on as many threads as asked for, below the main thread's priority", async () => {
  const engine = createEngine({ engine: "native", threads: 2, workerFile });
  try {
    await using one = await staging.spool(small.length);
    await using two = await staging.spool(small.length);
    const jobs = [
      await staging.job(one, { bytes: small, tar: smallTar }),
      await staging.job(two, { bytes: small, tar: smallTar }),
    ];
    const outcomes = Promise.all(jobs.map(async (job) => await engine.unpack(job, never)));
    // The second to come is finished first, so both must be under way.
    for (const spool of [two, one]) {
      spool.write(0, small);
      spool.complete();
      const job = jobs[spool === one ? 0 : 1];
      await vi.waitUntil(() => existsSync(join(job?.staging ?? "", "a")), { timeout: 20_000, interval: 5 });
    }
    await outcomes;
    const below = (): number =>
      readdirSync("/proc/self/task")
        .map((id) => readFileSync(`/proc/self/task/${id}/stat`, "utf8").split(") ")[1]?.split(" ")[16])
        .filter((nice) => Number(nice) === getPriority() + 5).length;
    // Two for each layer, which need not all have come up yet.
    await vi.waitUntil(() => below() === 4, { timeout: 20_000, interval: 20 });
  } finally {
    await engine.close();
  }
});

test("a large layer that cannot be applied fails at once, although its download has come to a halt", async () => {
  const engine = createEngine({ engine: "native", threads: 1, workerFile });
  try {
    const stream = Buffer.concat([Buffer.alloc(512, 1), randomBytes(3_000_000)]);
    const bytes = gzipSync(stream, { level: 0 });
    await using spool = await staging.spool(bytes.length);
    const job = await staging.job(spool, { bytes, tar: stream });
    const unpacked = engine.unpack(job, never);
    spool.write(0, bytes.subarray(0, 200_000));
    await expect(unpacked).rejects.toMatchObject({ code: "corrupt" });
  } finally {
    await engine.close();
  }
});

test("large layers that come one after another use one ring", async () => {
  const Usual = globalThis.SharedArrayBuffer;
  const made: number[] = [];
  globalThis.SharedArrayBuffer = class extends Usual {
    constructor(bytes = 0) {
      super(bytes);
      made.push(bytes);
    }
  };
  const engine = createEngine({ engine: "native", threads: 1, workerFile });
  try {
    for (const name of ["one", "two", "three"]) {
      const stream = tar([file(name, randomBytes(2_000_000))]);
      const bytes = gzipSync(stream, { level: 0 });
      await using spool = await staging.spool(bytes.length);
      spool.write(0, bytes);
      spool.complete();
      const unpacked = await engine.unpack(await staging.job(spool, { bytes, tar: stream }), never);
      expect(unpacked.entries).toBe(1);
    }
    expect(made.filter((bytes) => bytes > 1024 * 1024)).toHaveLength(1);
  } finally {
    globalThis.SharedArrayBuffer = Usual;
    await engine.close();
  }
});

test("closing ends what waits for a turn, and waits for the layer under way alone", async () => {
  const engine = createEngine({ engine: "native", threads: 1, workerFile });
  await using one = await staging.spool(small.length);
  await using two = await staging.spool(small.length);
  const first = engine.unpack(await staging.job(one, { bytes: small, tar: smallTar }), never);
  const second = engine.unpack(await staging.job(two, { bytes: small, tar: smallTar }), never);
  second.catch(() => {});
  const closed = engine.close();
  one.write(0, small);
  one.complete();
  await first;
  await expect(second).rejects.toMatchObject({ code: "cancelled" });
  await closed;
});

test("closing waits for the layer under way, and the pool takes no more", async () => {
  const engine = createEngine({ engine: "native", threads: 1, workerFile });
  await using spool = await staging.spool(small.length);
  const job = await staging.job(spool, { bytes: small, tar: smallTar });
  const order: string[] = [];
  const unpacked = engine.unpack(job, never).then(() => order.push("unpacked"));
  const closed = engine.close().then(() => order.push("closed"));
  spool.write(0, small);
  spool.complete();
  await Promise.all([unpacked, closed]);
  expect(order).toEqual(["unpacked", "closed"]);
  await expect(engine.unpack(job, never)).rejects.toBeInstanceOf(PullError);
});
