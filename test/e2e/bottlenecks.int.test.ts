// Why a pull was slow: each thing that can slow one is made slow in its turn, and the verdict names it.

import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { askAdmin } from "../../src/front/client.ts";
import type { PullList } from "../../src/front/pulls.ts";
import type { PullRecord } from "../../src/history/record.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tar } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { Disk } from "../harness/disk.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

let containerd: PrivateContainerd;
let fake: FakeRegistry;
let count = 0;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  fake = await FakeRegistry.start();
});

afterEach(() => {
  fake.behave = () => undefined;
});

afterAll(async () => {
  await containerd[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

/** Layers of such files; random bytes stay as large as they are, others nearly vanish. */
function put(layers: number, makeFile: () => Buffer): FakeImage {
  count += 1;
  const made = Array.from({ length: layers }, (_, index) => {
    const bytes = tar([dir(`${index}`), file(`${index}/file`, makeFile()), file(`${index}/${count}`)]);
    return { bytes: gzipSync(bytes, { level: 1 }), tar: bytes };
  });
  return fake.put(`slow/image-${count}:v1`, made);
}

const isBlob = ({ path }: { readonly path: string }): boolean => path.includes("/blobs/");

async function pulled(hawser: PrivateHawser, image: FakeImage): Promise<PullRecord> {
  await hawser.cri.mustPull(image.reference);
  const record = (await askAdmin(join(hawser.root, "admin.sock"), "GET", "/pulls/latest")) as PullRecord;
  expect(record).toMatchObject({ image: image.reference, state: "ok", outcome: { path: "accelerated" } });
  return record;
}

async function start(config: string, on = containerd): Promise<PrivateHawser> {
  return await PrivateHawser.start({ containerd: on.address, config });
}

describe("as it comes", () => {
  let hawser: PrivateHawser;

  beforeAll(async () => {
    hawser = await start("");
  });

  afterAll(async () => {
    await hawser[Symbol.asyncDispose]();
  });

  test("network: bytes come slowly", async () => {
    const image = put(3, () => randomBytes(3_000_000));
    fake.behave = (asked) => (isBlob(asked) ? { bytesPerSecond: 1_000_000 } : undefined);
    const { verdict, seconds } = await pulled(hawser, image);
    expect(verdict).toMatchObject({
      cause: "network",
      evidence: [
        expect.stringMatching(/^9\.0 MB came from 127\.0\.0\.1:\d+ at \d\.\d MB\/s, in \d+ requests/),
        expect.stringMatching(/^unpacking 9\.0 MB in 3 layers took .*, [1-9]\.\d\d s waiting for bytes, /),
      ],
    });
    expect(verdict?.share).toBeGreaterThan(0.5);
    const all = verdict?.parts.reduce((sum, part) => sum + part.seconds, 0);
    expect(all).toBeCloseTo(seconds, 1);
  });

  test("registry: it takes its time to answer for blobs", async () => {
    const image = put(3, () => randomBytes(1000));
    fake.behave = (asked) => (isBlob(asked) ? { answer: sleep(1500) } : undefined);
    const { verdict } = await pulled(hawser, image);
    expect(verdict).toMatchObject({
      cause: "registry",
      evidence: expect.arrayContaining([
        expect.stringMatching(/took [1-9]\.\d\d s until the first byte of each of 3 /),
      ]),
    });
  });

  test("registry: it takes its time to say what a name stands for", async () => {
    const image = put(1, () => randomBytes(1000));
    fake.behave = ({ path }) => (path.endsWith("/manifests/v1") ? { answer: sleep(1500) } : undefined);
    const { verdict } = await pulled(hawser, image);
    expect(verdict).toMatchObject({
      cause: "registry",
      evidence: expect.arrayContaining([
        expect.stringMatching(/^finding out what the name stands for took [1-9]\.\d\d s$/),
      ]),
    });
  });

  test("registry: it takes its time to say that it cannot answer", async () => {
    const image = put(1, () => randomBytes(1000));
    let asked = 0;
    fake.behave = ({ path }) =>
      path.endsWith(image.layers[0]?.digest ?? "") && asked++ < 1
        ? { answer: sleep(1500), status: 503 }
        : undefined;
    const { verdict } = await pulled(hawser, image);
    expect(verdict).toMatchObject({
      cause: "registry",
      evidence: expect.arrayContaining([
        expect.stringMatching(/ failed \(1 × 503\), and was left alone for /),
      ]),
    });
  });

  test("registry: it refuses requests for a while", async () => {
    const image = put(1, () => randomBytes(1000));
    let refused = 0;
    fake.behave = ({ path }) =>
      path.endsWith(image.layers[0]?.digest ?? "") && refused++ < 2
        ? { status: 503, headers: { "retry-after": "1" } }
        : undefined;
    const { verdict } = await pulled(hawser, image);
    expect(verdict).toMatchObject({
      cause: "registry",
      evidence: expect.arrayContaining([
        expect.stringMatching(/ failed \(\d × 503\), and was left alone for \d/),
      ]),
    });
  });

  test("registry: it is asked again what a name stands for", async () => {
    const image = put(1, () => randomBytes(1000));
    let refused = 0;
    fake.behave = ({ path }) =>
      path.endsWith("/manifests/v1") && refused++ < 1
        ? { status: 429, headers: { "retry-after": "1" } }
        : undefined;
    const { verdict } = await pulled(hawser, image);
    expect(verdict).toMatchObject({
      cause: "registry",
      evidence: expect.arrayContaining([
        expect.stringMatching(/ failed \(1 × 429\), and was left alone for 1\.\d\d s behind that$/),
      ]),
    });
  });

  test("CPU: there is a lot to inflate and to hash", async () => {
    const image = put(4, () => Buffer.alloc(120_000_000, "what is easily compressed "));
    const { verdict } = await pulled(hawser, image);
    expect(verdict).toMatchObject({ cause: "cpu" });
  });

  test("containerd: it stands still", async () => {
    const image = put(2, () => randomBytes(1000));
    let stopped: Promise<void> | undefined;
    fake.behave = (asked) => {
      if (isBlob(asked)) stopped ??= standStill(containerd.pid, 2000);
      return undefined;
    };
    const { verdict } = await pulled(hawser, image);
    await stopped;
    expect(verdict).toMatchObject({ cause: "containerd" });
  });
});

async function standStill(pid: number, ms: number): Promise<void> {
  process.kill(pid, "SIGSTOP");
  await sleep(ms);
  process.kill(pid, "SIGCONT");
}

test("limit: that of a host", async () => {
  const key = `registry.host."${fake.host}".max_concurrent`;
  await using hawser = await start(`[registry.host."${fake.host}"]\nmax_concurrent = 1`);
  const image = put(3, () => randomBytes(2_000_000));
  fake.behave = (asked) => (isBlob(asked) ? { bytesPerSecond: 4_000_000 } : undefined);
  const { verdict } = await pulled(hawser, image);
  expect(verdict).toMatchObject({ cause: "limit", key });
});

test("limit: that on what is fetched ahead", async () => {
  await using hawser = await start('[prewarm]\nbandwidth_limit = "512KiB"');
  const image = put(1, () => randomBytes(1_500_000));
  const socket = join(hawser.root, "admin.sock");
  await askAdmin(socket, "POST", "/prewarm", { add: [image.reference] });
  await eventually(async () => {
    const record = (await askAdmin(socket, "GET", "/pulls/latest")) as PullRecord;
    expect(record).toMatchObject({
      state: "ok",
      isAhead: true,
      verdict: { cause: "limit", key: "prewarm.bandwidth_limit" },
    });
  }, "what is fetched ahead");
});

test("others: what somebody waits for goes first", async () => {
  await using hawser = await start("");
  const [awaited, ahead] = [put(1, () => randomBytes(300_000)), put(1, () => randomBytes(300_000))];
  const held = gate();
  fake.behave = ({ path }) =>
    path.endsWith(awaited.layers[0]?.digest ?? "") ? { after: 1000, afterwards: held.opened } : undefined;
  const first = hawser.cri.mustPull(awaited.reference);
  const socket = join(hawser.root, "admin.sock");
  await eventually(async () => {
    const { running } = (await askAdmin(socket, "GET", "/pulls")) as PullList;
    expect(running).toMatchObject([{ image: awaited.reference, doneBytes: 1000 }]);
  }, "a pull that somebody waits for");
  await askAdmin(socket, "POST", "/prewarm", { add: [ahead.reference] });
  await eventually(async () => {
    const { running } = (await askAdmin(socket, "GET", "/pulls")) as PullList;
    const seconds = running.find(({ image }) => image === ahead.reference)?.seconds;
    expect(seconds).toBeGreaterThan(5);
  }, "what is fetched ahead being kept back");
  held.open();
  await first;
  await eventually(async () => {
    const record = (await askAdmin(socket, "GET", "/pulls/latest")) as PullRecord;
    expect(record).toMatchObject({ image: ahead.reference, state: "ok", verdict: { cause: "others" } });
  }, "what is fetched ahead");
});

test("disk: whoever writes stands still", async () => {
  using disk = new Disk(1024);
  await using slow = await PrivateContainerd.start({ root: disk.path });
  await using hawser = await start("", slow);
  const image = put(3, () => randomBytes(5_000_000));
  let stopped: Promise<void> | undefined;
  fake.behave = (asked) => {
    if (isBlob(asked)) stopped ??= disk.stop(3000);
    return undefined;
  };
  const { verdict } = await pulled(hawser, image);
  await stopped;
  expect(verdict).toMatchObject({ cause: "disk" });
});

test.each([
  ["download.max_concurrent", "[download]\nmax_concurrent = 1", 3],
  ["download.max_concurrent_per_image", "[download]\nmax_concurrent_per_image = 1", 3],
  ["download.max_concurrent_per_host", "[download]\nmax_concurrent_per_host = 1", 3],
  ["content.spool_max_size", '[content]\nspool_max_size = "3MiB"', 3],
  ["download.bandwidth_limit", '[download]\nbandwidth_limit = "1MiB"', 1],
])("limit: %s", async (key, config, layers) => {
  await using hawser = await start(config);
  const image = put(layers, () => randomBytes(2_000_000));
  // Of what each request gets, more at once get more.
  fake.behave = (asked) =>
    isBlob(asked) && layers > 1 ? { bytesPerSecond: 4_000_000, answer: sleep(50) } : undefined;
  const { verdict } = await pulled(hawser, image);
  expect(verdict).toMatchObject({ cause: "limit", key, advice: expect.stringContaining(`raise ${key}`) });
});
