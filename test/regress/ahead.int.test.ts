// What is fetched ahead of need once kept pulls that somebody waits for from ever ending, or from going on where they were:
// its requests kept their permits while they made way, and its want of space cost others what they had parked.

import { randomBytes } from "node:crypto";
import { expect, test } from "vitest";
import type { Digest } from "../../src/oci/digest.ts";
import type { Pulled } from "../../src/pull/pull.ts";
import { type FakeImage, gate } from "../fakes/registry.ts";
import { file, tar } from "../fakes/tar.ts";
import { eventually } from "../harness/process.ts";
import { layerTypes } from "../layer/staging.ts";
import { Rig } from "../pull/rig.ts";

function layerOf(bytes: number) {
  const name = randomBytes(8).toString("hex");
  return { bytes: tar([file(name, randomBytes(bytes))]), mediaType: layerTypes.plain };
}

async function pullAhead(
  rig: Rig,
  { reference }: FakeImage,
  signal: AbortSignal,
  spareBytes = 0,
): Promise<Pulled> {
  const ahead = { isKnown: false, spare: () => spareBytes };
  return await rig.puller.pullAhead(reference, rig.site, undefined, ahead, signal);
}

async function mustPull(rig: Rig, { reference }: FakeImage): Promise<void> {
  await using pulled = await rig.puller.pull(reference, rig.site, undefined, new AbortController().signal);
  expect(pulled.failure).toBeUndefined();
}

async function untilOpen(rig: Rig, count: number): Promise<void> {
  await eventually(
    async () => expect(rig.registry.openBlobs).toBeGreaterThanOrEqual(count),
    `${count} requests`,
  );
}

/** Ends it, and what it holds. */
async function giveUp(pulling: Promise<Pulled>, abort: AbortController): Promise<void> {
  abort.abort();
  await (await pulling)[Symbol.asyncDispose]();
}

test.each([
  { answers: "ranges", ignoreRange: false },
  { answers: "whole blobs", ignoreRange: true },
])(
  "a host that answers with $answers, and has no request left that is not ahead of need",
  async ({ ignoreRange }) => {
    await using rig = await Rig.open();
    const warm = rig.registry.put(
      "warm/small:v1",
      [1, 2, 3, 4].map(() => layerOf(20_000)),
    );
    const wanted = rig.registry.put("pod/small:v1", [layerOf(1000)]);
    const paused = gate();
    rig.registry.behave = ({ path }) =>
      warm.layers.some(({ digest }) => path.endsWith(digest))
        ? { ignoreRange, after: 5000, afterwards: paused.opened }
        : undefined;
    const abort = new AbortController();
    const ahead = pullAhead(rig, warm, abort.signal);
    await untilOpen(rig, 4);
    await mustPull(rig, wanted);
    await giveUp(ahead, abort);
    paused.open();
  },
);

test("requests that wait for their share of prewarm.bandwidth_limit", async () => {
  await using rig = await Rig.open({ aheadBytesPerSecond: 65_536 });
  const warm = rig.registry.put("warm/large:v1", [layerOf(2_000_000)]);
  const wanted = rig.registry.put("pod/beside:v1", [layerOf(1000)]);
  const abort = new AbortController();
  const ahead = pullAhead(rig, warm, abort.signal);
  const [layer] = warm.layers;
  await eventually(
    async () => expect(rig.registry.rangesOf(layer?.digest ?? "").length).toBeGreaterThanOrEqual(4),
    "as many requests as the host may have",
  );
  await mustPull(rig, wanted);
  await giveUp(ahead, abort);
});

test("an image that is turned away for want of free space takes nobody's parked bytes with it", async () => {
  await using rig = await Rig.open();
  const large = rig.registry.put("pod/large:v1", [layerOf(2_000_000)]);
  const other = rig.registry.put("warm/other:v1", [layerOf(1000)]);
  const digest = large.layers[0]?.digest as Digest;
  const paused = gate();
  rig.registry.behave = ({ path }) =>
    path.endsWith(digest) ? { after: 40_000, afterwards: paused.opened } : undefined;
  const abort = new AbortController();
  const pulling = rig.puller.pull(large.reference, rig.site, undefined, abort.signal);
  await untilOpen(rig, 1);
  await eventually(async () => expect(rig.registry.peakBlobs).toBeGreaterThan(0), "bytes");
  await giveUp(pulling, abort);
  await eventually(async () => expect(rig.site.spools.isParked(digest)).toBe(true), "parked bytes");
  await using turned = await pullAhead(rig, other, new AbortController().signal, 2 ** 60);
  expect(turned.failure?.code).toBe("exhausted");
  expect(rig.site.spools.isParked(digest)).toBe(true);
  paused.open();
});

test("a pull that containerd makes by itself: what is fetched ahead of need keeps back for that as well", async () => {
  await using rig = await Rig.open();
  const warm = rig.registry.put("warm/behind:v1", [layerOf(50_000)]);
  const [layer] = warm.layers;
  const paused = gate();
  rig.registry.behave = ({ path }) =>
    path.endsWith(layer?.digest ?? "none") ? { after: 5000, afterwards: paused.opened } : undefined;
  const ahead = pullAhead(rig, warm, new AbortController().signal);
  await untilOpen(rig, 1);
  const way = rig.puller.giveWay();
  await eventually(async () => expect(rig.registry.openBlobs).toBe(0), "an end of the request");
  way[Symbol.dispose]();
  await untilOpen(rig, 1);
  paused.open();
  await using pulled = await ahead;
  expect(pulled.failure).toBeUndefined();
});
