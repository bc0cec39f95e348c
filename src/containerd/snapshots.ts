// Snapshots of the overlayfs snapshotter: prepared, committed and removed under a lease, and read from mounts.

import { randomBytes } from "node:crypto";
import type { MessageShape } from "@bufbuild/protobuf";
import { PullError } from "../errors.ts";
import type { Digest } from "../oci/digest.ts";
import type { MountSchema } from "../proto/gen/containerd_pb.js";
import { type Channel, unlessMissing } from "./channel.ts";
import type { Labels, PreparedSnapshot } from "./containerd.ts";
import { leases, snapshots } from "./methods.ts";

export const snapshotter = "overlayfs";
/** The chainID that a snapshot is, or will be. */
const refLabel = "containerd.io/snapshot.ref";

type Mount = MessageShape<typeof MountSchema>;

/** Who a call is for: the lease it is made under, and the namespace if it is not the channel's. */
interface Scope {
  readonly lease?: string;
  readonly namespace?: string;
}

export interface LeaseScope extends Scope {
  readonly lease: string;
}

/** A layer that somebody else committed may be collected before it is held; making it is then tried again, so often. */
const attemptsMax = 3;

/**
 * True when a committed snapshot of this name exists; the lease then holds it, and through it its parents. The signal ends
 * the wait for an answer that changes nothing.
 */
export async function holdSnapshot(
  channel: Channel,
  scope: LeaseScope,
  chainID: Digest,
  signal?: AbortSignal,
): Promise<boolean> {
  const reading = { ...scope, ...(signal && { signal }) };
  try {
    await channel.call(snapshots.stat, { snapshotter, key: chainID }, reading);
    const resource = { id: chainID, type: `snapshots/${snapshotter}` };
    await channel.call(leases.addResource, { id: scope.lease, resource }, scope);
    // It may have been collected between the two calls; once the lease holds it, it cannot be.
    await channel.call(snapshots.stat, { snapshotter, key: chainID }, reading);
    return true;
  } catch (error) {
    if (error instanceof PullError && error.code === "not_found") return false;
    throw error;
  }
}

/** Throws `exists` when the chainID is committed already; the lease then holds it. */
export async function prepareSnapshot(
  channel: Channel,
  scope: LeaseScope,
  chainID: Digest,
  parent: Digest | undefined,
  labels: Labels,
): Promise<PreparedSnapshot> {
  for (let attempt = 0; attempt < attemptsMax; attempt++) {
    try {
      return await prepare(channel, scope, chainID, parent, { ...labels, [refLabel]: chainID });
    } catch (error) {
      // Containerd means to add what exists to the lease, but 1.6 undoes that together with the failed transaction.
      const exists = error instanceof PullError && error.code === "exists";
      if (!exists || (await holdSnapshot(channel, scope, chainID))) throw error;
    }
  }
  throw comesAndGoes(chainID);
}

async function prepare(
  channel: Channel,
  scope: LeaseScope,
  chainID: Digest,
  parent: Digest | undefined,
  labels: Labels,
): Promise<PreparedSnapshot> {
  const key = `extract-${process.hrtime.bigint() % 1_000_000_000n}-${randomBytes(3).toString("base64url")} ${chainID}`;
  const request = { snapshotter, key, parent: parent ?? "", labels };
  const { mounts } = await channel.call(snapshots.prepare, request, scope);
  const place = readMounts(mounts);
  if (place) return { key, labels, ...place };
  await removeSnapshot(channel, scope, key);
  const isUserNamespace = mounts.some((mount) => mount.options.includes("userxattr"));
  throw new PullError(
    "unsupported",
    isUserNamespace
      ? "containerd runs in a user namespace (its overlay mounts use userxattr)"
      : `overlayfs gave a mount of a kind that is not known: ${mounts[0]?.type}`,
  );
}

/**
 * `exists` counts as success: somebody else committed the same layer, which is then held; our active one is removed. So
 * does an answer that was lost on its way when the snapshot turns out to be there.
 */
export async function commitSnapshot(
  channel: Channel,
  scope: LeaseScope,
  { key, labels }: PreparedSnapshot,
  chainID: Digest,
): Promise<void> {
  for (let attempt = 0; attempt < attemptsMax; attempt++) {
    try {
      await channel.call(snapshots.commit, { snapshotter, name: chainID, key, labels }, scope);
      return;
    } catch (error) {
      const { code } = PullError.from(error);
      if (code !== "exists" && code !== "unavailable" && code !== "slow") throw error;
      // As with Prepare, the lease does not hold it yet.
      if (await holdSnapshot(channel, scope, chainID)) {
        // One that cannot be removed now goes with its lease.
        await removeSnapshot(channel, scope, key).catch(() => {});
        return;
      }
      if (code !== "exists") throw error;
    }
  }
  throw comesAndGoes(chainID);
}

function comesAndGoes(chainID: Digest): PullError {
  return new PullError("unavailable", `snapshot ${chainID} is collected as fast as it is made`, {
    temporary: true,
  });
}

/** Success when it is gone already. */
export async function removeSnapshot(channel: Channel, scope: Scope, key: string): Promise<void> {
  await unlessMissing(channel.call(snapshots.remove, { snapshotter, key }, scope));
}

/**
 * Directories behind what overlayfs answers (reference 3.3): a bind mount when there is one directory, else overlay
 * with options in an order that differs between versions. Undefined for anything else.
 */
function readMounts(mounts: readonly Mount[]): Pick<PreparedSnapshot, "upperdir" | "lowerdirs"> | undefined {
  const [mount, ...others] = mounts;
  if (mount === undefined || others.length > 0) return undefined;
  if (mount.type === "bind") return { upperdir: mount.source, lowerdirs: [] };
  if (mount.type !== "overlay" || mount.options.includes("userxattr")) return undefined;
  const option = (name: string): string | undefined =>
    mount.options.find((text) => text.startsWith(`${name}=`))?.slice(name.length + 1);
  const upperdir = option("upperdir");
  const lowerdirs = option("lowerdir")?.split(":") ?? [];
  return upperdir === undefined ? undefined : { upperdir, lowerdirs };
}
