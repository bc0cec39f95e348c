// The service under its manager: the socket outlives every process, a successor takes it over without a gap, and a
// front that cannot run leaves it to systemd-socket-proxyd.

import { randomBytes } from "node:crypto";
import { chmodSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { Callers } from "../harness/callers.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { bytesAsked } from "../harness/crash.ts";
import { settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";
import { makeBundle, PrivateService } from "../harness/service.ts";

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
  return fake.put(`service/image-${count}:v1`, layers);
}

/** Installs another version, as an upgrade does. */
function install(service: PrivateService, version: string): void {
  makeBundle(join(service.root, "versions", version));
  symlinkSync(join("versions", version), join(service.root, "next"));
  renameSync(join(service.root, "next"), join(service.root, "current"));
}

function commandOf(pid: number): string {
  return readFileSync(`/proc/${pid}/cmdline`, "utf8");
}

test("ready, its status and signs of life are told; SIGTERM ends it, and what is asked meanwhile waits", async () => {
  await using service = await PrivateService.start(containerd.address);
  await service.untilSaid(/notified \d+ READY=1/);
  await service.untilSaid(/notified \d+ WATCHDOG=1/);
  const first = service.pid;
  process.kill(first, "SIGTERM");
  await service.untilSaid(new RegExp(`ended ${first} exit 0`));
  await service.cri.mustPull(put().reference);
  expect(service.pid).not.toBe(first);
  expect(service.said()).toContain("notified " + String(first) + " STOPPING=1");
  await settled(containerd);
});

test("an upgrade while clients call without a pause: no call fails, and the new version serves", async () => {
  await using service = await PrivateService.start(containerd.address);
  const callers = new Callers(service.socket, () => put().reference);
  for (const version of ["2", "3"]) {
    const former = service.pid;
    install(service, version);
    process.kill(former, "SIGUSR2");
    await service.untilSaid(new RegExp(`ended ${former} exit 0`));
    const { lists, pulls } = callers;
    await eventually(async () => {
      expect(callers.pulls).toBeGreaterThan(pulls);
      expect(callers.lists).toBeGreaterThan(lists);
    }, "a pull and a list by the new version");
    expect(commandOf(service.pid)).toContain(`versions/${version}/`);
  }
  await callers.finish();
  await callers[Symbol.asyncDispose]();
  await settled(containerd);
});

test("an upgrade in the middle of a pull: its successor goes on where it was, and the caller has one answer", async () => {
  await using service = await PrivateService.start(
    containerd.address,
    '[download]\nchunk_size = "64KiB"\nmax_concurrent_per_host = 8\n',
  );
  const image = put(2_000_000);
  const pause = gate();
  const digest = image.layers[0]?.digest ?? "";
  let isPaused = true;
  // The last ranges of the layer wait for longer than the predecessor may.
  fake.behave = ({ path, range }) =>
    isPaused && path.endsWith(digest) && Number(/bytes=(\d+)/.exec(range ?? "")?.[1]) > 1_000_000
      ? { after: 0, afterwards: pause.opened }
      : undefined;
  const reply = service.cri.pull(image.reference);
  // Sixteen ranges are answered, and every lane waits.
  await eventually(async () => expect(bytesAsked(fake.asked, digest, 2_100_000)).toHaveLength(24), "ranges");
  const former = service.pid;
  const before = fake.asked.length;
  isPaused = false;
  process.kill(former, "SIGUSR2");
  expect(await reply).toEqual({ value: image.configDigest });
  pause.open();
  await service.untilSaid(new RegExp(`ended ${former} exit 0`));
  const again = bytesAsked(fake.asked.slice(before), digest, 2_100_000);
  const bytes = again.reduce((sum, { start, end }) => sum + end - start, 0);
  expect(bytes).toBeGreaterThan(0);
  // A megabyte was there.
  expect(bytes).toBeLessThan(1_200_000);
  await settled(containerd);
});

test("a version that does not serve is not succeeded by: everything stays as it was", async () => {
  await using service = await PrivateService.start(containerd.address);
  const former = service.pid;
  install(service, "broken");
  rmSync(join(service.root, "versions/broken/lib/node"));
  await using callers = new Callers(service.socket, () => put().reference);
  process.kill(former, "SIGUSR2");
  await service.untilSaid(/the successor does not serve: it ended, and its own messages say why/);
  const { pulls } = callers;
  await eventually(async () => expect(callers.pulls).toBeGreaterThan(pulls), "a pull");
  await callers.finish();
  expect(service.pid).toBe(former);
});

test("a front that cannot keep running leaves the socket to systemd-socket-proxyd", async () => {
  await using service = await PrivateService.start(containerd.address);
  const node = join(service.root, "versions/1/lib/node");
  rmSync(node);
  writeFileSync(node, "#!/bin/sh\nexit 7\n");
  chmodSync(node, 0o755);
  process.kill(service.pid, "SIGKILL");
  // Without a front these wait in the socket until somebody serves it.
  const image = put();
  expect(await service.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  expect(service.said()).toMatch(/hawser-launch: the front was started \d times within 60 s/);
  expect(commandOf(service.pid)).toContain("systemd-socket-proxyd");
});
