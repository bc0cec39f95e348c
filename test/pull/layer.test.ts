// A layer's last steps: with `durability = "syncfs"`, or where containerd is told to, the file system is synced between
// the last write and Commit.

import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import type { Lease } from "../../src/containerd/containerd.ts";
import { Demand } from "../../src/demand.ts";
import { noDirectories } from "../../src/layer/directories.ts";
import type { LayerEngine } from "../../src/layer/layer.ts";
import { sha256 } from "../../src/oci/digest.ts";
import { shareLease } from "../../src/pull/lease.ts";
import type { PullEvents, PullLimits } from "../../src/pull/pull.ts";
import type { Site } from "../../src/pull/site.ts";
import { Spools } from "../../src/pull/spools.ts";
import { Work } from "../../src/pull/work.ts";
import type { Repository } from "../../src/registry/registry.ts";
import { Selinux } from "../../src/selinux.ts";

const bytes = Buffer.from("a layer");
const digest = sha256(bytes);

/** Makes one layer with fakes of the rooms below that only say what they are asked for, in order. */
async function stepsOf(durable: boolean, syncsLayers = false): Promise<string[]> {
  const folder = await mkdtemp(join(tmpdir(), "layer-"));
  const steps: string[] = [];
  const upperdir = join(folder, "upper");
  await mkdir(upperdir);
  const lease = {
    prepareSnapshot: async () => ({ key: "k", upperdir, lowerdirs: [] }),
    commitSnapshot: async () => void steps.push("commit"),
    [Symbol.asyncDispose]: async () => {},
  } as unknown as Lease;
  const engine = {
    unpack: async () => {
      steps.push("unpack");
      return { bytes: 1, entries: 0, implicitDirectories: noDirectories, waitedMs: 0, elapsedMs: 0 };
    },
    inherit: async () => {},
    pause: () => {},
    sync: async (path: string) => void steps.push(path === upperdir ? "sync" : path),
  } as unknown as LayerEngine;
  const repository = {
    download: async (_descriptor, spool, permits, signal) => {
      using _permit = await permits.acquire("host", signal);
      spool.write(0, bytes);
      spool.complete();
    },
  } as Partial<Repository> as Repository;
  const limits = {
    downloadsMax: 1,
    downloadsPerImageMax: 1,
    downloadsPerHostMax: 1,
    hosts: new Map(),
    unpacksMax: 1,
    unpacksPerImageMax: 1,
    cores: 2,
    ahead: { unpacksMax: 1, bytesPerSecond: undefined },
    durable,
  };
  const events: PullEvents = { stage: () => {}, unpacked: () => {}, inFlight: () => {}, warn: () => {} };
  const spools = await Spools.open({
    folder: join(folder, "spool"),
    limits: { bytesMax: 1000, ageMaxMs: 1000 },
    changed: () => {},
    deferred: () => {},
  });
  const selinux = new Selinux({ isOn: () => false, get: () => 0, set: () => 0 });
  const site = { spools, selinux, instance: { staging: folder }, facts: { syncsLayers } } as unknown as Site;
  const share = new Work(engine, limits as unknown as PullLimits, events).layer({
    layer: {
      descriptor: { mediaType: "any", digest, size: bytes.length },
      diffID: digest,
      chainID: digest,
      labels: {},
    },
    index: 0,
    parent: undefined,
    image: "image",
    repository,
    demand: new Demand(true),
    lease: shareLease(lease),
    site,
    keep: undefined,
    room: "ample",
    pace: { isSlow: false },
  });
  await (await share.result).finishBlob(undefined);
  await share[Symbol.asyncDispose]();
  await spools[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
  return steps;
}

test("syncfs comes between the last write and Commit, and only when it is asked for, or containerd does it", async () => {
  expect(await stepsOf(true)).toEqual(["unpack", "sync", "commit"]);
  expect(await stepsOf(false, true)).toEqual(["unpack", "sync", "commit"]);
  expect(await stepsOf(false)).toEqual(["unpack", "commit"]);
});
