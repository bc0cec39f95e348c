// Many callers at once: each blob is fetched once, each layer unpacked once, limits hold, and nobody hurts another.

import { randomBytes } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { createContainerd } from "../../src/containerd/client.ts";
import { ContainerdProxy } from "../fakes/proxy.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { bytesAsked } from "../harness/crash.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";
import { readContent, readImages, readLeases, readState } from "../harness/state.ts";

const config =
  '[download]\nmax_concurrent = 6\nmax_concurrent_per_host = 6\nmax_concurrent_per_image = 4\nchunk_size = "64KiB"';

let containerd: PrivateContainerd;
let hawser: PrivateHawser;
let fake: FakeRegistry;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  fake = await FakeRegistry.start();
  hawser = await PrivateHawser.start({ containerd: containerd.address, config });
});

afterEach(() => {
  fake.behave = () => undefined;
});

afterAll(async () => {
  await hawser[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

function layer(name: string): { bytes: Buffer } {
  return { bytes: tarGz([dir(name), file(`${name}/noise`, randomBytes(150_000))]) };
}

/** Ten images on three common layers, each with two of its own. */
function putTen(name: string): FakeImage[] {
  const common = ["x", "y", "z"].map(layer);
  return Array.from({ length: 10 }, (_, index) =>
    fake.put(`many/${name}-${index}:v1`, [...common, layer(`${index}a`), layer(`${index}b`)]),
  );
}

test("fifty pulls of ten images that share layers: each byte fetched once, each layer unpacked once", async () => {
  const images = putTen("fifty");
  const calls = images.flatMap(({ reference }) =>
    Array.from({ length: 5 }, () => hawser.cri.mustPull(reference)),
  );
  await Promise.all(calls);
  await settled(containerd);
  const layers = new Map(
    images.flatMap((image) => image.layers.map((one) => [one.digest, one.bytes.length])),
  );
  expect(layers.size).toBe(23);
  for (const [digest, size] of layers) {
    const asked = bytesAsked(fake.asked, digest, size);
    expect(
      asked.reduce((sum, { start, end }) => sum + end - start, 0),
      digest,
    ).toBe(size);
  }
  const metrics = await hawser.metrics();
  expect(metrics).toMatch(/hawser_stage_duration_seconds_count\{stage="unpack"\} 23\n/);
  expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 50');
  expect(fake.peakBlobs).toBeLessThanOrEqual(6);
  // Every repository that a common layer came from is named, as with pulls one after another.
  const shared = (await readContent(containerd)).find((line) =>
    line.startsWith([...layers.keys()][0] ?? "?"),
  );
  for (let index = 0; index < 10; index++) expect(shared).toContain(`many/fifty-${index}`);
});

test("callers that go away leave the others alone; with the last of them everything goes", async () => {
  const images = putTen("leaving").slice(0, 3);
  const pause = gate();
  const held = images[0]?.layers[0]?.digest ?? "";
  fake.behave = ({ path }) => (path.endsWith(held) ? { after: 50_000, afterwards: pause.opened } : undefined);
  const leave = new AbortController();
  const stay = new AbortController();
  const leaving = images.map(({ reference }) =>
    hawser.cri.pull(reference, undefined, { signal: leave.signal }),
  );
  const staying = images.map(({ reference }) =>
    hawser.cri.pull(reference, undefined, { signal: stay.signal }),
  );
  await eventually(async () => expect(fake.openBlobs).toBeGreaterThan(0), "the pause");
  leave.abort();
  for (const reply of await Promise.all(leaving)) expect(reply).toHaveProperty("code", 1);
  expect((await readLeases(containerd)).length).toBeGreaterThan(0);
  stay.abort();
  for (const reply of await Promise.all(staying)) expect(reply).toHaveProperty("code", 1);
  await settled(containerd);
  expect((await readImages(containerd)).join()).not.toContain("many/leaving");
  pause.open();
  fake.behave = () => undefined;
  await Promise.all(images.map(({ reference }) => hawser.cri.mustPull(reference)));
  await settled(containerd);
});

test.each([
  ["the one that began it", 0],
  ["the one that joined it", 1],
])("a layer that two pulls share is being committed when one leaves, %s", async (_name, leaver) => {
  await using proxy = await ContainerdProxy.start(containerd.address);
  await using own = await PrivateHawser.start({ containerd: proxy.address });
  const common = layer("common");
  const images = [0, 1].map((index) => fake.put(`shared/${leaver}-${index}:v1`, [common, layer(`${index}`)]));
  const digest = images[0]?.layers[0]?.digest ?? "";
  const pause = gate();
  const commit = gate();
  let isCommitting = false;
  fake.behave = ({ path }) => (path.endsWith(digest) ? { after: 1000, afterwards: pause.opened } : undefined);
  proxy.fault = (path) => {
    if (!path.endsWith("Snapshots/Commit")) return undefined;
    isCommitting = true;
    return { until: commit.opened };
  };
  const leave = new AbortController();
  const pulls: Promise<unknown>[] = [];
  for (const [index, { reference, layers }] of images.entries()) {
    const signal = index === leaver ? { signal: leave.signal } : {};
    pulls.push(own.cri.pull(reference, undefined, signal));
    // It has joined the layer once it asks for its own one.
    const last = layers[1]?.digest ?? "";
    await eventually(async () => expect(fake.rangesOf(last)).not.toEqual([]), "the pull being under way");
  }
  pause.open();
  await eventually(async () => expect(isCommitting).toBe(true), "the commit");
  leave.abort();
  expect(await pulls[leaver]).toHaveProperty("code", 1);
  commit.open();
  expect(await pulls[1 - leaver]).toEqual({ value: images[1 - leaver]?.configDigest });
  await settled(containerd);
  expect(fake.rangesOf(digest)).toHaveLength(1);
  expect(await own.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  expect((await readContent(containerd)).join()).toContain(digest);
  expect((await readImages(containerd)).join()).not.toContain(`shared/${leaver}-${leaver}`);
});

test("garbage collection runs all the time: pulls are accelerated, and every blob is kept", async () => {
  const { address } = containerd;
  const client = createContainerd({ address, namespace: "k8s.io", configFile: "", snapshotter: undefined });
  await client.facts(new AbortController().signal);
  const stop = new AbortController();
  const churn = async (): Promise<void> => {
    while (!stop.signal.aborted) await (await client.lease({}))[Symbol.asyncDispose]();
  };
  const churning = churn();
  const images = putTen("collected");
  const before = /path="accelerated"\} (\d+)/.exec(await hawser.metrics())?.[1];
  for (const { reference } of images) await hawser.cri.mustPull(reference);
  await eventually(async () => {
    const { content } = await readState(containerd);
    for (const { layers } of images)
      for (const { digest } of layers) expect(content.join()).toContain(digest);
  }, "every blob in the content store");
  stop.abort();
  await churning;
  client.close();
  await settled(containerd);
  expect(await hawser.metrics()).toContain(`path="accelerated"} ${Number(before) + images.length}`);
  for (const { digest, bytes } of images.flatMap(({ layers }) => layers)) {
    const blob = `${containerd.contentRoot}/blobs/${digest.replace(":", "/")}`;
    expect(readFileSync(blob).equals(bytes)).toBe(true);
  }
});

test("sockets and folders are the owner's alone, whatever the umask", async () => {
  const former = process.umask(0);
  try {
    await using loose = await PrivateHawser.start({ containerd: containerd.address });
    const modeOf = (path: string): number => statSync(path).mode & 0o777;
    expect(modeOf(loose.socket) & 0o077).toBe(0);
    const state = `${containerd.root}/root/io.hawser`;
    for (const name of ["spool", "instances"]) expect(modeOf(`${state}/${name}`), name).toBe(0o700);
    expect(modeOf(`${containerd.snapshotterRoot}/io.hawser/staging`)).toBe(0o700);
  } finally {
    process.umask(former);
  }
});
