// Disk: too little of it is told before a download, and running out of it anywhere leaves the node as it was.

import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { ContainerdProxy } from "../fakes/proxy.ts";
import { FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tar, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { fields } from "../harness/cri.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";
import { activeExtracts, leftovers, parked, readContent, readLeases } from "../harness/state.ts";
import { Volume } from "../harness/volume.ts";

const mebibyte = 1024 * 1024;
const oneByOne = "[download]\nmax_concurrent = 1\nmax_concurrent_per_image = 1\nmax_concurrent_per_host = 1";

let fake: FakeRegistry;

beforeAll(async () => {
  fake = await FakeRegistry.start();
});

afterEach(() => {
  fake.behave = () => undefined;
});

afterAll(async () => {
  await fake[Symbol.asyncDispose]();
});

function noise(name: string, bytes: number): { bytes: Buffer } {
  return { bytes: tarGz([dir(name), file(`${name}/noise`, randomBytes(bytes))]) };
}

/**
 * On a full disk a snapshot cannot always be removed, by whoever made it: containerd has to write for that. Without a
 * lease it is garbage, and goes with the next collection.
 */
async function nothingLeft(containerd: PrivateContainerd): Promise<void> {
  await eventually(async () => {
    containerd.ctr("leases", "create", "--id", "collection");
    containerd.ctr("leases", "delete", "--sync", "collection");
    expect(await readLeases(containerd)).toEqual([]);
    expect(leftovers(containerd)).toEqual([]);
    expect(await activeExtracts(containerd)).toEqual([]);
  }, "the end of what follows a pull");
}

/** Everything that Hawser and containerd say of an image that cannot be pulled, without what differs between calls. */
async function refusedAlike(
  containerd: PrivateContainerd,
  hawser: PrivateHawser,
  reference: string,
): Promise<string> {
  const [ours, theirs] = [await hawser.cri.pull(reference), await containerd.cri.pull(reference)];
  expect(ours).toHaveProperty("code", (theirs as { code?: number }).code);
  await nothingLeft(containerd);
  return JSON.stringify(ours);
}

test("too little space is told with the folder and the shortfall, and no layer is asked for", async () => {
  using volume = new Volume({ mebibytes: 100 });
  await using containerd = await PrivateContainerd.start({ root: volume.path });
  const config = "[fallback]\nenabled = false";
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const image = fake.put("disk/large:v1", [noise("a", 30 * mebibyte), noise("b", 20 * mebibyte)]);
  const reply = await hawser.cri.pull(image.reference);
  expect(reply).toMatchObject({
    code: 8,
    message: expect.stringMatching(
      /\/io\.containerd\.content\.v1\.content has \d+ MiB free and the image needs at least 101 MiB with 32 MiB to spare: \d+ MiB too little$/,
    ),
  });
  for (const { digest } of image.layers) expect(fake.rangesOf(digest)).toEqual([]);
  await nothingLeft(containerd);
});

test("room for the trees and one spool is enough where layers are not kept", async () => {
  using volume = new Volume({ mebibytes: 150 });
  await using containerd = await PrivateContainerd.start({ root: volume.path });
  const config = "[unpack]\nmax_concurrent = 1\n[fallback]\nenabled = false\n[content]\nkeep_layers = false";
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const layers = ["a", "b", "c", "d"].map((name) => noise(name, 20 * mebibyte));
  const image = fake.put("disk/narrow:v1", layers);
  await hawser.cri.mustPull(image.reference);
  await nothingLeft(containerd);
  expect(volume.freeBytes).toBeLessThan(70 * mebibyte);
});

test("the disk fills up while a layer is downloaded: nothing is left, and with room it is pulled", async () => {
  using volume = new Volume({ mebibytes: 120 });
  await using containerd = await PrivateContainerd.start({ root: volume.path });
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const image = fake.put("disk/filled:v1", [noise("filled", 20 * mebibyte)]);
  const [layer] = image.layers;
  const pause = gate();
  fake.behave = ({ path }) =>
    path.endsWith(layer?.digest ?? "?") ? { after: 100_000, afterwards: pause.opened } : undefined;
  const pulling = hawser.cri.pull(image.reference);
  await eventually(async () => expect(fake.openBlobs).toBeGreaterThan(0), "the pause");
  volume.fill(64 * 1024);
  pause.open();
  expect(JSON.stringify(await pulling)).toMatch(/no space left on device/);
  expect(await hawser.metrics()).toContain('hawser_fallbacks_total{reason="exhausted"} 1');
  await nothingLeft(containerd);
  expect(parked(containerd)).toEqual([]);
  await volume.empty();
  await hawser.cri.mustPull(image.reference);
  await nothingLeft(containerd);
});

test("the disk fills up while a layer is unpacked: containerd's own answer, nothing left", async () => {
  using volume = new Volume({ mebibytes: 100 });
  await using containerd = await PrivateContainerd.start({ root: volume.path });
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const stream = tar([dir("zeros"), file("zeros/many", Buffer.alloc(150 * mebibyte))]);
  const image = fake.put("disk/zeros:v1", [{ bytes: gzipSync(stream), tar: stream }]);
  expect(await refusedAlike(containerd, hawser, image.reference)).toMatch(/no space left on device/);
  expect(volume.freeBytes).toBeGreaterThan(90 * mebibyte);
});

describe("the disk is full from a call to containerd on", () => {
  let volume: Volume;
  let containerd: PrivateContainerd;
  let proxy: ContainerdProxy;
  let hawser: PrivateHawser;

  beforeAll(async () => {
    volume = new Volume({ mebibytes: 120 });
    containerd = await PrivateContainerd.start({ root: volume.path });
    proxy = await ContainerdProxy.start(containerd.address);
    hawser = await PrivateHawser.start({ containerd: proxy.address });
  });

  // One that fails half way does not leave its full disk to the next.
  afterEach(async () => {
    proxy.fault = () => undefined;
    await volume.empty();
  });

  afterAll(async () => {
    await hawser[Symbol.asyncDispose]();
    await proxy[Symbol.asyncDispose]();
    await containerd[Symbol.asyncDispose]();
    volume[Symbol.dispose]();
  });

  /** Fills the disk before a call goes on to containerd, once; `after` is a call that has to come first. */
  function fillAt(method: string, after = ""): () => boolean {
    let [hasPassed, isFull] = [after === "", false];
    proxy.fault = (path) => {
      if (hasPassed && !isFull && path.endsWith(method)) {
        isFull = true;
        volume.fill(0);
      }
      hasPassed ||= path.endsWith(after);
      // Without records of ours containerd is asked to pull what is there.
      const isRefused = method.endsWith("/PullImage") && path.endsWith("Images/Create");
      return isRefused ? { code: 13, details: "injected" } : undefined;
    };
    return () => isFull;
  }

  async function pulledWithRoom(reference: string): Promise<void> {
    proxy.fault = () => undefined;
    await volume.empty();
    await hawser.cri.mustPull(reference);
    await nothingLeft(containerd);
    expect(parked(containerd)).toEqual([]);
  }

  test.each([
    "Leases/Create",
    "Content/Write",
    "Snapshots/Prepare",
    "Snapshots/Commit",
    "Images/Create",
    "ImageService/PullImage",
  ])("%s: containerd's own answer, and with room it is pulled and nothing is left", async (method) => {
    const isFull = fillAt(method);
    const name = method.toLowerCase().replace("/", "-");
    const image = fake.put(`disk/${name}:v1`, [noise("one", 2 * mebibyte), noise("two", 2 * mebibyte)]);
    const reply = await hawser.cri.pull(image.reference);
    expect(isFull()).toBe(true);
    // What is left of containerd's database may be enough for the call, and for what follows it.
    expect("value" in reply ? "pulled" : reply.message).toMatch(/^pulled$|no space left on device/);
    const status = fields(await containerd.cri.imageStatus(image.reference));
    // containerd itself, when a record of several is one too many, may know the image all the same.
    if ("value" in reply || !method.endsWith("/PullImage")) expect(status.has(1)).toBe("value" in reply);
    await pulledWithRoom(image.reference);
  });

  test("keeping the layers, after the answer: the image is there, and nothing else is left", async () => {
    const isFull = fillAt("Content/Info", "Images/Create");
    const image = fake.put("disk/keeping:v1", [noise("one", 2 * mebibyte), noise("two", 2 * mebibyte)]);
    expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
    await eventually(async () => expect(isFull()).toBe(true), "the adoption");
    await pulledWithRoom(image.reference);
    const known = (await readContent(containerd)).map(
      (line) => line.slice("sha256:".length).split(" ", 1)[0] ?? "",
    );
    await eventually(
      async () =>
        expect(readdirSync(join(containerd.contentRoot, "blobs/sha256")).sort()).toEqual(known.sort()),
      "the collection of blobs that no record names",
    );
  });
});

test("inodes run out: containerd's own answer, nothing left", async () => {
  using volume = new Volume({ mebibytes: 200, inodes: 2_000 });
  await using containerd = await PrivateContainerd.start({ root: volume.path });
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const many = Array.from({ length: 3_000 }, (_, index) => file(`many/${index}`, "x"));
  const image = fake.put("disk/inodes:v1", [{ bytes: tarGz([dir("many"), ...many]) }]);
  expect(await refusedAlike(containerd, hawser, image.reference)).toMatch(/no space left on device/);
  // containerd removes what its own attempt has left in the background.
  await eventually(
    async () => expect(volume.freeInodes).toBeGreaterThan(1_000),
    "containerd's own clearing up",
  );
  const small = fake.put("disk/small:v1", [noise("small", 1000)]);
  await hawser.cri.mustPull(small.reference);
});

test("folders that cannot be written to: containerd's own answer, and a pull once they can", async () => {
  await using containerd = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const image = fake.put("disk/readonly:v1", [noise("readonly", mebibyte)]);
  const { contentRoot, snapshotterRoot } = containerd;
  // Seen by new path lookups of every process; a mounted file system with open files cannot be made read-only itself.
  for (const path of [`${containerd.root}/root/io.hawser`, contentRoot, snapshotterRoot]) {
    execFileSync("mount", ["--bind", path, path]);
    execFileSync("mount", ["-o", "remount,bind,ro", path]);
  }
  const reply = await hawser.cri.pull(image.reference);
  expect(JSON.stringify(reply)).toMatch(/read-only file system/);
  expect(await hawser.metrics()).toMatch(/hawser_fallbacks_total\{reason="internal"\} 1/);
  for (const path of [snapshotterRoot, contentRoot, `${containerd.root}/root/io.hawser`]) {
    execFileSync("umount", [path]);
  }
  await hawser.cri.mustPull(image.reference);
  await nothingLeft(containerd);
});

describe("file systems of their own", () => {
  test("for the snapshotter: pulls are accelerated", async () => {
    using volume = new Volume({ mebibytes: 300 });
    const snapshotter = `[plugins."io.containerd.snapshotter.v1.overlayfs"]\nroot_path = "${volume.path}/overlayfs"`;
    await using containerd = await PrivateContainerd.start({ more: snapshotter });
    await using hawser = await PrivateHawser.start({ containerd: containerd.address });
    const image = fake.put("disk/apart:v1", [noise("apart", mebibyte), noise("more", mebibyte)]);
    await hawser.cri.mustPull(image.reference);
    expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  });

  test("for its snapshots alone: nothing can be renamed there, so pulls go through to containerd", async () => {
    await using containerd = await PrivateContainerd.start();
    await containerd.stop();
    const snapshots = join(containerd.snapshotterRoot, "snapshots");
    execFileSync("mount", ["-t", "tmpfs", "tmpfs", snapshots]);
    await containerd.startAgain();
    await using hawser = await PrivateHawser.start({ containerd: containerd.address }, "ready");
    await hawser.untilLogged(/self-test/);
    expect(hawser.logs()).toMatch(/EXDEV|another file system/);
    const image = fake.put("disk/exdev:v1", [noise("exdev", mebibyte)]);
    await hawser.cri.mustPull(image.reference);
    expect(await hawser.metrics()).toContain('hawser_fallbacks_total{reason="self-test"} 1');
  });
});

test("three images at once through one worker, one connection and a spool for one layer: all end", async () => {
  await using containerd = await PrivateContainerd.start();
  const config = `${oneByOne}\n[unpack]\nmax_concurrent = 1\n[content]\nspool_max_size = "1MiB"`;
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const images = ["a", "b", "c"].map((name) =>
    fake.put(
      `disk/queue-${name}:v1`,
      Array.from({ length: 4 }, (_, index) => noise(`${name}${index}`, 900_000)),
    ),
  );
  await Promise.all(images.map(({ reference }) => hawser.cri.mustPull(reference)));
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 3');
  await nothingLeft(containerd);
  expect(parked(containerd)).toEqual([]);
  const content = (await readContent(containerd)).join("\n");
  for (const image of images) for (const { digest } of image.layers) expect(content).toContain(digest);
});

test("a layer that is larger than the spool may be is left to containerd", async () => {
  await using containerd = await PrivateContainerd.start();
  const config = '[content]\nspool_max_size = "1MiB"';
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const image = fake.put("disk/over:v1", [noise("over", 2 * mebibyte)]);
  await hawser.cri.mustPull(image.reference);
  await hawser.untilLogged(/over content\.spool_max_size/);
  expect(await hawser.metrics()).toContain('hawser_fallbacks_total{reason="exhausted"} 1');
});
