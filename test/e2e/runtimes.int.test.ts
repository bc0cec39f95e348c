// Node 20, 22 and 24: one real pull by the built program with the addon that was built once, and on those that do not run
// these tests anyway the unit tests of what leans on Node itself: its sockets, TLS, HTTP/2, threads and descriptors.

import { execFile, spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { FakeRegistry } from "../fakes/registry.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { oddLayers } from "../harness/odd.ts";

/** The binaries of npm's package "node", for this machine. */
const versions = ["20.19.5", "22.23.3", "24.9.0"];
const cache = "/var/tmp/hawser-node";
const leaning = [
  "cri",
  "native",
  "pull",
  "registry/connector",
  "registry/download",
  "registry/line",
  "registry/proxy",
  "registry/tls",
  "spool",
].map((place) => `test/${place}`);

let fake: FakeRegistry;

beforeAll(async () => {
  fake = await FakeRegistry.start();
});

afterAll(async () => {
  await fake[Symbol.asyncDispose]();
});

function nodeOf(version: string): string {
  const folder = join(cache, version);
  const binary = join(folder, "node_modules", `node-linux-${process.arch}`, "bin/node");
  if (existsSync(binary)) return binary;
  mkdirSync(folder, { recursive: true });
  const args = [
    "install",
    "--prefix",
    folder,
    "--no-audit",
    "--no-fund",
    "--no-save",
    `node-linux-${process.arch}@${version}`,
  ];
  const install = spawnSync("npm", args, { encoding: "utf8" });
  if (install.status !== 0) throw new Error(`npm ${args.join(" ")}: ${install.stderr}`);
  return binary;
}

function majorOf(version: string): string {
  return version.split(".")[0] ?? "";
}

/** Throws what they print when one of them fails. */
async function runUnitTests(node: string): Promise<void> {
  const vitest = fileURLToPath(new URL("../../node_modules/vitest/vitest.mjs", import.meta.url));
  const args = [vitest, "run", "--project", "unit", "--reporter", "dot", ...leaning];
  const cwd = fileURLToPath(new URL("../..", import.meta.url));
  await promisify(execFile)(node, args, { cwd, maxBuffer: 2 ** 26 }).catch((error: unknown) => {
    const { stdout, stderr } = error as { readonly stdout: string; readonly stderr: string };
    throw new Error(`${node}:\n${stdout}${stderr}`, { cause: error });
  });
}

const others = versions.filter((version) => majorOf(version) !== majorOf(process.versions.node));

test(`unit tests on Node ${others.join(" and ")}`, { timeout: 300_000 }, async () => {
  const runs = others.map(async (version) => await runUnitTests(nodeOf(version)));
  await Promise.allSettled(runs);
  await Promise.all(runs);
});

test.each(versions)("Node %s", { timeout: 300_000 }, async (version) => {
  const node = nodeOf(version);
  expect(spawnSync(node, ["--version"], { encoding: "utf8" }).stdout.trim()).toBe(`v${version}`);
  await using containerd = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, node });
  const image = fake.put(`runtimes/${version}:v1`, oddLayers());
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  const metrics = await hawser.metrics();
  expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  expect(metrics).toContain(`hawser_build_info{version="0.1.0",node="v${version}"} 1`);
});
