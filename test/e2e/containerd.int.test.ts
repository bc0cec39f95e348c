// containerd at its worst: a status instead of an answer at every call, stopped, killed, hung and restarted in every
// stage. The pull ends well or with containerd's own error, the next one succeeds, and nothing is left.

import { randomBytes } from "node:crypto";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { ContainerdProxy } from "../fakes/proxy.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { fields } from "../harness/cri.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";
import { readLeases, readSnapshots } from "../harness/state.ts";

let containerd: PrivateContainerd;
let proxy: ContainerdProxy;
let hawser: PrivateHawser;
let fake: FakeRegistry;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  proxy = await ContainerdProxy.start(containerd.address);
  fake = await FakeRegistry.start();
  hawser = await PrivateHawser.start({ containerd: proxy.address });
  // What a start brings with it is over when a first pull is.
  await hawser.cri.mustPull(put().reference);
  await settled(containerd);
});

afterEach(() => {
  proxy.fault = () => undefined;
  fake.behave = () => undefined;
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
  return fake.put(`faults/image-${count}:v1`, layers);
}

const pullImage = /ImageService\/PullImage$/;

/** Methods that a pull calls, as seen on a pull without faults. */
async function methodsOfAPull(): Promise<string[]> {
  const before = proxy.calls.length;
  await hawser.cri.mustPull(put().reference);
  await settled(containerd);
  return [...new Set(proxy.calls.slice(before))];
}

async function hasImage(image: FakeImage): Promise<boolean> {
  return fields(await containerd.cri.imageStatus(image.reference)).has(1);
}

/** How many snapshots are committed. */
async function committed(): Promise<number> {
  return (await readSnapshots(containerd)).filter((line) => line.startsWith("Committed")).length;
}

/** Hawser's records are refused, so that containerd is asked to pull what is there. */
const noRecords = { code: 13, details: "injected" } as const;

const codes = { ALREADY_EXISTS: 6, NOT_FOUND: 5, UNAVAILABLE: 14, INTERNAL: 13, DEADLINE_EXCEEDED: 4 };

describe("a status instead of an answer, at every call of a pull", () => {
  test.each(Object.entries(codes))("%s, once each: the pull succeeds all the same", async (name, code) => {
    const methods = await methodsOfAPull();
    expect(methods.length).toBeGreaterThan(7);
    // A lease that is said not to be there is gone, as far as anybody can know.
    const isTrue = (path: string): boolean => name === "NOT_FOUND" && path.endsWith("Leases/Delete");
    for (const method of methods.filter((path) => !pullImage.test(path) && !isTrue(path))) {
      let left = 1;
      proxy.fault = (path) =>
        path === method && left-- > 0 ? { code, details: `injected ${name}` } : undefined;
      const image = put();
      const reply = await hawser.cri.pull(image.reference);
      expect(reply, `${method} ${JSON.stringify(reply)}`).not.toHaveProperty("code");
      expect(await hasImage(image), method).toBe(true);
      await settled(containerd);
      expect(left, `${method} was called`).toBeLessThanOrEqual(0);
    }
  });

  test("every time: containerd pulls by itself, and nothing of ours stays", async () => {
    const methods = await methodsOfAPull();
    for (const method of methods.filter((path) => !pullImage.test(path) && !path.endsWith("Leases/Delete"))) {
      proxy.fault = (path) => (path === method ? { code: 14, details: "injected" } : undefined);
      const image = put();
      expect(await hawser.cri.pull(image.reference), method).not.toHaveProperty("code");
      expect(await hasImage(image), method).toBe(true);
      proxy.fault = () => undefined;
      await settled(containerd);
    }
  });

  test("PullImage itself: the caller gets just that, and the next pull succeeds", async () => {
    for (const code of Object.values(codes)) {
      let left = 1;
      proxy.fault = (path) => {
        if (path.endsWith("Images/Create")) return noRecords;
        return pullImage.test(path) && left-- > 0 ? { code, details: "as containerd says" } : undefined;
      };
      const image = put();
      expect(await hawser.cri.pull(image.reference)).toMatchObject({ code, message: "as containerd says" });
      await settled(containerd);
      await hawser.cri.mustPull(image.reference);
      await settled(containerd);
    }
  });
});

test("a pull that failed begins nothing any more, however late the rest of it comes", async () => {
  const image = put();
  const pause = gate();
  let isHeld = false;
  proxy.fault = (path) => {
    // containerd itself pulls nothing either, so that the layers stay missing.
    if (path.endsWith("Content/Write") || pullImage.test(path)) return { code: 13, details: "injected" };
    if (!path.endsWith("Snapshots/Stat")) return undefined;
    isHeld = true;
    return { until: pause.opened };
  };
  expect(await hawser.cri.pull(image.reference)).toMatchObject({ code: 13 });
  expect(isHeld).toBe(true);
  proxy.fault = () => undefined;
  pause.open();
  // By the end of another pull, whatever the first one goes on with has long begun.
  await hawser.cri.mustPull(put().reference);
  await settled(containerd);
  for (const { digest } of image.layers) expect(fake.rangesOf(digest)).toEqual([]);
});

describe("what a pull made is held until containerd has answered", () => {
  test.each([
    ["all of it", 0, 2],
    ["what was finished before the rest failed", 1, 1],
  ])("%s", async (_name, failures, finished) => {
    const image = put();
    const pause = gate();
    let commits = 0;
    let isAsked = false;
    proxy.fault = (path) => {
      if (isAsked) return undefined;
      // The lower layer is committed first, and whatever comes then may fail.
      if (path.endsWith("Snapshots/Commit") && ++commits > 2 - failures)
        return { code: 13, details: "injected" };
      if (path.endsWith("Images/Create")) return noRecords;
      if (!pullImage.test(path)) return undefined;
      isAsked = true;
      return { until: pause.opened };
    };
    const before = await committed();
    const pulling = hawser.cri.pull(image.reference);
    await eventually(async () => expect(isAsked).toBe(true), "PullImage");
    const held = await readLeases(containerd);
    try {
      expect(held).toEqual([expect.stringMatching(/^hawser-/)]);
      // Behind another pull and its end, whatever was given up too early has long been given up.
      const other = put();
      await hawser.cri.mustPull(other.reference);
      await eventually(async () => expect(await readLeases(containerd)).toEqual(held), "its end");
      containerd.ctr("leases", "create", "--id", "collecting");
      containerd.ctr("leases", "rm", "--sync", "collecting");
      expect((await committed()) - before).toBe(other.layers.length + finished);
    } finally {
      pause.open();
    }
    expect(await pulling).toEqual({ value: image.configDigest });
    await settled(containerd);
  });
});

test("a lease is deleted underneath, at any time: the pull succeeds", async () => {
  for (const method of [
    "Snapshots/Prepare",
    "Snapshots/Commit",
    "Content/Write",
    "Images/Create",
    "ImageService/PullImage",
  ]) {
    const image = put();
    // Calls come side by side, and each lease can be removed once.
    let removed = Promise.resolve();
    const removeLeases = async (): Promise<void> => {
      for (const lease of await readLeases(containerd))
        containerd.ctr("leases", "rm", "--sync", lease.split(/\s+/)[0] ?? "");
    };
    proxy.fault = (path) => {
      if (!path.endsWith(method)) return path.endsWith("Images/Create") ? noRecords : undefined;
      removed = removed.then(removeLeases);
      return { until: removed };
    };
    expect(await hawser.cri.pull(image.reference), method).not.toHaveProperty("code");
    proxy.fault = () => undefined;
    expect(await hasImage(image)).toBe(true);
    await settled(containerd);
    await containerd.cri.mustPull(image.reference);
  }
});

test("containerd's own client pulls the same image at the same moment", async () => {
  for (let round = 0; round < 5; round++) {
    const image = put();
    const [ours, theirs] = await Promise.all([
      hawser.cri.pull(image.reference),
      containerd.cri.pull(image.reference),
    ]);
    expect(ours).not.toHaveProperty("code");
    expect(ours).toEqual(theirs);
    await settled(containerd);
  }
});

/** Where a pull is when containerd fails: what to wait for, by a layer that the registry holds back or a call. */
const stages: readonly (readonly [
  string,
  (image: FakeImage) => { reached: () => boolean; go: () => void },
])[] = [
  [
    "resolving",
    (image) => heldByRegistry((path) => path.includes(`/manifests/`) && path.includes(repositoryOf(image))),
  ],
  ["downloading", (image) => heldByRegistry((path) => path.endsWith(image.layers[0]?.digest ?? "?"))],
  ["preparing", () => heldByCall("Snapshots/Prepare")],
  ["committing", () => heldByCall("Snapshots/Commit")],
  ["writing metadata", () => heldByCall("Content/Write")],
  ["registering", () => heldByCall("Images/Create")],
  ["containerd registers", () => heldByCall("ImageService/PullImage")],
];

function repositoryOf(image: FakeImage): string {
  return image.reference.replace(/^[^/]*\//, "").replace(/:[^:]*$/, "");
}

function heldByRegistry(matches: (path: string) => boolean) {
  const pause = gate();
  let reached = false;
  fake.behave = ({ path }) => {
    if (!matches(path)) return undefined;
    reached = true;
    return { after: 10, afterwards: pause.opened };
  };
  return { reached: () => reached, go: () => pause.open() };
}

function heldByCall(method: string) {
  const pause = gate();
  let reached = false;
  proxy.fault = (path) => {
    if (!path.endsWith(method)) return path.endsWith("Images/Create") ? noRecords : undefined;
    reached = true;
    return { until: pause.opened };
  };
  return { reached: () => reached, go: () => pause.open() };
}

describe.each(stages)("while %s", (stage, hold) => {
  test.each(["SIGKILL", "SIGTERM"] as const)("containerd ends by %s and comes back", async (signal) => {
    const image = put();
    const { reached, go } = hold(image);
    const pulling = hawser.cri.pull(image.reference);
    await eventually(async () => expect(reached()).toBe(true), stage);
    proxy.cut();
    await containerd.stop(signal);
    go();
    fake.behave = () => undefined;
    proxy.fault = () => undefined;
    // UNAVAILABLE, or CANCELLED where the proxy cut a call that was under way.
    expect([14, 1]).toContain(((await pulling) as { code?: number }).code);
    await containerd.startAgain();
    await proxy.listen();
    await hawser.untilMetric(/^(?![\s\S]*hawser_pass_through\{)/);
    await hawser.cri.mustPull(image.reference);
    expect(await hasImage(image)).toBe(true);
    await settled(containerd);
  });

  test("containerd hangs for a while and goes on", async () => {
    const image = put();
    const { reached, go } = hold(image);
    const pulling = hawser.cri.pull(image.reference);
    await eventually(async () => expect(reached()).toBe(true), stage);
    process.kill(containerd.pid, "SIGSTOP");
    const before = proxy.passed;
    go();
    fake.behave = () => undefined;
    proxy.fault = () => undefined;
    await eventually(async () => expect(proxy.passed).toBeGreaterThan(before), "a call that hangs");
    process.kill(containerd.pid, "SIGCONT");
    expect(await pulling).not.toHaveProperty("code");
    await settled(containerd);
  });
});
