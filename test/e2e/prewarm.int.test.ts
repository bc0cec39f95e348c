// Pre-warming with a real containerd and registry: what is fetched ahead is there at once for whoever may have it, for
// nobody else, and is nobody's image until somebody pulls it.

import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { askAdmin } from "../../src/front/client.ts";
import type { PrewarmStatus } from "../../src/prewarm/prewarming.ts";
import type { ImageStatus } from "../../src/prewarm/report.ts";
import { FakeRegistry, gate } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd, scratch } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

const program = fileURLToPath(new URL("../../dist/main.js", import.meta.url));
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

test("what needs no credentials is listed where that is configured, and nothing else is", async () => {
  const [open, closed] = [makeImage(), makeImage()];
  const credentials = join(folder, "private.json");
  const auth = Buffer.from(`${login.username}:${login.password}`).toString("base64");
  const place = closed.reference.replace(/:v1$/, "");
  writeFileSync(credentials, JSON.stringify({ auths: { [place]: { auth } } }));
  registry.behave = (request) =>
    request.path.includes(place.split("/").at(-1) ?? "-") ? behind(request) : undefined;
  try {
    const config = `images = ["${open.reference}", "${closed.reference}"]\ncredentials = "${credentials}"`;
    await using hawser = await start(`${config}\nlist_anonymous = true`);
    await untilState(hawser, open, "warm");
    await untilState(hawser, closed, "warm");
    expect(await isListed(open)).toBe(true);
    expect(await isListed(closed)).toBe(false);
    collect();
    const before = blobRequests(open);
    const status = String(await containerd.cri.imageStatus(open.reference));
    expect(status).toContain(open.configDigest);
    expect(status).toContain(`@${open.manifestDigest}`);
    await mustPull(hawser, open);
    expect(blobRequests(open)).toBe(before);
    expect(await hawser.metrics()).toContain('hawser_prewarm_fetches_total{result="fetched"} 2');
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

test("the spool's room is given up to a pull that somebody waits for, whether or not it was begun ahead of need", async () => {
  const [first, second, third] = [1, 2, 3].map(() => {
    images += 1;
    const bytes = tarGz([file(`noise${images}`, randomBytes(700_000))]);
    return registry.put(`prewarm/large${images}:v1`, [{ bytes }]);
  }) as [Image, Image, Image];
  const paused = gate();
  const [stuck] = first.layers;
  registry.behave = ({ path }) =>
    path.endsWith(stuck?.digest ?? "none") ? { after: 20, afterwards: paused.opened } : undefined;
  const config = `images = ["${first.reference}"]\n[content]\nspool_max_size = "1MiB"`;
  await using hawser = await start(config);
  await eventually(async () => expect(blobRequests(first)).toBe(1), "a request");
  await mustPull(hawser, third);
  // What gave way begins again, and has the room once more before the next one comes.
  await eventually(async () => expect(blobRequests(first)).toBeGreaterThan(1), "another request");
  await ask(hawser, { add: [second.reference] });
  // By the fourth plan it is about to wait for room, or does.
  await hawser.untilMetric(/hawser_stage_duration_seconds_count\{stage="plan"\} 4/);
  await ask(hawser);
  expect(await statusOf(hawser, second)).toMatchObject({ state: "fetching" });
  await mustPull(hawser, second);
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 2');
  paused.open();
});

test("what is asked for on the command line, and what is warm, outlasts the daemon; what is not wanted does not", async () => {
  const [image, other] = [makeImage(), makeImage()];
  await using hawser = await start('keep = "1m"');
  const late = `${registry.host}/prewarm/late:v1`;
  await ask(hawser, { add: [image.reference, other.reference] });
  await ask(hawser, { add: [late], withinSeconds: 0.001 });
  await untilState(hawser, image, "warm");
  await untilState(hawser, other, "warm");
  await ask(hawser, { remove: [other.reference] });
  const before = blobRequests(image) + blobRequests(other);
  await hawser.stop();
  await hawser.startAgain();
  expect(await untilState(hawser, image, "warm")).toMatchObject({ sources: ["command"] });
  expect(await untilState(hawser, other, "warm")).toMatchObject({ sources: [] });
  const given = (await ask(hawser)).images.find(({ name }) => name === late);
  expect(given).toMatchObject({ state: "failed", error: "not here by its deadline", deadlineSeconds: 0 });
  expect(given?.nextSeconds).toBeUndefined();
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
  await expect(ask(hawser, { add: [image.reference, "ALSO NONE"] })).rejects.toThrow(
    "is not an image reference",
  );
  expect(await statusOf(hawser, image)).toBeUndefined();
  await expect(ask(hawser, { remove: [absent] })).rejects.toThrow(
    `${absent} was not asked for with "hawser prewarm add"; what wants it is: config`,
  );
  await mustPull(hawser, image);
  const late = registry.put("prewarm/absent:v1", [{ bytes: tarGz([file("late", "late")]) }]);
  await ask(hawser, { add: [absent] });
  await untilState(hawser, late, "warm");
});

test("the command line adds, waits, lists and takes out again, and says what is wrong in one line", async () => {
  const image = makeImage();
  await using hawser = await start("");
  const command = async (...args: readonly string[]): Promise<string> => {
    const all = [program, "prewarm", ...args, "--config", join(hawser.root, "hawser.toml")];
    const run = promisify(execFile)(process.execPath, all);
    const { stdout } = await run.catch((error: unknown) => {
      const { code, stderr } = error as { readonly code: number; readonly stderr: string };
      return { stdout: `exit code ${code}: ${stderr}` };
    });
    return stdout;
  };
  expect(await command("list")).not.toContain(image.reference);
  expect(await command("wait", image.reference)).toBe(
    `exit code 1: hawser: nobody wants ${image.reference} here: add it first\n`,
  );
  expect(await command("add", image.reference)).toBe("");
  expect(await command("wait")).toBe("");
  expect(await command("list")).toMatch(
    new RegExp(`^warm      ${image.reference}  for \\d+ s, 0\\.0 MiB, by command$`, "m"),
  );
  const { images: listed } = JSON.parse(await command("list", "--json")) as PrewarmStatus;
  expect(listed.find(({ name }) => name === image.reference)).toMatchObject({
    state: "warm",
    sources: ["command"],
  });
  expect(await command("rm", image.reference)).toBe("");
  expect(await command("rm", image.reference)).toBe(
    `exit code 1: hawser: ${image.reference} was not asked for with "hawser prewarm add"\n`,
  );
  const absent = `${registry.host}/prewarm/nowhere:v1`;
  await command("add", absent);
  expect(await command("wait", absent, "--timeout", "60")).toBe(
    `exit code 1: hawser: ${absent}: no host knows ${absent}\n`,
  );
  expect(await command("add", "NOT ONE")).toMatch(
    /^exit code [12]: hawser: "NOT ONE" is not an image reference.*\n$/,
  );
  const never = `${registry.host}/prewarm/never:v1`;
  registry.behave = ({ path }) => (path.includes("never") ? { status: 503 } : undefined);
  expect(await command("add", never, "--within", "1")).toBe("");
  expect(await command("wait", never)).toMatch(/^exit code 1: hawser: \S+: not here by its deadline.*\n$/);
  expect(await command("list")).toMatch(/never:v1 .*, given up\)$/m);
  registry.behave = () => undefined;
  expect(await command("add", absent, "--within", "never")).toMatch(
    /^exit code 2: hawser: expected seconds behind --within, not "never"/,
  );
  expect(await command("wait", "--timeout", "soon")).toMatch(
    /^exit code 2: hawser: expected seconds behind --timeout/,
  );
});

test("where the disk has less free than is to be left, nothing is fetched ahead", async () => {
  const image = makeImage();
  await using hawser = await start(`images = ["${image.reference}"]\nmin_free_disk = "900TiB"`);
  const { error } = await untilState(hawser, image, "failed");
  expect(error).toMatch(/MiB free and the image needs at least .* to spare \(prewarm\.min_free_disk\): /);
  expect(blobRequests(image)).toBe(0);
  await mustPull(hawser, image);
});
