// An image's layer blobs are in the content store, as after a pull by containerd, whichever way the pull went: through
// containerd in its second half, beside a pull that broke off, behind one that did, with answers that were lost.

import { randomBytes } from "node:crypto";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { ContainerdProxy } from "../fakes/proxy.ts";
import { type FakeImage, type FakeLayer, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tar, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";
import { readContent, readSnapshots } from "../harness/state.ts";

let containerd: PrivateContainerd;
let proxy: ContainerdProxy;
let fake: FakeRegistry;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  proxy = await ContainerdProxy.start(containerd.address);
  fake = await FakeRegistry.start();
});

afterEach(() => {
  proxy.fault = () => undefined;
  fake.behave = () => undefined;
});

afterAll(async () => {
  await proxy[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

let count = 0;

function layer(): FakeLayer {
  count += 1;
  return { bytes: tarGz([dir(`d${count}`), file(`d${count}/noise`, randomBytes(200_000))]) };
}

/** A layer that Hawser leaves to containerd, which does not look at what lies behind the last member. */
function odd(): FakeLayer {
  count += 1;
  const archive = tar([file(`odd${count}`, randomBytes(1000))]);
  return { bytes: Buffer.concat([gzipSync(archive), Buffer.from("garbage")]), tar: archive };
}

function put(...layers: readonly FakeLayer[]): FakeImage {
  count += 1;
  return fake.put(`kept/image-${count}:v1`, layers);
}

/** The registry holds this layer of an image back until the gate is opened. */
function holdBack(image: FakeImage, index: number): { readonly open: () => void } {
  const pause = gate();
  const digest = image.layers[index]?.digest ?? "?";
  fake.behave = ({ path }) => (path.endsWith(digest) ? { after: 10, afterwards: pause.opened } : undefined);
  return pause;
}

async function untilCommitted(layers: number): Promise<void> {
  await eventually(async () => {
    const all = await readSnapshots(containerd);
    expect(all.filter((line) => line.startsWith("Committed"))).toHaveLength(layers);
  }, `${layers} committed snapshots`);
}

async function keptBlobs(): Promise<string[]> {
  return (await readContent(containerd)).map((line) => line.split(" ", 1)[0] ?? "");
}

/** Everything has ended, and every layer of these images is in the content store; they are removed then. */
async function allKept(...images: readonly FakeImage[]): Promise<void> {
  await settled(containerd);
  const content = await keptBlobs();
  for (const { reference, layers } of images) {
    for (const [index, { digest }] of layers.entries())
      expect(content, `layer ${index} of ${reference}`).toContain(digest);
  }
  for (const { reference } of images) await containerd.cri.removeImage(reference);
  await untilCommitted(0);
}

test("a pull that containerd ends: what Hawser had committed before", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const image = put(layer(), layer(), odd());
  const pause = holdBack(image, 2);
  const pulling = hawser.cri.pull(image.reference);
  await untilCommitted(2);
  pause.open();
  expect(await pulling).toEqual({ value: image.configDigest });
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="delegated"} 1');
  await allKept(image);
});

describe("a layer that another pull had committed before this one began", () => {
  test.each(["is cancelled", "fails", "succeeds"])("and that pull %s", async (end) => {
    await using hawser = await PrivateHawser.start({ containerd: containerd.address });
    const common = layer();
    const [first, second] = [put(common, end === "fails" ? odd() : layer()), put(common, layer())];
    const pauses = [first, second].map((image) => [image.layers[1]?.digest ?? "?", gate()] as const);
    fake.behave = ({ path }) => {
      const [, pause] = pauses.find(([digest]) => path.endsWith(digest)) ?? [];
      return pause && { after: 10, afterwards: pause.opened };
    };
    const leave = new AbortController();
    const former = hawser.cri.pull(first.reference, undefined, { signal: leave.signal });
    await untilCommitted(1);
    const later = hawser.cri.pull(second.reference);
    await eventually(
      async () => expect(fake.rangesOf(pauses[1]?.[0] ?? "")).toHaveLength(1),
      "the second pull",
    );
    if (end === "is cancelled") leave.abort();
    else pauses[0]?.[1].open();
    expect(await former).toHaveProperty(end === "is cancelled" ? "code" : "value");
    pauses[1]?.[1].open();
    expect(await later).toEqual({ value: second.configDigest });
    pauses[0]?.[1].open();
    await allKept(second, ...(end === "is cancelled" ? [] : [first]));
  });
});

test("a layer that a cancelled pull of the same image left committed, since its lease was not deleted yet", async () => {
  await using hawser = await PrivateHawser.start({ containerd: proxy.address });
  const image = put(layer(), layer());
  const pause = holdBack(image, 1);
  const leave = new AbortController();
  const cancelled = hawser.cri.pull(image.reference, undefined, { signal: leave.signal });
  await untilCommitted(1);
  const deletion = gate();
  let deletions = 0;
  proxy.fault = (path) =>
    path.endsWith("Leases/Delete") && ++deletions === 1 ? { until: deletion.opened } : undefined;
  leave.abort();
  expect(await cancelled).toHaveProperty("code", 1);
  await eventually(async () => expect(deletions).toBe(1), "the deletion of the lease");
  pause.open();
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  deletion.open();
  await allKept(image);
});

test("a new daemon accelerates nothing before it has removed what a dead one had committed", async () => {
  const image = put(layer(), layer(), layer());
  await using hawser = await PrivateHawser.start({ containerd: proxy.address, failpoint: "committed=2" });
  await hawser.cri.pull(image.reference);
  await hawser.untilKilled();
  await untilCommitted(2);
  const sweep = gate();
  let isSweeping = false;
  proxy.fault = (path) => {
    if (!path.endsWith("Leases/List")) return undefined;
    isSweeping = true;
    return { until: sweep.opened };
  };
  const starting = hawser.startAgain();
  await eventually(async () => expect(isSweeping).toBe(true), "the sweep");
  expect(hawser.logs()).not.toContain("pulls are accelerated");
  sweep.open();
  await starting;
  expect((await readSnapshots(containerd)).join()).not.toContain("Committed");
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  await allKept(image);
});

describe("an answer that is lost: containerd has done it, and Hawser cannot know", () => {
  const isSlow = /Leases\/Create|Snapshots\/Commit|Content\/Write/;
  test.each([
    ["UNAVAILABLE", 14, /./],
    ["DEADLINE_EXCEEDED", 4, isSlow],
  ])("%s, once at each call of a pull", async (_name, code, of) => {
    await using hawser = await PrivateHawser.start({ containerd: proxy.address });
    // What a start brings with it is over when a first pull is.
    let before = 0;
    for (let round = 0; round < 2; round++) {
      before = proxy.calls.length;
      const image = put(layer(), layer());
      await hawser.cri.mustPull(image.reference);
      await allKept(image);
    }
    const methods = [...new Set(proxy.calls.slice(before))].filter((path) => !path.endsWith("/PullImage"));
    expect(methods.length).toBeGreaterThan(7);
    for (const method of methods.filter((path) => of.test(path))) {
      let left = 1;
      proxy.fault = (path) => (path === method && left-- > 0 ? { lost: code } : undefined);
      const image = put(layer(), layer());
      expect(await hawser.cri.pull(image.reference), method).toEqual({ value: image.configDigest });
      await allKept(image);
      expect(left, `${method} was called`).toBeLessThanOrEqual(0);
    }
  });
});

describe("adoption", () => {
  test.each([14, 4, 13])(
    "answered with status %i while containerd stays connected: done a little later",
    async (code) => {
      await using hawser = await PrivateHawser.start({ containerd: proxy.address });
      const image = put(layer(), layer());
      let isRegistered = false;
      let refused = 0;
      proxy.fault = (path) => {
        // What is written from here on are layers.
        if (path.endsWith("Images/Create")) isRegistered = true;
        if (!isRegistered || !path.endsWith("Content/Write") || refused === 3) return undefined;
        refused += 1;
        return { code, details: "injected" };
      };
      expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
      await eventually(async () => {
        for (const { digest } of image.layers) expect(await keptBlobs()).toContain(digest);
      }, "the adoption");
      expect(refused).toBe(3);
      await allKept(image);
    },
  );

  test("that a dead daemon had promised: containerd ends in the middle of it, and comes back", async () => {
    const image = put(layer(), layer());
    const failpoint = "registered";
    await using hawser = await PrivateHawser.start({ containerd: proxy.address, failpoint });
    await hawser.cri.pull(image.reference);
    await hawser.untilKilled();
    const pause = gate();
    let isWriting = false;
    proxy.fault = (path) => {
      if (!path.endsWith("Content/Write")) return undefined;
      isWriting = true;
      return { until: pause.opened };
    };
    await hawser.startAgain();
    await eventually(async () => expect(isWriting).toBe(true), "the adoption");
    proxy.cut();
    await containerd.stop("SIGKILL");
    pause.open();
    proxy.fault = () => undefined;
    await containerd.startAgain();
    await proxy.listen();
    await eventually(async () => {
      for (const { digest } of image.layers) expect(await keptBlobs()).toContain(digest);
    }, "the adoption");
    await allKept(image);
  });

  test("that a dead daemon had promised: containerd does not answer when it is asked for the image", async () => {
    const image = put(layer(), layer());
    const failpoint = "registered";
    await using hawser = await PrivateHawser.start({ containerd: proxy.address, failpoint });
    await hawser.cri.pull(image.reference);
    await hawser.untilKilled();
    let left = 1;
    proxy.fault = (path) =>
      path.endsWith("Images/Get") && left-- > 0 ? { code: 14, details: "injected" } : undefined;
    await hawser.startAgain();
    expect(left).toBeLessThanOrEqual(0);
    await eventually(async () => {
      for (const { digest } of image.layers) expect(await keptBlobs()).toContain(digest);
    }, "the adoption");
    await allKept(image);
  });
});
