// SELinux, with a fake of the kernel's part in it loaded in front of the daemon's libc (fakes/selinux.c): labels are real
// extended attributes, so what a pull leaves can be read with everybody's tools.

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { type FakeImage, FakeRegistry } from "../fakes/registry.ts";
import { dir, file, hardlink, symlink, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd, scratch } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";
import { activeExtracts, leftovers, readLayers, readLeases } from "../harness/state.ts";

const layerLabel = "system_u:object_r:container_ro_file_t:s0";
const blobLabel = "system_u:object_r:container_blob_t:s0";
const rootLabel = "system_u:object_r:container_var_lib_t:s0";

let fake: FakeRegistry;
let folder = "";
let library = "";
let containerd: PrivateContainerd;

beforeAll(async () => {
  fake = await FakeRegistry.start();
  folder = mkdtempSync(join(scratch(), "selinux-"));
  library = join(folder, "selinux.so");
  const source = fileURLToPath(new URL("../fakes/selinux.c", import.meta.url));
  execFileSync("cc", [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-O1",
    "-shared",
    "-fPIC",
    "-o",
    library,
    source,
    "-ldl",
  ]);
});

afterAll(async () => {
  rmSync(folder, { recursive: true });
  await fake[Symbol.asyncDispose]();
});

beforeEach(async () => {
  containerd = await PrivateContainerd.start();
  setLabel(join(containerd.root, "root"), rootLabel);
  setLabel(join(containerd.snapshotterRoot, "snapshots"), layerLabel);
  setLabel(join(containerd.contentRoot, "ingest"), blobLabel);
});

afterEach(async () => {
  await containerd[Symbol.asyncDispose]();
});

function setLabel(path: string, label: string): void {
  execFileSync("setfattr", ["-n", "security.selinux", "-v", label, path]);
}

function labelOf(path: string): string {
  const options = ["--only-values", "--absolute-names", "-n", "security.selinux", path];
  return execFileSync("getfattr", options, { encoding: "latin1" }).replace(/\0$/, "");
}

async function start(
  behaviour: "inherit" | "refuse" | "transition",
  until: "accelerating" | "ready",
): Promise<PrivateHawser> {
  const env = { LD_PRELOAD: library, FAKE_SELINUX: behaviour };
  return await PrivateHawser.start({ containerd: containerd.address, env }, until);
}

/** An image with one of each kind of file, whiteouts, and directories that take after a lower layer. */
function put(name: string): FakeImage {
  const lower = [
    dir("usr", { mode: 0o711, uid: 7 }),
    file("usr/gone"),
    dir("opaque"),
    file("opaque/below"),
    file("large", Buffer.alloc(600_000, name)),
  ];
  const upper = [
    file("usr/implied/file", "content"),
    file("usr/.wh.gone"),
    file("opaque/.wh..wh..opq"),
    symlink("link", "usr"),
    hardlink("hard", "usr/implied/file"),
    file("attributes", "", { pax: { "SCHILY.xattr.user.note": "x" } }),
    { name: "fifo", type: "6" },
  ];
  return fake.put(`selinux/${name}:v1`, [{ bytes: tarGz(lower) }, { bytes: tarGz(upper) }]);
}

async function leavesIt(hawser: PrivateHawser, name: string): Promise<void> {
  const image = put(name);
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  const metrics = await hawser.metrics();
  expect(metrics).toContain('hawser_pass_through{reason="selinux"} 1');
  expect(metrics).toContain('hawser_fallbacks_total{reason="selinux"} 1');
  expect(metrics).toContain('hawser_pulls_total{result="ok",path="delegated"} 1');
}

test("whatever is unpacked or kept has the label that containerd's own would have, layer roots included", async () => {
  await using hawser = await start("inherit", "accelerating");
  const image = put("labelled");
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  const layers = await readLayers(containerd);
  const nodes = [...layers.values()].flatMap((tree) => Array.from(tree));
  expect(nodes.length).toBeGreaterThan(15);
  const hex = `security.selinux=0x${Buffer.from(layerLabel).toString("hex")}`;
  // With and without the NUL character that counts as part of a label.
  const wrong = nodes.filter(([, { xattrs }]) => !new RegExp(`(?:^| )${hex}(?:00)?(?: |$)`).test(xattrs));
  expect(wrong).toEqual([]);
  expect(nodes.find(([path]) => path === "usr/implied")).toBeDefined();
  await eventually(async () => {
    expect(leftovers(containerd)).toEqual([]);
    expect(await readLeases(containerd)).toEqual([]);
  }, "the end of what follows the pull");
  for (const { digest } of image.layers) {
    expect(labelOf(join(containerd.contentRoot, "blobs/sha256", digest.slice("sha256:".length)))).toBe(
      blobLabel,
    );
  }
});

test("a label that may not be set: pulls go through, and the log names folder, error and remedy", async () => {
  await using hawser = await start("refuse", "ready");
  await hawser.untilLogged(
    /SELinux is on, and \S+\/io\.hawser\/staging\/\w+ cannot be labelled \S+container_ro_file_t:s0 \(EPERM\).*chcon --reference=/,
  );
  await leavesIt(hawser, "refused");
});

test("the remedy works: what lies in a folder that is labelled already needs no permission", async () => {
  const places = [
    [join(containerd.snapshotterRoot, "io.hawser/staging"), layerLabel],
    [join(containerd.root, "root/io.hawser/spool"), blobLabel],
  ] as const;
  for (const [place, label] of places) {
    mkdirSync(place, { recursive: true });
    setLabel(place, label);
  }
  await using hawser = await start("refuse", "accelerating");
  const image = put("remedied");
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
});

test("a policy that labels what Hawser makes otherwise: pulls go through, and the log names both labels", async () => {
  await using hawser = await start("transition", "ready");
  await hawser.untilLogged(
    /what Hawser makes in \S+ is labelled system_u:object_r:other_t:s0 instead of \S+container_ro_file_t:s0/,
  );
  await leavesIt(hawser, "otherwise");
});

test("relabelled while it runs: no tree with another label becomes a snapshot", async () => {
  await using hawser = await start("inherit", "accelerating");
  const staging = join(containerd.snapshotterRoot, "io.hawser/staging");
  for (const name of readdirSync(staging)) setLabel(join(staging, name), rootLabel);
  const image = put("relabelled");
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  expect(await hawser.metrics()).toContain('hawser_fallbacks_total{reason="unsupported"} 1');
  expect(hawser.logs()).toMatch(/is labelled \S+container_var_lib_t:s0, and \S+\/fs of containerd's/);
  const labels = [...(await readLayers(containerd)).values()].map((tree) => tree.get("")?.xattrs ?? "");
  expect(labels.join(" ")).not.toContain(Buffer.from(rootLabel).toString("hex"));
  expect(await activeExtracts(containerd)).toEqual([]);
});
