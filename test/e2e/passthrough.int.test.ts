// Pass-through: whatever is wrong with Hawser, calls reach containerd and its answers come back.

import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd, scratch } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

let containerd: PrivateContainerd;
let fake: FakeRegistry;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  fake = await FakeRegistry.start();
});

afterAll(async () => {
  await containerd[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

async function passesThrough(hawser: PrivateHawser, name: string, reason: string): Promise<void> {
  const image = fake.put(`through/${name}:v1`, [{ bytes: tarGz([file(name, name)]) }]);
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  const metrics = await hawser.metrics();
  expect(metrics).toContain(`hawser_pass_through{reason="${reason}"} 1`);
  expect(metrics).toContain(`hawser_fallbacks_total{reason="${reason}"} 1`);
  expect(metrics).toContain('hawser_pulls_total{result="ok",path="delegated"} 1');
  expect(hawser.logs()).toContain("every pull goes through to containerd");
}

test("a bad configuration: every problem is said, and every call passes through", async () => {
  const config = '[download]\nmax_concurent = 3\nchunk_size = "many"';
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config }, "ready");
  await passesThrough(hawser, "configuration", "configuration");
  expect(hawser.logs()).toContain("download.max_concurent: is not known; did you mean max_concurrent?");
  expect(hawser.logs()).toContain("download.chunk_size: expected a size");
});

test("a missing addon: the daemon says so and passes calls through", async () => {
  // The program without native/build beside it.
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const copy = mkdtempSync(join(scratch(), "no-addon-"));
  try {
    for (const name of ["dist", "package.json"])
      cpSync(join(root, name), join(copy, name), { recursive: true });
    symlinkSync(join(root, "node_modules"), join(copy, "node_modules"));
    const program = join(copy, "dist/main.js");
    await using hawser = await PrivateHawser.start({ containerd: containerd.address, program }, "ready");
    await passesThrough(hawser, "addon", "engine");
    expect(hawser.logs()).toContain("the native addon cannot be loaded");
  } finally {
    rmSync(copy, { recursive: true });
  }
});

test("the portable engine needs no addon", async () => {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const copy = mkdtempSync(join(scratch(), "no-addon-"));
  try {
    for (const name of ["dist", "package.json"])
      cpSync(join(root, name), join(copy, name), { recursive: true });
    symlinkSync(join(root, "node_modules"), join(copy, "node_modules"));
    const options = {
      containerd: containerd.address,
      program: join(copy, "dist/main.js"),
      config: '[unpack]\nengine = "portable"',
    };
    await using hawser = await PrivateHawser.start(options);
    const image = fake.put("through/portable:v1", [{ bytes: tarGz([file("plain", "x")]) }]);
    expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
    expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  } finally {
    rmSync(copy, { recursive: true });
  }
});

test("a self-test that fails, because staging is another mount than the snapshots", async () => {
  await using own = await PrivateContainerd.start();
  const folder = join(own.snapshotterRoot, "io.hawser");
  spawnSync("mkdir", ["-p", folder]);
  expect(spawnSync("mount", ["-t", "tmpfs", "tmpfs", folder]).status).toBe(0);
  await using hawser = await PrivateHawser.start({ containerd: own.address }, "ready");
  await hawser.untilLogged(/self-test failed while renaming a directory.*EXDEV/);
  await passesThrough(hawser, "selftest", "self-test");
});

test("deprecated registry settings are left to containerd", async () => {
  const more =
    '[plugins."io.containerd.grpc.v1.cri".registry.mirrors."example.com"]\n  endpoint = ["http://127.0.0.1:1"]';
  await using own = await PrivateContainerd.start({ configPath: "", more });
  await using hawser = await PrivateHawser.start({ containerd: own.address }, "ready");
  await hawser.untilLogged(/settings are of the deprecated kind \(mirrors\)/);
  await passesThrough(hawser, "deprecated", "unfit");
});

test("excluded registries are left to containerd, by name", async () => {
  const config = `[registry]\nexclude = ["${fake.host}"]`;
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const image = fake.put("through/excluded:v1", [{ bytes: tarGz([file("excluded")]) }]);
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  expect(await hawser.metrics()).toContain('hawser_fallbacks_total{reason="excluded"} 1');
});

test("containerd absent: UNAVAILABLE, and pulls are accelerated once it comes; and again after it was restarted", async () => {
  await using own = await PrivateContainerd.start();
  await own.stop();
  await using hawser = await PrivateHawser.start({ containerd: own.address }, "ready");
  await hawser.untilLogged(/containerd does not answer/);
  const image = fake.put("through/absent:v1", [{ bytes: tarGz([file("absent")]) }]);
  expect(await hawser.cri.pull(image.reference)).toMatchObject({ code: 14 });
  await expect(hawser.cri.listImages()).rejects.toMatchObject({ code: 14 });
  await own.startAgain();
  await hawser.untilLogged(/pulls are accelerated/);
  await eventually(async () => hawser.cri.listImages(), "an answer to ListImages");
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  await own.stop();
  await own.startAgain();
  await hawser.untilLogged(/pulls are accelerated[\s\S]*pulls are accelerated/);
  const next = fake.put("through/again:v1", [{ bytes: tarGz([file("again")]) }]);
  expect(await hawser.cri.pull(next.reference)).toEqual({ value: next.configDigest });
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 2');
});
