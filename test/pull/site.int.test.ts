// A status instead of an answer, at every step before the first pull: what has to be asked is asked again, what was
// tried is undone, and what the dead left is swept in the end.

import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { createContainerd } from "../../src/containerd/client.ts";
import type { Containerd } from "../../src/containerd/containerd.ts";
import { PullError } from "../../src/errors.ts";
import { instanceLabel } from "../../src/pull/instance.ts";
import { MemoryContainerd } from "../fakes/memory/containerd.ts";
import { scratch } from "../harness/containerd.ts";
import { eventually } from "../harness/process.ts";
import { off, Rig } from "./rig.ts";
import { answered, faults, nameOf, type Strike, strikeOf, strikesAt } from "./strikes.ts";

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

const { signal } = new AbortController();

describe("facts and self-test", () => {
  let fake: MemoryContainerd;
  let containerd: Containerd;
  let staging: string;

  beforeAll(async () => {
    fake = await MemoryContainerd.start({ parent: scratch() });
    containerd = createContainerd({
      address: fake.address,
      namespace: "k8s.io",
      configFile: "/nonexistent",
      snapshotter: undefined,
    });
    staging = join(fake.metadata.snapshotterRoot, "staging");
    await mkdir(staging);
  });

  afterAll(async () => {
    containerd.close();
    await fake[Symbol.asyncDispose]();
  });

  async function prepare(): Promise<void> {
    await containerd.facts(signal);
    await containerd.selfTest(staging, off, signal);
  }

  test("pass, or fail as what they are; nothing is left of them", async () => {
    await prepare();
    const steps = [...fake.serving.steps];
    expect(steps.length).toBeGreaterThan(8);
    for (const fault of faults) {
      for (const strike of strikesAt(steps, fault)) {
        const struck = strikeOf([strike]);
        fake.serving.fault = struck.fault;
        const failure = await prepare().catch((error: unknown) => PullError.from(error));
        expect(struck.count(), nameOf(strike)).toBe(1);
        if (failure) {
          expect(["unavailable", "unsupported", "exists", "not_found"], nameOf(strike)).toContain(
            failure.code,
          );
          expect(failure.message, nameOf(strike)).toContain("containerd's");
        }
        expect([...fake.metadata.namespaces.keys()], nameOf(strike)).toEqual([]);
        expect(await readdir(staging), nameOf(strike)).toEqual([]);
        fake.metadata.collect();
        expect(await readdir(join(fake.metadata.snapshotterRoot, "snapshots")), nameOf(strike)).toEqual([]);
      }
    }
  });
});

test("a site that could not be opened opens at the next attempt", async () => {
  const failing = ["Version/Version", "Introspection/Plugins", "Snapshots/Prepare"];
  await Promise.all(
    failing.map(async (step) => {
      const fault = { code: status.UNAVAILABLE, moment: "before" } as const;
      const struck = strikeOf([{ step, which: 1, fault }]);
      await using rig = await Rig.open({ prepare: (fake) => void (fake.serving.fault = struck.fault) });
      expect(struck.count()).toBe(1);
      expect(rig.states).toEqual(["containerd", "open"]);
    }),
  );
});

describe("what a dead instance left", () => {
  const dead = "0123456789abcdef";
  const tested = `io.hawser.selftest-${dead}-1`;
  const steps = [
    "Namespaces/List",
    "Leases/List",
    "Leases/Delete",
    "Namespaces/Delete",
    "Leases/List",
    "Leases/ListResources",
    "Snapshots/Remove",
    "Leases/Delete",
  ];

  /** Of a pull and of a self-test a lease with a snapshot that was being made; and a staging directory. */
  async function leave(fake: MemoryContainerd): Promise<void> {
    const { metadata } = fake;
    for (const [index, namespace] of ["k8s.io", tested].entries()) {
      const { leases, snapshots } = metadata.within(namespace);
      const key = "extract-1-abcd sha256:1234";
      const resources = new Map([["snapshots/overlayfs", new Set([key])]]);
      leases.set(tested, { labels: { [instanceLabel]: dead }, resources });
      snapshots.set(key, { kind: "active", parent: "", labels: {}, id: `left-${index}` });
      await mkdir(join(metadata.snapshotPath(`left-${index}`), "fs"), { recursive: true });
    }
    await mkdir(join(metadata.snapshotterRoot, "io.hawser/staging", dead), { recursive: true });
  }

  async function mustBeSwept(rig: Rig, what: string): Promise<void> {
    await eventually(async () => {
      const { metadata } = rig.fake;
      metadata.collect();
      expect(rig.leftovers(), what).toEqual([]);
      expect([...metadata.namespaces.keys()], what).toEqual(["k8s.io"]);
      expect(await readdir(join(metadata.snapshotterRoot, "snapshots")), what).toEqual([]);
      const staging = await readdir(join(metadata.snapshotterRoot, "io.hawser/staging"));
      expect(staging, what).toEqual([rig.site.instance.id]);
    }, "the sweep");
  }

  test("is swept before the first pull", async () => {
    await using rig = await Rig.open({ prepare: leave });
    await mustBeSwept(rig, "without faults");
    const from = rig.fake.serving.steps.indexOf("Namespaces/List");
    expect(rig.fake.serving.steps.slice(from, from + steps.length)).toEqual(steps);
  });

  test("is swept although the same step fails three times: before the first pull, behind it, and at the next try", async () => {
    const fault = { code: status.UNAVAILABLE, moment: "before" } as const;
    const struck = strikeOf([1, 2, 3].map((which) => ({ step: "Namespaces/List", which, fault })));
    await using rig = await Rig.open({
      prepare: async (fake) => {
        await leave(fake);
        fake.serving.fault = struck.fault;
      },
    });
    await mustBeSwept(rig, "three times");
    expect(struck.count()).toBe(3);
  });

  test.each(faults.map((fault) => [answered(fault), fault] as const))(
    "is swept although a step fails: %s",
    async (_, fault) => {
      const sweep = async (strike: Strike): Promise<void> => {
        const struck = strikeOf([strike]);
        await using rig = await Rig.open({
          prepare: async (fake) => {
            await leave(fake);
            // Behind the self-test, which takes steps of the same names.
            fake.serving.fault = (step) =>
              fake.serving.steps.includes("Namespaces/List") ? struck.fault(step) : undefined;
          },
        });
        await mustBeSwept(rig, nameOf(strike));
        expect(struck.count(), nameOf(strike)).toBe(1);
      };
      await Promise.all(strikesAt(steps, fault).map(sweep));
    },
  );
});
