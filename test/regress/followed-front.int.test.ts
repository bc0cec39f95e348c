// Whoever looked at a pull that was there no more ended the process that kubelet speaks to: what could not be told to a
// follower was nobody's to catch.

import { randomBytes } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { get } from "node:http";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { askAdmin } from "../../src/front/client.ts";
import type { PullList } from "../../src/front/pulls.ts";
import { FakeRegistry, gate } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

let containerd: PrivateContainerd;
let fake: FakeRegistry;
let count = 0;

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

/** Follows a path until it is told no more; settles then. */
function follow(hawser: PrivateHawser, path: string): { readonly over: Promise<void> } {
  const over = new Promise<void>((resolve) => {
    const asked = get({ socketPath: join(hawser.root, "admin.sock"), path, agent: false }, (response) => {
      response.resume();
      response.once("close", resolve);
    });
    asked.on("error", () => resolve());
  });
  return { over };
}

/** A pull that comes to its half, with its id. */
async function begin(hawser: PrivateHawser) {
  count += 1;
  const half = gate();
  const image = fake.put(`followed/image-${count}:v1`, [
    { bytes: tarGz([file("noise", randomBytes(300_000))]) },
  ]);
  const [layer] = image.layers;
  fake.behave = ({ path }) =>
    path.endsWith(layer?.digest ?? "") ? { after: 150_000, afterwards: half.opened } : undefined;
  const pulling = hawser.cri.mustPull(image.reference);
  const id = await eventually(async () => {
    const { running } = (await askAdmin(join(hawser.root, "admin.sock"), "GET", "/pulls")) as PullList;
    const [pull] = running;
    if (!pull?.doneBytes) throw new Error("it has not begun");
    return pull.id;
  }, "a pull that goes on");
  return { id, half, pulling };
}

test("a pull's page is open when the process that pulls dies", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const { pid } = hawser;
  const { id, half, pulling } = await begin(hawser);
  const { over } = follow(hawser, `/changes/${id}`);
  fake.behave = () => undefined;
  hawser.kill("SIGKILL", ({ role }) => role === "puller");
  await pulling;
  await over;
  half.open();
  expect((await hawser.status()).pid).toBe(pid);
});

test("a pull's page is open when that ends, and none are kept", async () => {
  await using hawser = await PrivateHawser.start({
    containerd: containerd.address,
    config: "[trace]\nkeep = 0",
  });
  const { pid } = hawser;
  const { id, half, pulling } = await begin(hawser);
  const { over } = follow(hawser, `/changes/${id}`);
  half.open();
  await pulling;
  await over;
  expect((await hawser.status()).pid).toBe(pid);
});

test("the page of all is open, and something else lies where traces are", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const { pid } = hawser;
  const folder = join(hawser.root, "state/pulls");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${"1".repeat(15)}-${"2".repeat(16)}.json`), "{}");
  const { half, pulling } = await begin(hawser);
  follow(hawser, "/changes");
  half.open();
  await pulling;
  const { ended } = (await askAdmin(join(hawser.root, "admin.sock"), "GET", "/pulls")) as PullList;
  expect(ended).toHaveLength(1);
  expect((await hawser.status()).pid).toBe(pid);
});
