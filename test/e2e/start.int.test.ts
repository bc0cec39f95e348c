// What a daemon meets when it starts, stops and is connected again: a containerd that hangs, is not ready yet, is away
// for long or comes back as another version, and the end of the process in the middle of its self-test.

import { randomBytes } from "node:crypto";
import { mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { ContainerdProxy } from "../fakes/proxy.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";
import { readLeases } from "../harness/state.ts";
import { containerdRelease } from "../harness/versions.ts";

let containerd: PrivateContainerd;
let proxy: ContainerdProxy;
let fake: FakeRegistry;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  proxy = await ContainerdProxy.start(containerd.address);
  fake = await FakeRegistry.start();
});

afterEach(() => {
  proxy.fault = () => undefined;
});

afterAll(async () => {
  await proxy[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

let count = 0;

function put(): FakeImage {
  count += 1;
  const layers = [0, 1].map((index) => ({
    bytes: tarGz([dir(`${index}`), file(`${index}/noise`, randomBytes(200_000)), file(`n${count}`)]),
  }));
  return fake.put(`start/image-${count}:v1`, layers);
}

/** A containerd that hangs, and nobody else's. */
interface Stand {
  readonly containerd: PrivateContainerd;
  readonly proxy: ContainerdProxy;
}

/** Holds the next call of this method, and every call behind it as containerd then hangs. */
function hangAt(method: string, stand: Stand): { readonly reached: Promise<void>; goOn(): void } {
  const hung = gate();
  const reached = gate();
  stand.proxy.fault = (path) => {
    // Without records of ours containerd is asked to pull what is there.
    if (method.endsWith("/PullImage") && path.endsWith("Images/Create"))
      return { code: 13, details: "injected" };
    if (!path.endsWith(method)) return undefined;
    process.kill(stand.containerd.pid, "SIGSTOP");
    reached.open();
    return { until: hung.opened };
  };
  return {
    reached: reached.opened,
    goOn: () => {
      stand.proxy.fault = () => undefined;
      hung.open();
      process.kill(stand.containerd.pid, "SIGCONT");
    },
  };
}

/** Namespaces of self-tests. */
function tests(of = containerd): string[] {
  return of
    .ctr("namespaces", "ls", "-q")
    .split("\n")
    .filter((name) => name.startsWith("io.hawser"));
}

async function nothingLeft(of = containerd): Promise<void> {
  await settled(of);
  await eventually(async () => expect(tests(of)).toEqual([]), "the end of self-tests' namespaces");
}

test("SIGTERM while containerd hangs in the self-test: the process ends, and the next one clears up", async () => {
  const hang = hangAt("Snapshots/Commit", { containerd, proxy });
  await using hawser = await PrivateHawser.start({ containerd: proxy.address }, "ready");
  await hang.reached;
  await hawser.stop("SIGTERM");
  expect(hawser.exitCode).toBe(0);
  hang.goOn();
  await hawser.startAgain();
  await nothingLeft();
});

const pullCalls = [
  "Snapshots/Commit",
  "Leases/Delete",
  "Content/Write",
  "Images/Create",
  "ImageService/ImageStatus",
  "ImageService/PullImage",
] as const;

/** Which takes as long as the patience with a containerd that hangs. */
async function stopWhileHanging(method: string): Promise<void> {
  await using own = await PrivateContainerd.start();
  await using between = await ContainerdProxy.start(own.address);
  await using hawser = await PrivateHawser.start({ containerd: between.address });
  const image = put();
  const hang = hangAt(method, { containerd: own, proxy: between });
  const pulling = hawser.cri.pull(image.reference);
  await hang.reached;
  await hawser.stop("SIGTERM");
  expect(hawser.exitCode).toBe(0);
  await pulling;
  hang.goOn();
  await hawser.startAgain();
  await nothingLeft(own);
  await hawser.cri.mustPull(image.reference);
  await nothingLeft(own);
}

test(`SIGTERM while containerd hangs in a pull's ${pullCalls.join(", ")}: the process ends, and the next one clears up`, async () => {
  const ends = pullCalls.map(async (method) => {
    await stopWhileHanging(method).catch((error: unknown) => {
      throw new Error(`in ${method}`, { cause: error });
    });
  });
  // A failure is told once all of them have taken away what they started.
  await Promise.allSettled(ends);
  await Promise.all(ends);
});

test.each([1, 2])(
  "kill -9 in the self-test, behind its snapshot %i: nothing of it stays",
  async (snapshot) => {
    const failpoint = `self-test=${snapshot}`;
    await using hawser = await PrivateHawser.start({ containerd: containerd.address, failpoint }, "ready");
    await hawser.untilKilled();
    expect(tests()).toHaveLength(1);
    await hawser.startAgain();
    await nothingLeft();
  },
);

test("folders that cannot be made: pulls go through, no lock stays behind, and it heals by itself", async () => {
  await using own = await PrivateContainerd.start();
  const state = `${own.root}/root/io.hawser`;
  await mkdir(state);
  await writeFile(`${state}/spool`, "in the way");
  await using hawser = await PrivateHawser.start({ containerd: own.address }, "ready");
  await hawser.untilLogged(/(every pull goes through to containerd reason=self-test[\s\S]*){2}/);
  expect(await readdir(`${state}/instances`)).toEqual([]);
  const image = put();
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  await rm(`${state}/spool`);
  await hawser.untilLogged(/pulls are accelerated/);
  await hawser.cri.mustPull(put().reference);
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  await settled(own);
});

test("containerd answers before its CRI plugin does: pulls go through until then, and are accelerated afterwards", async () => {
  let left = 2;
  proxy.fault = (path) =>
    path.endsWith("RuntimeService/Status") && left-- > 0
      ? { code: 2, details: "server is not initialized yet" }
      : undefined;
  await using hawser = await PrivateHawser.start({ containerd: proxy.address }, "ready");
  await hawser.untilLogged(/reason=containerd detail="containerd's Status: server is not initialized yet"/);
  const image = put();
  expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  await hawser.untilLogged(/pulls are accelerated/);
  await hawser.cri.mustPull(put().reference);
  const metrics = await hawser.metrics();
  expect(metrics).toContain('hawser_fallbacks_total{reason="containerd"} 1');
  expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  await nothingLeft();
});

test("containerd is away for longer than the patience with a lease: it is deleted once it is back", async () => {
  await using own = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: own.address });
  const image = put();
  const pause = gate();
  fake.behave = ({ path }) =>
    path.endsWith(image.layers[1]?.digest ?? "?") ? { after: 10, afterwards: pause.opened } : undefined;
  const pulling = hawser.cri.pull(image.reference);
  await eventually(async () => expect(own.ctr("snapshots", "ls")).toContain("Committed"), "a layer");
  await own.stop("SIGKILL");
  pause.open();
  fake.behave = () => undefined;
  expect(await pulling).toHaveProperty("code", 14);
  await hawser.untilLogged(/clearing up after a pull failed/);
  await own.startAgain();
  await eventually(async () => expect(await readLeases(own)).toEqual([]), "the lease's end");
  await settled(own);
  await hawser.cri.mustPull(image.reference);
});

test("containerd is upgraded under the daemon, twice: facts and self-test are those of the new one", async () => {
  await using own = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: own.address });
  const images = [put()];
  await hawser.cri.mustPull(images[0]?.reference ?? "");
  for (const minor of ["1.7", "2.1"] as const) {
    const release = containerdRelease(minor);
    await own.stop("SIGTERM");
    await own.startAgain(release);
    await hawser.untilLogged(
      new RegExp(`pulls are accelerated.*containerd=\\S*${minor.replace(".", "\\.")}\\.`),
    );
    const image = put();
    expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
    images.push(image);
  }
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 3');
  await settled(own);
  for (const { reference } of images) own.ctr("images", "export", "/dev/null", reference);
});
