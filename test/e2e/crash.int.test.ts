// kill -9 at every stage of a pull: the next daemon sweeps what is dead, goes on from what was received, finishes what
// was promised, and the image is the one that containerd makes.

import { randomBytes } from "node:crypto";
import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { createContainerd } from "../../src/containerd/client.ts";
import { hexOf, parseDigest } from "../../src/oci/digest.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { bytesAsked, journals, overlapBytes, readLeft } from "../harness/crash.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";
import {
  activeExtracts,
  leftovers,
  parked,
  readContent,
  readLayers,
  readLeases,
  readState,
} from "../harness/state.ts";
import { differences, namesBelow } from "../harness/tree.ts";

const config = '[download]\nchunk_size = "64KiB"\n[unpack]\nmax_concurrent = 2';

let containerd: PrivateContainerd;
let fake: FakeRegistry;
/** Every image that was pulled, for the comparison at the end. */
const pulled: string[] = [];
/** A layer of theirs that is to be missing from the content store. */
let notKept: string | undefined;

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

function put(name: string, layers = 3, bytes = 1_500_000): FakeImage {
  const made = Array.from({ length: layers }, (_, index) => ({
    bytes: tarGz([
      dir(`${index}`),
      file(`${index}/noise`, randomBytes(bytes)),
      file("same", `${name}${index}`),
    ]),
  }));
  return fake.put(`crash/${name}:v1`, made);
}

async function nothingLeft(): Promise<void> {
  await eventually(async () => {
    expect(await readLeases(containerd)).toEqual([]);
    expect(leftovers(containerd)).toEqual([]);
    expect(await activeExtracts(containerd)).toEqual([]);
    expect(namesBelow(`${containerd.root}/root/io.hawser/instances`)).toHaveLength(1);
  }, "the end of what follows a pull");
}

/** Digests of what is in the content store. */
async function keptBlobs(): Promise<string[]> {
  return (await readContent(containerd)).map((line) => line.split(" ", 1)[0] ?? "");
}

/** Starts again and pulls: nothing that a journal says is written may be asked for, and all is as it should be. */
async function recover(hawser: PrivateHawser, image: FakeImage): Promise<void> {
  const left = readLeft(containerd);
  const before = fake.asked.length;
  await hawser.startAgain();
  await hawser.cri.mustPull(image.reference);
  pulled.push(image.reference);
  await nothingLeft();
  expect(parked(containerd)).toEqual([]);
  const asked = fake.asked.slice(before);
  for (const { digest, bytes } of image.layers) {
    const again = bytesAsked(asked, digest, bytes.length);
    const written = left.filter((one) => one.digest === digest).flatMap((one) => one.written);
    expect(overlapBytes(again, written), digest).toBe(0);
    expect(await keptBlobs()).toContain(digest);
  }
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
}

test.each([
  "resolved",
  "leased",
  "planned",
  "spool-taken",
  "range-written=4",
  "range-written=60",
  "unpacked=2",
  "prepared",
  "placed",
  "committed=2",
  "keep-noted=2",
  "complete",
  "registered",
])("killed at %s, and pulled again by the next daemon", async (failpoint) => {
  const image = put(failpoint.replace("=", "-"));
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config, failpoint });
  expect(await hawser.cri.pull(image.reference)).toHaveProperty("code", 14);
  await hawser.untilKilled();
  await recover(hawser, image);
});

/** A pull that its caller leaves in the middle of its second layer. */
async function breakOff(hawser: PrivateHawser, image: FakeImage): Promise<void> {
  const pause = gate();
  const [, held] = image.layers;
  let sent = 0;
  fake.behave = ({ path }) =>
    path.endsWith(held?.digest ?? "?") && ++sent > 20 ? { after: 10, afterwards: pause.opened } : undefined;
  const leave = new AbortController();
  const pulling = hawser.cri.pull(image.reference, undefined, { signal: leave.signal });
  await eventually(async () => {
    const left = readLeft(containerd).find(({ digest }) => digest === held?.digest);
    expect(left?.written.length).toBeGreaterThan(0);
  }, "journaled bytes of the second layer");
  leave.abort();
  await pulling;
  pause.open();
  fake.behave = () => undefined;
}

test("killed while a broken-off pull is parked, and pulled again by the next daemon", async () => {
  const image = put("parking", 3, 3_000_000);
  const failpoint = "parking=2";
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config, failpoint });
  await breakOff(hawser, image);
  await hawser.untilKilled();
  expect(readLeft(containerd).some(({ written }) => written.length > 0)).toBe(true);
  await recover(hawser, image);
});

test("killed while what is parked is taken up again, and pulled by the next daemon", async () => {
  const image = put("unparking", 3, 3_000_000);
  const failpoint = "unparking=2";
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config, failpoint });
  await breakOff(hawser, image);
  await eventually(async () => expect(leftovers(containerd)).toEqual([]), "the end of the first pull");
  expect(parked(containerd).length).toBeGreaterThan(1);
  expect(await hawser.cri.pull(image.reference)).toHaveProperty("code", 14);
  await hawser.untilKilled();
  await recover(hawser, image);
});

test.each(["claimed", "adoption-placing", "adoption-placed=2"])(
  "the next daemon is killed as well, at %s of its recovery: the one behind it keeps the blobs",
  async (failpoint) => {
    const image = put(`twice-${failpoint.replace("=", "-")}`);
    await using hawser = await PrivateHawser.start({
      containerd: containerd.address,
      config,
      failpoint: "registered",
    });
    await hawser.cri.pull(image.reference);
    pulled.push(image.reference);
    await hawser.untilKilled();
    const before = fake.asked.length;
    // It may come to its end before it is ready.
    await hawser.startAgain(failpoint).catch(() => {});
    await hawser.untilKilled();
    await hawser.startAgain();
    await eventually(async () => {
      for (const { digest } of image.layers) expect(await keptBlobs()).toContain(digest);
    }, "adoption of every layer");
    await nothingLeft();
    expect(fake.asked.length).toBe(before);
  },
);

test.each(["adoption-placed", "adoption-placed=2", "adopted=2"])(
  "killed after the answer, at %s: the next daemon keeps the blobs, and nobody pulls again",
  async (failpoint) => {
    const image = put(failpoint.replace("=", "-"));
    await using hawser = await PrivateHawser.start({ containerd: containerd.address, config, failpoint });
    await hawser.cri.mustPull(image.reference);
    pulled.push(image.reference);
    await hawser.untilKilled();
    const before = fake.asked.length;
    await hawser.startAgain();
    await nothingLeft();
    await eventually(async () => {
      for (const { digest } of image.layers) expect(await keptBlobs()).toContain(digest);
    }, "adoption of every layer");
    expect(fake.asked.length).toBe(before);
  },
);

test("killed while a blob is placed that another namespace has: that one's is there all the time", async () => {
  const image = put("elsewhere", 1);
  const [layer] = image.layers;
  if (!layer) throw new Error("no layer");
  const digest = parseDigest(layer.digest);
  const { address } = containerd;
  const other = createContainerd({ address, namespace: "other", configFile: "", snapshotter: undefined });
  await other.facts(new AbortController().signal);
  const lease = await other.lease({});
  await lease.putContent({ mediaType: "any", digest, size: layer.bytes.length }, layer.bytes, {});
  const failpoint = "adoption-placing";
  await using hawser = await PrivateHawser.start({ containerd: address, config, failpoint });
  await hawser.cri.mustPull(image.reference);
  pulled.push(image.reference);
  await hawser.untilKilled();
  const blob = `${containerd.contentRoot}/blobs/sha256/${hexOf(digest)}`;
  expect(readFileSync(blob).equals(layer.bytes)).toBe(true);
  await hawser.startAgain();
  await eventually(async () => expect(await keptBlobs()).toContain(digest), "the adoption");
  await nothingLeft();
  expect(readFileSync(blob).equals(layer.bytes)).toBe(true);
  await lease[Symbol.asyncDispose]();
  other.close();
});

test("after a restart of the machine nothing of a spool is believed", async () => {
  const image = put("rebooted");
  const failpoint = "journaled";
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config, failpoint });
  await hawser.cri.pull(image.reference);
  await hawser.untilKilled();
  expect(readLeft(containerd).some(({ written }) => written.length > 0)).toBe(true);
  for (const journal of journals(containerd)) {
    writeFileSync(journal, readFileSync(journal, "utf8").replace(/"boot":"[^"]+"/, '"boot":"another"'));
  }
  const before = fake.asked.length;
  await hawser.startAgain();
  await hawser.cri.mustPull(image.reference);
  pulled.push(image.reference);
  await nothingLeft();
  for (const { digest, bytes } of image.layers) {
    const asked = bytesAsked(fake.asked.slice(before), digest, bytes.length);
    expect(asked.reduce((sum, { start, end }) => sum + end - start, 0)).toBe(bytes.length);
  }
});

test("a spool that turns out wrong is discarded once, and the blob fetched whole", async () => {
  const image = put("flipped", 1);
  const [layer] = image.layers;
  const failpoint = "journaled";
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config, failpoint });
  await hawser.cri.pull(image.reference);
  await hawser.untilKilled();
  const [left] = readLeft(containerd);
  const [range] = left?.written ?? [];
  if (!left || !range || !layer) throw new Error("nothing was left");
  const fd = openSync(left.file, "r+");
  writeSync(fd, Buffer.from("wrong"), 0, 5, range.start + 1000);
  closeSync(fd);
  const before = fake.asked.length;
  await hawser.startAgain();
  await hawser.cri.mustPull(image.reference);
  pulled.push(image.reference);
  await nothingLeft();
  const asked = bytesAsked(fake.asked.slice(before), layer.digest, layer.bytes.length);
  const once = left.written.reduce((sum, { start, end }) => sum + end - start, 0);
  const total = asked.reduce((sum, { start, end }) => sum + end - start, 0);
  expect(total).toBe(layer.bytes.length - once + layer.bytes.length);
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
});

test("a blob that was to be kept and was changed meanwhile is not kept, and the image stays", async () => {
  const image = put("tampered", 1);
  const failpoint = "registered";
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config, failpoint });
  await hawser.cri.pull(image.reference);
  await hawser.untilKilled();
  const left = readLeft(containerd).find(({ isKept }) => isKept);
  writeFileSync(left?.file ?? "", randomBytes(image.layers[0]?.bytes.length ?? 0));
  await hawser.startAgain();
  await hawser.untilLogged(/could not be kept/);
  await nothingLeft();
  expect(await keptBlobs()).not.toContain(image.layers[0]?.digest);
  await hawser.cri.mustPull(image.reference);
  pulled.push(image.reference);
  notKept = image.layers[0]?.digest;
});

test("two daemons on one containerd: what the living one holds survives the other's death and sweep", async () => {
  const [slow, other] = [put("two-slow"), put("two-other")];
  await using living = await PrivateHawser.start({ containerd: containerd.address, config });
  const failpoint = "unpacked";
  await using dying = await PrivateHawser.start({ containerd: containerd.address, config, failpoint });
  const pause = gate();
  const held = slow.layers[1]?.digest ?? "";
  fake.behave = ({ path }) => (path.endsWith(held) ? { after: 20_000, afterwards: pause.opened } : undefined);
  const pulling = living.cri.pull(slow.reference);
  await eventually(async () => expect(fake.rangesOf(held).length).toBeGreaterThan(1), "the pause");
  await dying.cri.pull(other.reference);
  await dying.untilKilled();
  await dying.startAgain();
  await dying.untilLogged(/removed what dead instances left/);
  expect(await readLeases(containerd)).toHaveLength(1);
  pause.open();
  expect(await pulling).not.toHaveProperty("code");
  expect(await living.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  await dying.cri.mustPull(other.reference);
  pulled.push(slow.reference, other.reference);
  await dying.stop();
  await nothingLeft();
});

test("containerd makes the same of every image above", async () => {
  await using oracle = await PrivateContainerd.start();
  for (const reference of pulled) await oracle.cri.mustPull(reference);
  const [theirs, ours] = [await readLayers(oracle), await readLayers(containerd)];
  expect(theirs.size).toBeGreaterThan(40);
  for (const [chainID, tree] of theirs) {
    expect(differences(tree, ours.get(chainID) ?? new Map(), new Set()), chainID).toEqual([]);
  }
  const [left, right] = [await readState(oracle), await readState(containerd)];
  expect(right.images).toEqual(left.images);
  expect(right.content).toEqual(left.content.filter((line) => !line.startsWith(notKept ?? "?")));
});
