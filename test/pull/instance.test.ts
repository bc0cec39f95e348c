// Instances: the dead are told from the living by the kernel, and only what belongs to the dead is swept.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { watch } from "node:fs";
import { mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { buildProgram } from "../../config/build.ts";
import type { Containerd, ContainerdFacts } from "../../src/containerd/containerd.ts";
import { createInstance, instanceLabel } from "../../src/pull/instance.ts";

let root = "";
let facts: ContainerdFacts;

beforeEach(async () => {
  // Deep enough that a socket addressed by its full path would exceed the kernel's 107 bytes.
  root = await mkdtemp(join(tmpdir(), "instance-"));
  const deep = join(root, "a".repeat(60), "b".repeat(60));
  await mkdir(deep, { recursive: true });
  facts = {
    version: "1.6.20",
    contentRoot: join(deep, "io.containerd.content.v1.content"),
    snapshotterRoot: join(deep, "io.containerd.snapshotter.v1.overlayfs"),
    snapshotter: "overlayfs",
    registryConfigPath: [],
    discardUnpackedLayers: false,
    syncsLayers: false,
    takesRecords: false,
    pinnedImages: [],
    unfit: undefined,
  };
});

afterEach(async () => {
  await rm(root, { recursive: true });
});

/** A containerd with one lease for each of these instances; what the sweep calls dead is taken away. */
function containerdWithLeases(ids: string[]): Containerd {
  return {
    sweep: async (label: string, self: string, isDead: (id: string) => Promise<boolean>) => {
      expect(label).toBe(instanceLabel);
      expect(self).toBe(ids[0]);
      let swept = 0;
      for (const id of ids.slice()) {
        if (!(await isDead(id))) continue;
        ids.splice(ids.indexOf(id), 1);
        swept += 1;
      }
      return swept;
    },
  } as Containerd;
}

/** Another process that holds an instance open; its id comes back. */
async function startOther(): Promise<{ readonly id: string; readonly process: ChildProcess }> {
  const script = `
    const { createInstance } = await import(process.argv[1]);
    const instance = await createInstance(JSON.parse(process.argv[2]));
    process.stdout.write(instance.id);
    setInterval(() => {}, 1000);`;
  await buildProgram(join(root, "built"), { instance: "src/pull/instance.ts" });
  const module = pathToFileURL(join(root, "built/instance.js")).href;
  const child = spawn(
    process.execPath,
    ["--input-type=module", "-e", script, module, JSON.stringify(facts)],
    {
      stdio: ["ignore", "pipe", "inherit"],
    },
  );
  const [id] = await once(child.stdout, "data");
  return { id: String(id), process: child };
}

async function left(): Promise<string[]> {
  const all = await readdir(root, { recursive: true });
  return all.filter((name) => /\/io\.hawser\/(?:.*\/)?[0-9a-f]{16}/.test(name)).sort();
}

test("what a killed instance left is swept; what a living one holds is not", async () => {
  const [living, killed] = [await startOther(), await startOther()];
  try {
    killed.process.kill("SIGKILL");
    await once(killed.process, "exit");
    await using own = await createInstance(facts);
    const leases = [own.id, living.id, killed.id];
    await writeFile(join(own.staging, "..", killed.id, "file"), "left over");
    await own.sweepContainerd(containerdWithLeases(leases));
    expect(await own.sweepFolders()).toBe(1);
    expect(leases).toEqual([own.id, living.id]);
    const names = (await left()).join("\n");
    expect(names).toContain(own.id);
    expect(names).toContain(living.id);
    expect(names).not.toContain(killed.id);
  } finally {
    living.process.kill("SIGKILL");
    await once(living.process, "exit");
  }
});

test("an instance's name is there only once its lock answers", async () => {
  const folder = join(facts.contentRoot, "../io.hawser/instances");
  await mkdir(folder, { recursive: true });
  const names: (string | null)[] = [];
  const watcher = watch(folder, (_event, name) => names.push(name));
  await using instance = await createInstance(facts);
  await vi.waitFor(() => expect(names).toContain(instance.id));
  watcher.close();
  // Bound under another name, which anybody may take for a dead instance's, and renamed when it listens.
  expect(names[0]).not.toBe(instance.id);
  expect(await readdir(folder)).toEqual([instance.id]);
});

test("what cannot be made whole leaves no lock", async () => {
  await mkdir(facts.snapshotterRoot, { recursive: true });
  await writeFile(join(facts.snapshotterRoot, "io.hawser"), "in the way");
  await expect(createInstance(facts)).rejects.toThrow(/ENOTDIR|EEXIST/);
  expect(await readdir(join(facts.contentRoot, "../io.hawser/instances"))).toEqual([]);
});

test("an instance that ends properly leaves nothing", async () => {
  const instance = await createInstance(facts);
  expect(await left()).toHaveLength(2);
  await instance[Symbol.asyncDispose]();
  expect(await left()).toEqual([]);
});
