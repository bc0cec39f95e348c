// What is asked of containerd before the first pull: facts, self-test, and whether it is there at all.

import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createContainerd } from "../../src/containerd/client.ts";
import type { Containerd } from "../../src/containerd/containerd.ts";
import { PullError } from "../../src/errors.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { busyboxLayers, pushImage } from "../harness/images.ts";
import { eventually } from "../harness/process.ts";
import { PrivateRegistry } from "../harness/registry.ts";

const { signal } = new AbortController();

let server: PrivateContainerd;
let containerd: Containerd;
let staging: string;

beforeAll(async () => {
  // As `containerd config default` writes it: with a table of headers that is there and empty.
  server = await PrivateContainerd.start({ more: '[plugins."io.containerd.grpc.v1.cri".registry.headers]' });
  containerd = createContainerd({
    address: server.address,
    namespace: "k8s.io",
    configFile: "/nonexistent",
    snapshotter: undefined,
  });
  staging = join(server.snapshotterRoot, "staging");
  await mkdir(staging);
});

afterAll(async () => {
  containerd.close();
  await server[Symbol.asyncDispose]();
});

async function nothingLeft(): Promise<void> {
  expect(await readdir(staging)).toEqual([]);
  const names = server.ctr("namespaces", "ls", "-q").trim().split("\n").filter(Boolean);
  expect(names.filter((name) => name !== "k8s.io")).toEqual([]);
  await eventually(
    async () => expect(await readdir(join(server.snapshotterRoot, "snapshots"))).toEqual([]),
    "the collection of its snapshots",
  );
}

test("facts are containerd's own, before its first pull and after", async () => {
  const expected = {
    version: expect.stringMatching(/^v?1\.6\./) as string,
    contentRoot: server.contentRoot,
    snapshotterRoot: server.snapshotterRoot,
    snapshotter: "overlayfs",
    registryConfigPath: [join(server.root, "certs.d")],
    discardUnpackedLayers: false,
    unfit: undefined,
  };
  expect(await containerd.facts(signal)).toEqual(expected);
  const registry = await PrivateRegistry.start();
  try {
    const { reference } = await pushImage(registry, "facts:v1", busyboxLayers());
    expect(await containerd.hasImage(reference)).toBe(false);
    await server.cri.mustPull(reference);
    expect(await containerd.hasImage(reference)).toBe(true);
    await server.cri.removeImage(reference);
  } finally {
    await registry[Symbol.asyncDispose]();
  }
  expect(await containerd.facts(signal)).toEqual(expected);
});

test("the self-test passes and leaves nothing", async () => {
  await containerd.selfTest(staging, signal);
  await nothingLeft();
});

test("the self-test passes while garbage collection runs all the time", async () => {
  const stop = new AbortController();
  const churn = async (): Promise<void> => {
    while (!stop.signal.aborted) await (await containerd.lease({}))[Symbol.asyncDispose]();
  };
  const churning = churn();
  try {
    for (let round = 0; round < 10; round++) await containerd.selfTest(staging, signal);
  } finally {
    stop.abort();
    await churning;
  }
  await nothingLeft();
});

test("staging on another mount fails the self-test with step and reason", async () => {
  const elsewhere = await mkdtemp(join(tmpdir(), "staging-"));
  try {
    const failure = containerd.selfTest(elsewhere, signal);
    await expect(failure).rejects.toMatchObject({ code: "unsupported" });
    await expect(failure).rejects.toThrow(/renaming a directory onto .*EXDEV/);
    expect(await readdir(elsewhere)).toEqual([]);
  } finally {
    await rm(elsewhere, { recursive: true });
  }
  await nothingLeft();
});

test("a self-test that is cancelled says so and leaves nothing", async () => {
  await expect(containerd.selfTest(staging, AbortSignal.abort())).rejects.toMatchObject({
    code: "cancelled",
  });
  await nothingLeft();
});

test("containerd goes and comes back: it is told, calls fail for now, and then they work", async () => {
  const told: boolean[] = [];
  let wake = (): void => {};
  using _watch = containerd.watch((connected) => {
    told.push(connected);
    wake();
  });
  const until = async (count: number): Promise<void> => {
    while (told.length < count) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  };
  await until(1);
  await server.stop("SIGKILL");
  await until(2);
  const failure = await containerd.facts(signal).catch((error: unknown) => PullError.from(error));
  expect(failure).toMatchObject({ code: "unavailable", temporary: true });
  await server.startAgain();
  await until(3);
  expect(told).toEqual([true, false, true]);
  expect((await containerd.facts(signal)).unfit).toBeUndefined();
  await containerd.selfTest(staging, signal);
});
