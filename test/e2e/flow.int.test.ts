// How a pull flows: unpacking follows the download, work is shared, limits hold, and a killed daemon leaves nothing.

import { randomBytes } from "node:crypto";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { hostRequests } from "../../src/pull/tuning.ts";
import { FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tar, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";
import {
  activeExtracts,
  leftovers,
  parked,
  readImages,
  readLeases,
  readSnapshots,
} from "../harness/state.ts";
import { namesBelow } from "../harness/tree.ts";

let containerd: PrivateContainerd;
let fake: FakeRegistry;

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

/** A layer that does not compress, so that bytes on the wire are files in the tree. */
function noise(name: string, files: number, fileBytes: number): { bytes: Buffer } {
  const entries = Array.from({ length: files }, (_, index) =>
    file(`${name}/${index}`, randomBytes(fileBytes)),
  );
  return { bytes: tarGz([dir(name), ...entries]) };
}

async function nothingLeft(): Promise<void> {
  await eventually(async () => {
    expect(await readLeases(containerd)).toEqual([]);
    expect(leftovers(containerd)).toEqual([]);
    expect(await activeExtracts(containerd)).toEqual([]);
  }, "the end of what follows a pull");
}

function staged(): string[] {
  return namesBelow(`${containerd.snapshotterRoot}/io.hawser/staging`);
}

test("files are staged while the registry pauses in the middle of their layer, and layers side by side", async () => {
  await using hawser = await PrivateHawser.start({
    containerd: containerd.address,
    config: "[unpack]\nmax_concurrent = 2",
  });
  const layers = [noise("first", 20, 100_000), noise("second", 20, 100_000)];
  const image = fake.put("flow/paused:v1", layers);
  const pause = gate();
  const isLayer = new Set(image.layers.map(({ digest }) => digest));
  fake.behave = ({ path }) =>
    isLayer.has(path.split("/").at(-1) ?? "") ? { after: 1_200_000, afterwards: pause.opened } : undefined;
  const pulling = hawser.cri.pull(image.reference);
  await eventually(async () => {
    const names = staged().join("\n");
    expect(names).toMatch(/first\/5$/m);
    expect(names).toMatch(/second\/5$/m);
    expect(names).not.toMatch(/\/19$/m);
  }, "both layers being staged");
  expect(await hawser.metrics()).toContain('hawser_in_flight{what="unpacks"} 2');
  // Nothing is visible to anyone yet.
  expect((await readSnapshots(containerd)).filter((line) => line.includes("Committed"))).toEqual([]);
  pause.open();
  expect(await pulling).toEqual({ value: image.configDigest });
  await nothingLeft();
  await containerd.cri.removeImage(image.reference);
});

test("two concurrent pulls of one image fetch each blob once, and one being cancelled does not hurt the other", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const image = fake.put("flow/shared:v1", [noise("shared", 10, 50_000)]);
  const pause = gate();
  const layer = image.layers[0]?.digest ?? "";
  fake.behave = ({ path }) => (path.endsWith(layer) ? { after: 1000, afterwards: pause.opened } : undefined);
  const cancel = new AbortController();
  const pulls = [
    hawser.cri.pull(image.reference),
    hawser.cri.pull(image.reference),
    hawser.cri.pull(image.reference, undefined, { signal: cancel.signal }),
  ];
  await eventually(
    async () => expect(await hawser.metrics()).toContain('hawser_in_flight{what="pulls"} 3'),
    "three pulls",
  );
  await eventually(async () => expect(fake.rangesOf(layer)).toHaveLength(1), "the layer's request");
  cancel.abort();
  expect(await pulls[2]).toMatchObject({ code: 1 });
  pause.open();
  expect(await pulls[0]).toEqual({ value: image.configDigest });
  expect(await pulls[1]).toEqual({ value: image.configDigest });
  expect(fake.rangesOf(layer)).toHaveLength(1);
  await nothingLeft();
  await containerd.cri.removeImage(image.reference);
});

test("a caller that still speaks v1alpha2 is served alike", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const image = fake.put("flow/alpha:v1", [noise("alpha", 2, 1000)]);
  const reply = await hawser.cri.pull(image.reference, undefined, { version: "runtime.v1alpha2" });
  expect(reply).toEqual({ value: image.configDigest });
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  await nothingLeft();
  await containerd.cri.removeImage(image.reference);
});

test("when the only caller goes away, the work stops and nothing is left", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const image = fake.put("flow/cancelled:v1", [noise("cancelled", 10, 50_000)]);
  const pause = gate();
  const layer = image.layers[0]?.digest ?? "";
  fake.behave = ({ path }) =>
    path.endsWith(layer) ? { after: 100_000, afterwards: pause.opened } : undefined;
  const cancel = new AbortController();
  const pulling = hawser.cri.pull(image.reference, undefined, { signal: cancel.signal });
  await eventually(async () => expect(staged().length).toBeGreaterThan(2), "staging");
  cancel.abort();
  expect(await pulling).toMatchObject({ code: 1 });
  await nothingLeft();
  expect((await readImages(containerd)).join()).not.toContain("flow/cancelled");
  pause.open();
});

test("SIGTERM in the middle of a pull: cancelled after ten seconds, cleanly", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const image = fake.put("flow/terminated:v1", [noise("terminated", 10, 50_000)]);
  const pause = gate();
  const layer = image.layers[0]?.digest ?? "";
  fake.behave = ({ path }) =>
    path.endsWith(layer) ? { after: 100_000, afterwards: pause.opened } : undefined;
  const pulling = hawser.cri.pull(image.reference);
  await eventually(async () => expect(staged().length).toBeGreaterThan(2), "staging");
  await hawser.stop();
  expect(await pulling).toHaveProperty("code");
  expect(hawser.exitCode).toBe(0);
  // Nobody is left to clear up later: it was done before the end.
  expect(namesBelow(`${containerd.snapshotterRoot}/io.hawser/staging`)).toEqual([]);
  expect(leftovers(containerd)).toEqual([]);
  expect(await readLeases(containerd)).toEqual([]);
  pause.open();
  // What was received waits for the next daemon.
  expect(parked(containerd).join()).toContain(layer.slice("sha256:".length));
  fake.behave = () => undefined;
  const before = fake.asked.length;
  await hawser.startAgain();
  await hawser.cri.mustPull(image.reference);
  const again = fake.asked.slice(before).filter(({ path }) => path.endsWith(layer));
  const starts = again.map(({ range }) => Number(/=(\d+)-/.exec(range ?? "")?.[1] ?? 0));
  expect(Math.min(...starts)).toBeGreaterThan(0);
  await nothingLeft();
  expect(parked(containerd).join()).not.toContain(layer.slice("sha256:".length));
});

describe("limits", () => {
  test.each([1, 3, 8])("%i blob requests at once on the node, over two images", async (limit) => {
    const config = `[download]\nmax_concurrent = ${limit}\nmax_concurrent_per_image = ${limit}\nmax_concurrent_per_host = ${limit}\nchunk_size = "64KiB"`;
    await peak(config, limit);
  });

  test.each([1, 3, 8])("%i blob requests at once for one image", async (limit) => {
    const config = `[download]\nmax_concurrent = 100\nmax_concurrent_per_host = 100\nmax_concurrent_per_image = ${limit}\nchunk_size = "64KiB"`;
    await peak(config, limit, 1);
  });

  test.each([1, 3, 8])("%i blob requests at once to one host", async (limit) => {
    const config = `[download]\nmax_concurrent = 100\nmax_concurrent_per_host = ${limit}\nmax_concurrent_per_image = 50\nchunk_size = "64KiB"`;
    await peak(config, limit);
  });

  test("without a number: a host that refuses more than three at once is asked for fewer", async () => {
    await using hawser = await PrivateHawser.start({
      containerd: containerd.address,
      config: '[download]\nchunk_size = "64KiB"',
    });
    const image = fake.put("limits/refusing:v1", [noise("one", 40, 100_000), noise("two", 40, 100_000)]);
    const digests = new Set(image.layers.map(({ digest }) => digest));
    let refused = 0;
    fake.peakBlobs = 0;
    fake.behave = ({ path }) => {
      if (!digests.has(path.split("/").at(-1) ?? "")) return undefined;
      if (fake.openBlobs < 3) return { bytesPerSecond: 4_000_000 };
      refused += 1;
      return { status: 429 };
    };
    expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
    expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
    // Of more than a hundred requests.
    expect(refused).toBeGreaterThan(0);
    expect(refused).toBeLessThan(12);
    await nothingLeft();
  });

  test("without a number: twenty images at once get more than a host begins with, and no more than the most", async () => {
    await using hawser = await PrivateHawser.start({
      containerd: containerd.address,
      config: '[download]\nchunk_size = "64KiB"',
    });
    const images = Array.from({ length: 20 }, (_, index) =>
      fake.put(`limits/many-${index}:v1`, [noise(`many${index}`, 5, 100_000)]),
    );
    const digests = new Set(images.flatMap((image) => image.layers.map(({ digest }) => digest)));
    fake.peakBlobs = 0;
    fake.behave = ({ path }) =>
      digests.has(path.split("/").at(-1) ?? "") ? { bytesPerSecond: 200_000 } : undefined;
    const replies = await Promise.all(images.map((image) => hawser.cri.pull(image.reference)));
    expect(replies).toEqual(images.map((image) => ({ value: image.configDigest })));
    expect(fake.peakBlobs).toBeGreaterThan(2 * hostRequests.first);
    expect(fake.peakBlobs).toBeLessThanOrEqual(hostRequests.most);
    await nothingLeft();
    for (const image of images) await containerd.cri.removeImage(image.reference);
  });

  test.each([1, 3])("%i layers are unpacked at once", async (limit) => {
    await using hawser = await PrivateHawser.start({
      containerd: containerd.address,
      config: `[unpack]\nmax_concurrent = ${limit}`,
    });
    const layers = Array.from({ length: 5 }, (_, index) => noise(`unpack-${limit}-${index}`, 5, 50_000));
    const image = fake.put(`limits/unpack-${limit}:v1`, layers);
    const pause = gate();
    const digests = new Set(image.layers.map(({ digest }) => digest));
    fake.behave = ({ path }) =>
      digests.has(path.split("/").at(-1) ?? "") ? { after: 120_000, afterwards: pause.opened } : undefined;
    const pulling = hawser.cri.pull(image.reference);
    await eventually(async () => {
      expect(fake.openBlobs).toBe(5);
      expect(await hawser.metrics()).toContain(`hawser_in_flight{what="unpacks"} ${limit}`);
    }, "as many unpacks as may be");
    // Each running unpack has a directory with files in it; nobody else has one.
    const roots = (): Set<string | undefined> =>
      new Set(staged().flatMap((name) => /unpack-\d-\d/.exec(name)?.[0] ?? []));
    await eventually(async () => expect(roots().size).toBe(limit), "files of as many layers");
    pause.open();
    expect(await pulling).toEqual({ value: image.configDigest });
    await nothingLeft();
    await containerd.cri.removeImage(image.reference);
  });

  /** The peak of open blob requests at a registry that answers none before it has seen as many as it may. */
  async function peak(config: string, limit: number, images = 2): Promise<void> {
    await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
    const put = Array.from({ length: images }, (_, index) =>
      fake.put(`limits/peak-${index}:v1`, [noise(`a${index}`, 8, 100_000), noise(`b${index}`, 8, 100_000)]),
    );
    const digests = new Set(put.flatMap((image) => image.layers.map(({ digest }) => digest)));
    const full = gate();
    fake.peakBlobs = 0;
    fake.behave = ({ path }) => {
      if (!digests.has(path.split("/").at(-1) ?? "")) return undefined;
      if (fake.openBlobs + 1 >= limit) full.open();
      return { after: 1000, afterwards: full.opened };
    };
    const replies = await Promise.all(put.map((image) => hawser.cri.pull(image.reference)));
    expect(replies).toEqual(put.map((image) => ({ value: image.configDigest })));
    expect(fake.peakBlobs).toBe(limit);
    await nothingLeft();
    for (const image of put) await containerd.cri.removeImage(image.reference);
  }
});

test("kill -9 in the middle of a pull, restart, pull again: the right image, and nothing left over", async () => {
  await using hawser = await PrivateHawser.start({
    containerd: containerd.address,
    config: '[download]\nchunk_size = "64KiB"',
  });
  const lower = noise("lower", 4, 10_000);
  const upper = {
    bytes: gzipSync(
      tar([
        dir("upper"),
        ...Array.from({ length: 50 }, (_, index) => file(`upper/${index}`, randomBytes(20_000))),
      ]),
    ),
  };
  const image = fake.put("flow/killed:v1", [lower, upper]);
  const pause = gate();
  const last = image.layers[1]?.digest ?? "";
  let isPaused = true;
  fake.behave = ({ path, range }) => {
    const isLate = Number(/=(\d+)/.exec(range ?? "")?.[1] ?? 0) > 400_000;
    return isPaused && path.endsWith(last) && isLate ? { after: 10, afterwards: pause.opened } : undefined;
  };
  const pulling = hawser.cri.pull(image.reference);
  await eventually(async () => {
    expect(staged().join("\n")).toMatch(/upper\/10$/m);
    expect((await readSnapshots(containerd)).join()).toContain("Committed");
  }, "the first layer committed and the second one staged");
  await hawser.stop("SIGKILL");
  await pulling;
  expect(leftovers(containerd)).not.toEqual([]);
  isPaused = false;
  pause.open();
  await hawser.startAgain();
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  expect(hawser.logs()).toContain("removed what dead instances left");
  await nothingLeft();
  await containerd.cri.removeImage(image.reference);
});
