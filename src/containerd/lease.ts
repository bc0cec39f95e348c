// A lease of containerd, and everything that is done under it.

import { randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import type { Channel } from "./channel.ts";
import type { Labels, Lease, PreparedSnapshot } from "./containerd.ts";
import { adoptContent, holdContent, putContent } from "./content.ts";
import { leases } from "./methods.ts";
import { commitSnapshot, holdSnapshot, prepareSnapshot, removeSnapshot, snapshotter } from "./snapshots.ts";

/** A lease that nobody deletes stops protecting after this long, as containerd's own do (reference 2.2). */
const expiryMs = 24 * 60 * 60 * 1000;

/** The label of a lease that stops protecting by itself. */
export function expiresAfter(ms: number): Labels {
  // RFC 3339 in whole seconds, as containerd writes it.
  return { "containerd.io/gc.expire": new Date(Date.now() + ms).toISOString().replace(/\.\d+Z$/, "Z") };
}

export async function createLease(channel: Channel, contentRoot: string, labels: Labels): Promise<Lease> {
  const id = `hawser-${randomUUID()}`;
  const { lease } = await channel.call(leases.create, {
    id,
    labels: { ...labels, ...expiresAfter(expiryMs) },
  });
  if (lease === undefined) throw new PullError("internal", "containerd created no lease");
  return new ContainerdLease(channel, contentRoot, lease.id);
}

/** Deletes the leases with this label whose value is dead, after the active snapshots that they hold. */
export async function sweepLeases(
  channel: Channel,
  label: string,
  isDead: (value: string) => Promise<boolean>,
): Promise<number> {
  const all = await channel.call(leases.list, { filters: [`labels.${JSON.stringify(label)}`] });
  let swept = 0;
  for (const lease of all.leases) {
    const owner = lease.labels[label];
    if (owner === undefined || !(await isDead(owner))) continue;
    await removeWithActive(channel, lease.id);
    swept += 1;
  }
  return swept;
}

/** Success when the lease has expired and been collected meanwhile, with all that it held. */
async function removeWithActive(channel: Channel, id: string): Promise<void> {
  try {
    const { resources } = await channel.call(leases.listResources, { id });
    for (const resource of resources) {
      if (resource.type !== `snapshots/${snapshotter}` || !resource.id.startsWith("extract-")) continue;
      await removeSnapshot(channel, {}, resource.id);
    }
  } catch (error) {
    if (!(error instanceof PullError && error.code === "not_found")) throw error;
  }
  await remove(channel, id);
}

async function remove(channel: Channel, id: string): Promise<void> {
  try {
    await channel.call(leases.delete, { id, sync: false });
  } catch (error) {
    if (!(error instanceof PullError && error.code === "not_found")) throw error;
  }
}

class ContainerdLease implements Lease {
  readonly id: string;
  readonly #channel: Channel;
  readonly #contentRoot: string;

  constructor(channel: Channel, contentRoot: string, id: string) {
    this.#channel = channel;
    this.#contentRoot = contentRoot;
    this.id = id;
  }

  async holdContent(descriptor: Descriptor): Promise<boolean> {
    return await holdContent(this.#channel, this.id, descriptor);
  }

  async putContent(descriptor: Descriptor, bytes: Uint8Array, labels: Labels): Promise<void> {
    await putContent(this.#channel, this.id, descriptor, bytes, labels);
  }

  async adoptContent(descriptor: Descriptor, file: string, labels: Labels): Promise<void> {
    try {
      await adoptContent(this.#channel, this.id, this.#contentRoot, descriptor, file, labels);
    } finally {
      await rm(file, { force: true });
    }
  }

  async holdSnapshot(chainID: Digest): Promise<boolean> {
    return await holdSnapshot(this.#channel, { lease: this.id }, chainID);
  }

  async prepareSnapshot(chainID: Digest, parent: Digest | undefined): Promise<PreparedSnapshot> {
    return await prepareSnapshot(this.#channel, { lease: this.id }, chainID, parent);
  }

  async commitSnapshot(snapshot: PreparedSnapshot, chainID: Digest): Promise<void> {
    await commitSnapshot(this.#channel, { lease: this.id }, snapshot.key, chainID);
  }

  async removeSnapshot(snapshot: PreparedSnapshot): Promise<void> {
    await removeSnapshot(this.#channel, { lease: this.id }, snapshot.key);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await remove(this.#channel, this.id);
  }
}
