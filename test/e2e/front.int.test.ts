// The front and the process that pulls: whatever becomes of the one that works, no call of a client fails for it.

import { randomBytes } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { askDaemon } from "../../src/cli/admin.ts";
import type { Status } from "../../src/front/admin.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { Callers } from "../harness/callers.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";

let containerd: PrivateContainerd;
let fake: FakeRegistry;

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

let count = 0;

function put(bytes = 100_000): FakeImage {
  count += 1;
  const layers = [0, 1].map((index) => ({
    bytes: tarGz([dir(`${index}`), file(`${index}/noise`, randomBytes(bytes)), file(`n${count}`)]),
  }));
  return fake.put(`front/image-${count}:v1`, layers);
}

async function statusOf(hawser: PrivateHawser): Promise<Status> {
  return (await askDaemon(join(hawser.root, "hawser.toml"), "GET", "/status")) as Status;
}

/** The process that serves pulls, once there is one. */
async function pullerOf(hawser: PrivateHawser, other?: number): Promise<number> {
  return await eventually(async () => {
    const { accelerating, pullers } = await statusOf(hawser);
    const pid = pullers.find(({ state }) => state === "serving")?.pid;
    if (pid === undefined || pid === other || !accelerating) throw new Error("not yet");
    return pid;
  }, "another process that pulls");
}

test("kill -9 of the process that pulls, again and again, while clients call without a pause: no call fails", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  await using callers = new Callers(hawser.socket, () => put().reference);
  let pid = 0;
  // The pauses between them grow, so that each takes as long as all those before.
  for (let kills = 0; kills < 6; kills++) {
    pid = await pullerOf(hawser, pid);
    const { pulls } = callers;
    await eventually(async () => expect(callers.pulls).toBeGreaterThan(pulls), "a pull");
    process.kill(pid, "SIGKILL");
  }
  await callers.finish();
  await settled(containerd);
});

test("killed in the middle of a pull: the same call goes to containerd, and the next pull is ours again", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const image = put();
  const pause = gate();
  let isPaused = true;
  fake.behave = ({ path }) =>
    isPaused && path.endsWith(image.layers[1]?.digest ?? "-")
      ? { after: 1000, afterwards: pause.opened }
      : undefined;
  const reply = hawser.cri.pull(image.reference);
  const pid = await pullerOf(hawser);
  await eventually(
    async () => expect(fake.rangesOf(image.layers[1]?.digest ?? "")).not.toEqual([]),
    "the download",
  );
  isPaused = false;
  process.kill(pid, "SIGKILL");
  expect(await reply).toEqual({ value: image.configDigest });
  pause.open();
  expect(hawser.logs()).toContain("the process that pulls ended");
  expect(await hawser.metrics()).toContain('hawser_fallbacks_total{reason="lost"} 1');
  await pullerOf(hawser, pid);
  await hawser.cri.mustPull(put().reference);
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  await settled(containerd);
});

test("without fallback.enabled the caller is told that its pull was lost", async () => {
  const config = "[fallback]\nenabled = false";
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const image = put();
  const pause = gate();
  fake.behave = ({ path }) =>
    image.layers.some(({ digest }) => path.endsWith(digest))
      ? { after: 10, afterwards: pause.opened }
      : undefined;
  const reply = hawser.cri.pull(image.reference);
  await eventually(async () => expect(fake.openBlobs).toBeGreaterThan(0), "the download");
  process.kill(await pullerOf(hawser), "SIGKILL");
  expect(await reply).toMatchObject({ code: 14, message: /the process that pulls went away/ });
  pause.open();
  await pullerOf(hawser);
});

test("an error that the process that pulls means to give is the caller's, and told once", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  fake.behave = () => ({ status: 401, headers: { "www-authenticate": 'Basic realm="r"' } });
  const image = put();
  const reply = await hawser.cri.pull(image.reference, { username: "u", password: "p" });
  expect(reply).toMatchObject({ code: 2, message: /401/ });
  expect(await hawser.metrics()).not.toContain("hawser_fallbacks_total{");
});

test("the front is gone: the process that pulls ends by itself, and leaves nothing", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const pid = await pullerOf(hawser);
  process.kill(hawser.pid, "SIGKILL");
  await eventually(async () => expect(() => process.kill(pid, 0)).toThrow(/ESRCH/), "the end of the process");
  await hawser.startAgain();
  await settled(containerd);
});

test("passthrough: on, off, and on for good, over a restart", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const config = join(hawser.root, "hawser.toml");
  const set = async (on: boolean, persistent = false): Promise<Status> =>
    (await askDaemon(config, "PUT", "/passthrough", { on, persistent })) as Status;
  expect((await set(true)).accelerating).toBe(false);
  await hawser.cri.mustPull(put().reference);
  let metrics = await hawser.metrics();
  expect(metrics).toContain('hawser_fallbacks_total{reason="switch"} 1');
  expect(metrics).toContain('hawser_pass_through{reason="switch"} 1');
  expect(metrics).not.toContain('path="accelerated"} 1');
  expect((await set(false)).accelerating).toBe(true);
  await hawser.cri.mustPull(put().reference);
  metrics = await hawser.metrics();
  expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  expect(metrics).not.toContain("hawser_pass_through{");
  await set(true, true);
  await hawser.stop();
  await hawser.startAgain();
  expect(await statusOf(hawser)).toMatchObject({
    switch: { kind: "on", persistent: true },
    reason: "switch",
  });
  await set(false);
  await hawser.stop();
  await hawser.startAgain();
  expect(await statusOf(hawser)).toMatchObject({ switch: { kind: "off" }, accelerating: true });
  await settled(containerd);
});

test("SIGHUP: what can change does, what cannot is said, and a bad file changes nothing", async () => {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const written = join(hawser.root, "hawser.toml");
  const before = readFileSync(written, "utf8");
  const first = await pullerOf(hawser);

  writeFileSync(written, `${before}\n[download]\nretires = 3`);
  process.kill(hawser.pid, "SIGHUP");
  await hawser.untilLogged(/reload: the configuration stays as it was: download\.retires: is not known/);
  expect(await pullerOf(hawser)).toBe(first);

  // A pull that is running is not disturbed.
  const running = put();
  const pause = gate();
  fake.behave = ({ path }) =>
    path.endsWith(running.layers[0]?.digest ?? "-") ? { after: 10, afterwards: pause.opened } : undefined;
  const reply = hawser.cri.pull(running.reference);
  await eventually(async () => expect(fake.openBlobs).toBeGreaterThan(0), "the download");
  const changed = before.replace("hawser.sock", "elsewhere.sock");
  writeFileSync(written, `${changed}\n[registry]\nexclude = ["${fake.host}"]`);
  process.kill(hawser.pid, "SIGHUP");
  await hawser.untilLogged(
    /reload: new pulls follow the configuration; cri\.listen changes with a restart only/,
  );
  writeFileSync(written, `${before}\n[registry]\nexclude = ["${fake.host}"]`);
  await pullerOf(hawser, first);
  await hawser.cri.mustPull(put().reference);
  expect(await hawser.metrics()).toContain('hawser_fallbacks_total{reason="excluded"} 1');
  pause.open();
  expect(await reply).toEqual({ value: running.configDigest });
  await eventually(async () => expect((await statusOf(hawser)).pullers).toHaveLength(1), "the former's end");
  await settled(containerd);
});
