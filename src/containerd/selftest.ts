// The self-test: what a pull does to snapshots, done to two small layers in a namespace of our own, then undone.
//
// It catches at once what would otherwise fail in the middle of a pull: staging on another mount (EXDEV), project
// quotas, another mount namespace than containerd's, SELinux labels that containerd would not have given, and a
// containerd that answers in unknown ways. What a run that was killed leaves is swept with everything else of its instance.

import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { PullError, throwIfAborted } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import { chainIDs, type Digest, sha256 } from "../oci/digest.ts";
import type { Selinux } from "../selinux.ts";
import type { Channel } from "./channel.ts";
import { expiresAfter, type Held } from "./lease.ts";
import { leases, namespaces, snapshots } from "./methods.ts";
import { commitSnapshot, type LeaseScope, prepareSnapshot, snapshotter } from "./snapshots.ts";

/** What a run that was killed leaves behind is collected after this long, should nobody sweep it. */
const expiryMs = 10 * 60 * 1000;

const prefix = "io.hawser.selftest-";

/** Runs the test with `staging` (an existing directory of ours); throws `unsupported` with the step that failed. */
export async function selfTest(
  channel: Channel,
  staging: string,
  selinux: Selinux,
  held: Held,
  signal: AbortSignal,
): Promise<void> {
  // A name per run: two daemons may test at once, and a run that was killed must not fail the next one.
  const name = `${prefix}${basename(staging)}-${Date.now()}`;
  held.add(name);
  try {
    await run(channel, { staging, selinux, name }, signal);
  } finally {
    held.delete(name);
  }
}

/** Removes what killed runs left: those of dead instances, and those of our own that are not running. */
export async function sweepSelfTests(
  channel: Channel,
  held: Held,
  isDead: (instance: string) => Promise<boolean>,
): Promise<void> {
  const all = await channel.call(namespaces.list, {});
  for (const { name } of all.namespaces) {
    const [, instance] = /^io\.hawser\.selftest-([0-9a-f]{16})-\d+$/.exec(name) ?? [];
    if (instance === undefined || held.has(name) || !(await isDead(instance))) continue;
    await remove(channel, name);
  }
}

async function remove(channel: Channel, name: string): Promise<void> {
  const left = await channel.call(leases.list, { filters: [] }, { namespace: name });
  // Its snapshots are gone when this returns, and a namespace can be deleted that holds nothing.
  for (const { id } of left.leases)
    await channel.call(leases.delete, { id, sync: true }, { namespace: name });
  await channel.call(namespaces.delete, { name });
}

interface Run {
  readonly staging: string;
  readonly selinux: Selinux;
  readonly name: string;
}

async function run(channel: Channel, { staging, selinux, name }: Run, signal: AbortSignal): Promise<void> {
  // Without a lease, garbage collection that anybody's deletion sets off takes the snapshots in the middle of the test.
  const scope: LeaseScope = { namespace: name, lease: name };
  const chains = chainIDs([sha256(`${name} lower`), sha256(`${name} upper`)]);
  let step = "making a lease";
  try {
    await channel.call(leases.create, { id: name, labels: expiresAfter(expiryMs) }, { namespace: name });
    let parent: Digest | undefined;
    for (const chainID of chains) {
      throwIfAborted(signal);
      step = "preparing a snapshot";
      const snapshot = await prepareSnapshot(channel, scope, chainID, parent, {});
      failpoint("self-test");
      step = `renaming a directory onto ${snapshot.upperdir}`;
      await fill(join(staging, `selftest-${chainID.slice(-12)}`), chainID, snapshot.upperdir, selinux);
      step = "committing a snapshot";
      await commitSnapshot(channel, scope, snapshot, chainID);
      parent = chainID;
    }
    step = "viewing the snapshots";
    await compare(channel, scope, chains);
  } catch (error) {
    const failure = PullError.from(error);
    if (failure.code === "cancelled" || failure.code === "unavailable") throw failure;
    throw new PullError("unsupported", `self-test failed while ${step}: ${failure.message}`, {
      cause: error,
    });
  } finally {
    // Once more where it failed; what is left then is swept.
    await remove(channel, name)
      .catch(() => remove(channel, name))
      .catch(() => {});
  }
}

async function fill(folder: string, chainID: Digest, upperdir: string, selinux: Selinux): Promise<void> {
  try {
    await mkdir(folder, { mode: 0o755 });
    await writeFile(join(folder, chainID), chainID);
    selinux.mustBeEqual(folder, upperdir);
    await rename(folder, upperdir);
  } finally {
    await rm(folder, { recursive: true, force: true }).catch(() => {});
  }
}

/** Both layers must be found in the lower directories of a view, with the content that was put there. */
async function compare(channel: Channel, scope: LeaseScope, chains: readonly Digest[]): Promise<void> {
  const key = "io.hawser.selftest-view";
  const parent = chains.at(-1) ?? "";
  const { mounts } = await channel.call(snapshots.view, { snapshotter, key, parent, labels: {} }, scope);
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
