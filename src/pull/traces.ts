// Takes everything of Hawser's out of containerd and from beside its files, for a node that Hawser is removed from.
//
// It goes about it as an instance that sweeps the dead: what a living one has, of another installation, stays.

import { readdir, rmdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Containerd, ContainerdFacts } from "../containerd/containerd.ts";
import { removeTree } from "../removal.ts";
import { createInstance } from "./instance.ts";

/** Leases, holds, self-tests, spools, staging directories and folders; throws `unavailable` while containerd is down. */
export async function removeTraces(containerd: Containerd, facts: ContainerdFacts): Promise<void> {
  const instance = await createInstance(facts);
  try {
    await instance.sweepContainerd(containerd);
    for (const hold of await containerd.holds.list()) await containerd.holds.release(hold);
    await instance.claimSpools();
    await removeTree(instance.spool);
    await instance.sweepFolders();
  } finally {
    await instance[Symbol.asyncDispose]();
  }
  await removeFolders(facts);
}

/** Folders that nothing is left in. */
async function removeFolders({ contentRoot, snapshotterRoot }: ContainerdFacts): Promise<void> {
  for (const root of new Set([dirname(contentRoot), snapshotterRoot])) {
    const own = join(root, "io.hawser");
    for (const name of await readdir(own).catch(() => [])) await rmdir(join(own, name)).catch(() => {});
    await rmdir(own).catch(() => {});
  }
}
