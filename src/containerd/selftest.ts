// The self-test: what a pull does to snapshots, done to two small layers in a namespace of our own, then undone.
//
// It catches at once what would otherwise fail in the middle of a pull: staging on another mount (EXDEV), project
// quotas, another mount namespace than containerd's, and a containerd that answers in unknown ways.

import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PullError, throwIfAborted } from "../errors.ts";
import { chainIDs, type Digest, sha256 } from "../oci/digest.ts";
import type { Channel } from "./channel.ts";
import { expiresAfter } from "./lease.ts";
import { leases, namespaces, snapshots } from "./methods.ts";
import {
  commitSnapshot,
  type LeaseScope,
  prepareSnapshot,
  removeSnapshot,
  snapshotter,
} from "./snapshots.ts";

/** What a run that was killed leaves behind is collected after this long. */
const expiryMs = 10 * 60 * 1000;

/** Runs the test with `staging` (an existing directory of ours); throws `unsupported` with the step that failed. */
export async function selfTest(channel: Channel, staging: string, signal: AbortSignal): Promise<void> {
  // A name per run: two daemons may test at once, and a run that was killed must not fail the next one.
  const name = `io.hawser.selftest-${process.pid}-${Date.now()}`;
  // Without a lease, garbage collection that anybody's deletion sets off takes the snapshots in the middle of the test.
  const scope: LeaseScope = { namespace: name, lease: name };
  const chains = chainIDs([sha256(`${name} lower`), sha256(`${name} upper`)]);
  const undo: (() => Promise<void>)[] = [];
  let step = "making a lease";
  try {
    await channel.call(leases.create, { id: name, labels: expiresAfter(expiryMs) }, { namespace: name });
    undo.push(async () => {
      await channel.call(leases.delete, { id: name, sync: false }, { namespace: name });
    });
    let parent: Digest | undefined;
    for (const chainID of chains) {
      throwIfAborted(signal);
      step = "preparing a snapshot";
      const snapshot = await prepareSnapshot(channel, scope, chainID, parent);
      undo.push(() => removeSnapshot(channel, scope, snapshot.key));
      step = `renaming a directory onto ${snapshot.upperdir}`;
      const folder = join(staging, `selftest-${chainID.slice(-12)}`);
      await mkdir(folder, { mode: 0o755 });
      undo.push(() => rm(folder, { recursive: true, force: true }));
      await writeFile(join(folder, chainID), chainID);
      await rename(folder, snapshot.upperdir);
      step = "committing a snapshot";
      await commitSnapshot(channel, scope, snapshot.key, chainID);
      undo.push(() => removeSnapshot(channel, scope, chainID));
      parent = chainID;
    }
    step = "viewing the snapshots";
    await compare(channel, scope, chains, undo);
  } catch (error) {
    const failure = PullError.from(error);
    if (failure.code === "cancelled" || failure.code === "unavailable") throw failure;
    throw new PullError("unsupported", `self-test failed while ${step}: ${failure.message}`, {
      cause: error,
    });
  } finally {
    for (const revert of undo.toReversed()) await revert().catch(() => {});
    await channel.call(namespaces.delete, { name }).catch(() => {});
  }
}

/** Both layers must be found in the lower directories of a view, with the content that was put there. */
async function compare(
  channel: Channel,
  scope: LeaseScope,
  chains: readonly Digest[],
  undo: (() => Promise<void>)[],
): Promise<void> {
  const key = "io.hawser.selftest-view";
  const parent = chains.at(-1) ?? "";
  const { mounts } = await channel.call(snapshots.view, { snapshotter, key, parent, labels: {} }, scope);
  undo.push(() => removeSnapshot(channel, scope, key));
  const lowers = mounts[0]?.options
    .find((option) => option.startsWith("lowerdir="))
    ?.slice("lowerdir=".length);
  const folders = lowers?.split(":").toReversed() ?? [];
  for (const [index, chainID] of chains.entries()) {
    const text = await readFile(join(folders[index] ?? "/nonexistent", chainID), "utf8");
    if (text !== chainID)
      throw new PullError("corrupt", "a committed layer does not hold what was put into it");
  }
}
