// containerd hangs in a call of a pull, and the caller goes away meanwhile: it is told so at once, and as soon as
// containerd goes on nothing of the pull is left, whatever the call was.

import { randomBytes } from "node:crypto";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { ContainerdProxy } from "../fakes/proxy.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";
import { readImages } from "../harness/state.ts";

let containerd: PrivateContainerd;
let proxy: ContainerdProxy;
let hawser: PrivateHawser;
let fake: FakeRegistry;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  proxy = await ContainerdProxy.start(containerd.address);
  fake = await FakeRegistry.start();
  hawser = await PrivateHawser.start({ containerd: proxy.address });
  await hawser.cri.mustPull(put().reference);
  await settled(containerd);
});

afterEach(() => {
  proxy.fault = () => undefined;
});

afterAll(async () => {
  await hawser[Symbol.asyncDispose]();
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
  return fake.put(`hung/image-${count}:v1`, layers);
}

const calls = [
  ["Images/Get", 1],
  ["Leases/Create", 1],
  ["Content/Info", 1],
  ["Content/Write", 1],
  ["Snapshots/Stat", 1],
  ["Snapshots/Prepare", 1],
  ["Snapshots/Prepare", 2],
  ["Snapshots/Commit", 1],
  ["Snapshots/Commit", 2],
  ["Images/Create", 1],
  ["ImageService/ImageStatus", 1],
  ["ImageService/PullImage", 1],
] as const;

test.each(calls)("%s, call %i", async (method, passage) => {
  const image = put();
  const hung = gate();
  let passages = 0;
  proxy.fault = (path) => {
    // Without records of ours containerd is asked to pull what is there.
    if (method.endsWith("/PullImage") && path.endsWith("Images/Create"))
      return { code: 13, details: "injected" };
    if (!path.endsWith(method)) return undefined;
    passages += 1;
    return passages === passage ? { until: hung.opened } : undefined;
  };
  const before = proxy.calls.length;
  const leave = new AbortController();
  const pulling = hawser.cri.pull(image.reference, undefined, { signal: leave.signal });
  await eventually(async () => expect(passages).toBeGreaterThanOrEqual(passage), "the call");
  process.kill(containerd.pid, "SIGSTOP");
  try {
    hung.open();
    leave.abort();
    expect(await pulling).toMatchObject({ code: 1 });
    await hawser.untilMetric(/hawser_in_flight\{what="pulls"\} 0/);
  } finally {
    process.kill(containerd.pid, "SIGCONT");
  }
  await settled(containerd);
  // Nothing goes on for nobody.
  const commits = proxy.calls.slice(before).filter((path) => path.endsWith("Snapshots/Commit"));
  if (method === "Snapshots/Prepare") expect(commits.length).toBeLessThan(passage);
  // By then all of it is there, or a PullImage has reached containerd and may come to its end there.
  if (!method.startsWith("ImageService/")) {
    expect((await readImages(containerd)).map((line) => line.split(" ", 1)[0])).not.toContain(
      image.reference,
    );
  }
  expect(hawser.exitCode, hawser.logs()).toBe(null);
  await hawser.cri.mustPull(image.reference);
  await settled(containerd);
});
