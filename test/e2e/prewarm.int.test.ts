// Pre-warming with a real containerd and registry: what is fetched ahead is there at once for whoever may have it, for
// nobody else, and is nobody's image until somebody pulls it.

import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { askAdmin } from "../../src/front/client.ts";
import type { ImageStatus, PrewarmStatus } from "../../src/prewarm/prewarming.ts";
import { FakeRegistry, gate } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd, scratch } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

const login = { username: "somebody", password: "secret-of-somebody" };

let registry: FakeRegistry;
let containerd: PrivateContainerd;
let folder = "";
let images = 0;

beforeAll(async () => {
  folder = mkdtempSync(join(scratch(), "prewarm-"));
  [registry, containerd] = await Promise.all([FakeRegistry.start(), PrivateContainerd.start()]);
});

afterAll(async () => {
  await registry[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

/** What is wrong unless the registry is shown these credentials. */
const behind = ({ authorization }: { authorization: string | undefined }) => {
  const right = `Basic ${Buffer.from(`${login.username}:${login.password}`).toString("base64")}`;
  if (authorization === right) return undefined;
  return { status: 401, headers: { "www-authenticate": 'Basic realm="fake"' } };
};

/** Two layers that no other image has. */
function makeImage() {
  images += 1;
  const layers = [1, 2].map((layer) => ({
    bytes: tarGz([file(`layer${layer}`, `layer ${layer} of image ${images}`)]),
  }));
  return registry.put(`prewarm/image${images}:v1`, layers);
}

type Image = ReturnType<typeof makeImage>;

function blobRequests({ layers }: Image): number {
  return layers.reduce((sum, { digest }) => sum + registry.rangesOf(digest).length, 0);
}

async function start(config: string): Promise<PrivateHawser> {
  return await PrivateHawser.start({ containerd: containerd.address, config: `[prewarm]\n${config}` });
}

async function ask(hawser: PrivateHawser, body?: unknown): Promise<PrewarmStatus> {
  const socket = join(hawser.root, "admin.sock");
  return (await askAdmin(socket, body ? "POST" : "GET", "/prewarm", body)) as PrewarmStatus;
}

async function statusOf(hawser: PrivateHawser, { reference }: Image): Promise<ImageStatus | undefined> {
  return (await ask(hawser)).images.find(({ name }) => name === reference);
}

async function untilState(
  hawser: PrivateHawser,
  image: Image,
  state: ImageStatus["state"],
): Promise<ImageStatus> {
  return await eventually(async () => {
    const status = await statusOf(hawser, image);
    if (status?.state !== state) throw new Error(JSON.stringify(status));
    return status;
  }, `${image.reference} ${state}`);
}

async function isListed({ configDigest }: Image): Promise<boolean> {
  return (await containerd.cri.listImages()).includes(configDigest);
}

/** What nobody holds goes. */
function collect(): void {
  const id = containerd.ctr("leases", "create").trim();
  containerd.ctr("leases", "delete", "--sync", id);
}

async function mustPull(hawser: PrivateHawser, image: Image, auth?: typeof login): Promise<void> {
  expect(await hawser.cri.pull(image.reference, auth)).toEqual({ value: image.configDigest });
}

test("an image of the list is warm and not listed, outlives garbage collection, and is there at once for a pull", async () => {
  const image = makeImage();
  await using hawser = await start(`images = ["${image.reference}"]`);
  const status = await untilState(hawser, image, "warm");
  expect(status).toMatchObject({ sources: ["config"], target: image.manifestDigest });
  expect(await isListed(image)).toBe(false);
  collect();
  const before = blobRequests(image);
  expect(before).toBe(2);
  await mustPull(hawser, image);
  expect(blobRequests(image)).toBe(before);
  expect(await isListed(image)).toBe(true);
  expect(await hawser.metrics()).toContain('hawser_prewarm_images{state="warm"} 1');
});

test("who has no right to a warm image is refused by its registry, and who has one has it at once", async () => {
  const image = makeImage();
  const credentials = join(folder, "config.json");
  const auth = Buffer.from(`${login.username}:${login.password}`).toString("base64");
  writeFileSync(credentials, JSON.stringify({ auths: { [registry.host]: { auth } } }));
  registry.behave = behind;
  try {
    await using hawser = await start(`images = ["${image.reference}"]\ncredentials = "${credentials}"`);
    await untilState(hawser, image, "warm");
    expect(await isListed(image)).toBe(false);
    const refused = await hawser.cri.pull(image.reference);
    expect(refused).toEqual(await containerd.cri.pull(image.reference));
    expect(JSON.stringify(refused)).toMatch(/no basic auth credentials|401/);
    const wrong = await hawser.cri.pull(image.reference, { ...login, password: "wrong" });
    expect(JSON.stringify(wrong)).toContain("401");
    expect(await isListed(image)).toBe(false);
    const before = blobRequests(image);
    await mustPull(hawser, image, login);
    expect(blobRequests(image)).toBe(before);
    expect(hawser.logs()).not.toContain(login.password);
  } finally {
    registry.behave = () => undefined;
  }
});

test("a pull joins what is fetched ahead, and nothing of it is fetched twice", async () => {
  const image = makeImage();
  const paused = gate();
  const [first] = image.layers;
  registry.behave = ({ path }) =>
    path.endsWith(first?.digest ?? "none") ? { after: 20, afterwards: paused.opened } : undefined;
  try {
    await using hawser = await start(`images = ["${image.reference}"]`);
    await eventually(async () => expect(blobRequests(image)).toBe(2), "requests for both layers");
    const pull = hawser.cri.pull(image.reference);
    await hawser.untilMetric(/hawser_in_flight\{what="pulls"\} 1/);
    paused.open();
    expect(await pull).toEqual({ value: image.configDigest });
    expect(blobRequests(image)).toBe(2);
    expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  } finally {
    registry.behave = () => undefined;
  }
});

test("what is asked for on the command line, and what is warm, outlasts the daemon; what is not wanted does not", async () => {
  const [image, other] = [makeImage(), makeImage()];
  await using hawser = await start('keep = "1m"');
  await ask(hawser, { add: [image.reference, other.reference] });
  await untilState(hawser, image, "warm");
  await untilState(hawser, other, "warm");
  await ask(hawser, { remove: [other.reference] });
  const before = blobRequests(image) + blobRequests(other);
  await hawser.stop();
  await hawser.startAgain();
  expect(await untilState(hawser, image, "warm")).toMatchObject({ sources: ["command"] });
  expect(await untilState(hawser, other, "warm")).toMatchObject({ sources: [] });
  collect();
  await mustPull(hawser, image);
  expect(blobRequests(image) + blobRequests(other)).toBe(before);
});

test("a directory names images, as a ConfigMap that is mounted there and exchanged", async () => {
  const [image, other] = [makeImage(), makeImage()];
  const mount = join(folder, "mount");
  const put = (version: string, text: string): void => {
    mkdirSync(join(mount, version), { recursive: true });
    writeFileSync(join(mount, version, "images"), text);
    rmSync(join(mount, "..data"), { force: true });
    symlinkSync(version, join(mount, "..data"));
  };
  put("..1", `# for the morning\n${image.reference}\nNot A Reference\n`);
  symlinkSync("..data/images", join(mount, "images"));
  await using hawser = await start(`directory = "${mount}"`);
  await untilState(hawser, image, "warm");
  const { troubles } = await ask(hawser);
  expect(troubles).toEqual([`${mount}: no image references: "Not A Reference"`]);
  put("..2", `${other.reference}\n`);
  await untilState(hawser, other, "warm");
  expect(await statusOf(hawser, image)).toMatchObject({ state: "warm", sources: [] });
  expect((await ask(hawser)).troubles).toEqual([]);
});

test("what cannot be had is told, is tried again when it is asked for, and does not keep pulls from anything", async () => {
  const image = makeImage();
  const absent = `${registry.host}/prewarm/absent:v1`;
  await using hawser = await start(`images = ["${absent}", "NOT A REFERENCE"]`);
  const failed = await eventually(async () => {
    const [status] = (await ask(hawser)).images;
    if (status?.state !== "failed") throw new Error(JSON.stringify(status));
    return status;
  }, "a failure");
  expect(failed).toMatchObject({ name: absent, attempts: 1, temporary: false });
  expect(failed.error).toBe(`no host knows ${absent}`);
  expect((await ask(hawser)).troubles).toEqual(['prewarm.images: no image references: "NOT A REFERENCE"']);
  await expect(ask(hawser, { add: ["ALSO NONE"] })).rejects.toThrow("is not an image reference");
  await mustPull(hawser, image);
  const late = registry.put("prewarm/absent:v1", [{ bytes: tarGz([file("late", "late")]) }]);
  await ask(hawser, { add: [absent] });
  await untilState(hawser, late, "warm");
});

test("where the disk has less free than is to be left, nothing is fetched ahead", async () => {
  const image = makeImage();
  await using hawser = await start(`images = ["${image.reference}"]\nmin_free_disk = "900TiB"`);
  const { error } = await untilState(hawser, image, "failed");
  expect(error).toMatch(/MiB free and the image needs at least/);
  expect(blobRequests(image)).toBe(0);
  await mustPull(hawser, image);
});
