// The life of an image that Hawser pulled, on every containerd that there is: used, moved, shared, exported, removed.

import { execFileSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { busyboxLayers, type PushedImage, pushImage, pushPause, type TestLayer } from "../harness/images.ts";
import { compareWithContainerd, settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";
import { PrivateRegistry } from "../harness/registry.ts";
import { readSnapshots, readState } from "../harness/state.ts";
import { containerdRelease, minors, type Release } from "../harness/versions.ts";

let registry: PrivateRegistry;
let pause: PushedImage;

beforeAll(async () => {
  registry = await PrivateRegistry.start();
  pause = await pushPause(registry);
});

afterAll(async () => {
  await registry[Symbol.asyncDispose]();
});

/** A runnable image with a layer of its own. */
function layersFor(name: string): TestLayer[] {
  return [...busyboxLayers(), { bytes: tarGz([dir("own"), file("own/name", name)]) }];
}

async function push(name: string, index = false): Promise<PushedImage> {
  return await pushImage(registry, name, layersFor(name), { index });
}

/** Requests for layers since a former count of requests. */
function layerRequests(since: number, image: PushedImage): string[] {
  const digests = image.layers.map(({ digest }) => digest);
  return registry
    .requests()
    .slice(since)
    .filter(({ method, path }) => method === "GET" && digests.some((digest) => path.endsWith(digest)))
    .map(({ path }) => path);
}

/** Names of all blobs and all snapshots on disk. */
function onDisk(containerd: PrivateContainerd): string[] {
  const blobs = readdirSync(join(containerd.contentRoot, "blobs/sha256"));
  const ingests = readdirSync(join(containerd.contentRoot, "ingest"));
  return [...blobs, ...ingests, ...readdirSync(join(containerd.snapshotterRoot, "snapshots"))].sort();
}

/** What the self-test made is gone from the disk too: containerd collects its snapshots in its own time. */
async function untilCollected(containerd: PrivateContainerd): Promise<void> {
  await eventually(async () => {
    const folders = readdirSync(join(containerd.snapshotterRoot, "snapshots"));
    expect(folders).toHaveLength((await readSnapshots(containerd)).length);
  }, "the end of the self-test's snapshots");
}

describe.each(minors)("containerd %s", (minor) => {
  let release: Release;
  let containerd: PrivateContainerd;
  let hawser: PrivateHawser;

  beforeAll(async () => {
    release = containerdRelease(minor);
    containerd = await PrivateContainerd.start({ release, sandboxImage: pause.reference });
    hawser = await PrivateHawser.start({ containerd: containerd.address });
    await containerd.cri.mustPull(pause.reference);
  });

  afterAll(async () => {
    await hawser[Symbol.asyncDispose]();
    await containerd[Symbol.asyncDispose]();
  });

  test("is the version that it should be", () => {
    expect(release.version).toContain(`${minor}.`);
    expect(hawser.logs()).toMatch(new RegExp(`pulls are accelerated.*${minor.replace(".", "\\.")}\\.`, "s"));
  });

  test.each(["tag", "digest", "id"])("removed by %s: the disk is as before the pull", async (by) => {
    await untilCollected(containerd);
    const before = [await readState(containerd), onDisk(containerd)];
    const image = await push(`life/removed-${by}:v1`, true);
    const id = await hawser.cri.mustPull(image.reference);
    await settled(containerd);
    expect(onDisk(containerd).length).toBeGreaterThan((before[1] as string[]).length);
    const byDigest = `${registry.host}/${image.repository}@${image.target.digest}`;
    await hawser.cri.removeImage({ tag: image.reference, digest: byDigest, id }[by] ?? "");
    await eventually(
      async () => expect([await readState(containerd), onDisk(containerd)]).toEqual(before),
      "removal",
    );
  });

  test.each([true, false])(
    "containerd restarts (layers kept: %s): the image is still of use",
    async (kept) => {
      const image = await push(`life/restarted-${kept}:v1`);
      const config = `[content]\nkeep_layers = ${kept}`;
      await using own = await PrivateContainerd.start({ release, sandboxImage: pause.reference });
      await using puller = await PrivateHawser.start({ containerd: own.address, config });
      const id = await puller.cri.mustPull(image.reference);
      await settled(own);
      const before = await readState(own);
      await own.stop();
      await own.startAgain();
      expect(await readState(own)).toEqual(before);
      const name = image.reference.slice(registry.host.length + 1);
      expect(await own.run(id, ["cat", "/own/name"])).toBe(`${name}\n`);
      const archive = join(own.root, "export.tar");
      const exported = (): void => own.exportTo(archive, image.reference);
      if (kept) {
        exported();
        expect(execFileSync("tar", ["-tf", archive], { encoding: "utf8" })).toContain("blobs/sha256/");
      } else {
        // As with containerd's own discard_unpacked_layers.
        expect(exported).toThrow(/not found/);
      }
    },
  );

  test("pulled by containerd, then through Hawser, and the other way round: no layer is fetched twice", async () => {
    const one = await push(`life/theirs-${minor}:v1`);
    const two = await push(`life/ours-${minor}:v1`);
    await containerd.cri.mustPull(one.reference);
    await hawser.cri.mustPull(two.reference);
    await settled(containerd);
    const since = registry.requests().length;
    await hawser.cri.mustPull(one.reference);
    await containerd.cri.mustPull(two.reference);
    await settled(containerd);
    expect([...layerRequests(since, one), ...layerRequests(since, two)]).toEqual([]);
    // Access was checked all the same.
    expect(registry.requests().length).toBeGreaterThan(since);
  });

  test("layers whose blobs are there and whose snapshots are not: unpacked without being fetched", async () => {
    const image = await push(`life/content-${minor}:v1`);
    await using own = await PrivateContainerd.start({ release, sandboxImage: pause.reference });
    await using puller = await PrivateHawser.start({ containerd: own.address });
    // Into the content store alone, by whoever fetches images that way.
    own.ctr("content", "fetch", "--plain-http", "--platform", "linux/amd64", image.reference);
    const id = await puller.cri.mustPull(image.reference);
    await settled(own);
    const metrics = await puller.metrics();
    expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
    expect(metrics).toContain("hawser_downloaded_bytes_total 0\n");
    const name = image.reference.slice(registry.host.length + 1);
    expect(await own.run(id, ["cat", "/own/name"])).toBe(`${name}\n`);
    // What was lent is containerd's still.
    const archive = join(own.root, "export.tar");
    own.exportTo(archive, image.reference);
    expect(execFileSync("tar", ["-tf", archive], { encoding: "utf8" })).toContain("blobs/sha256/");
    expect(readdirSync(join(own.contentRoot, "../io.hawser/spool"), { recursive: true })).toEqual(
      expect.not.arrayContaining([expect.stringContaining("parked/")]),
    );
  });

  test("a tag that moves, three tags of one image, and the sandbox image itself", async () => {
    const options = { release, sandboxImage: pause.reference };
    const first = await push(`life/moving-${minor}:v1`);
    const tags = ["a", "b", "c"].map((tag) => `life/tags-${minor}:${tag}`);
    const tagged: string[] = [];
    for (const tag of tags) tagged.push((await pushImage(registry, tag, layersFor("tags"))).reference);
    let count = 0;
    const move = async (): Promise<void> => {
      count += 1;
      // Made twice, first for containerd and then for Hawser: to the second image, and back to where it began.
      const layers = layersFor(count % 2 === 1 ? "moved" : `life/moving-${minor}:v1`);
      await pushImage(registry, `life/moving-${minor}:v1`, layers);
    };
    const steps = [pause.reference, ...tagged, first.reference, move, first.reference, move, first.reference];
    const metrics = await compareWithContainerd(options, steps);
    expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 7');
  });
});

test("containerd 2.1 with a configuration of its own format", async () => {
  const release = containerdRelease("2.1");
  const image = await push("life/format:v1");
  const metrics = await compareWithContainerd({ release, format: 3, sandboxImage: pause.reference }, [
    pause.reference,
    image.reference,
  ]);
  expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 2');
});
