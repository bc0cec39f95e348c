// A lease of containerd, and everything that is done under it.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import { type Channel, unlessMissing } from "./channel.ts";
import type { Labels, Lease, PreparedSnapshot } from "./containerd.ts";
import { adoptContent, holdContent, putContent } from "./content.ts";
import { leases } from "./methods.ts";
import { commitSnapshot, holdSnapshot, prepareSnapshot, removeSnapshot, snapshotter } from "./snapshots.ts";

/** A lease that nobody deletes stops protecting after this long, as containerd's own do (reference 2.2). */
const expiryMs = 24 * 60 * 60 * 1000;

/** Pauses between attempts to delete a lease. */
const removalRetriesMs = [100, 300, 1000, 3000, 9000];

/** The label of a lease that stops protecting by itself. */
export function expiresAfter(ms: number): Labels {
  // RFC 3339 in whole seconds, as containerd writes it.
  return { "containerd.io/gc.expire": new Date(Date.now() + ms).toISOString().replace(/\.\d+Z$/, "Z") };
}

/** Names of what this process makes, holds or deletes now, which no sweep of its own may take for left over. */
export type Held = Set<string>;

export async function createLease(
  channel: Channel,
  contentRoot: string,
  labels: Labels,
  held: Held,
): Promise<Lease> {
  const id = `hawser-${randomUUID()}`;
  held.add(id);
  try {
    await channel.call(leases.create, { id, labels: { ...labels, ...expiresAfter(expiryMs) } });
  } catch (error) {
    // Perhaps only the answer was lost. What this cannot delete is nobody's, and swept with the next connection.
    void remove(channel, id)
      .catch(() => {})
      .finally(() => held.delete(id));
    throw error;
  }
  return new ContainerdLease(channel, contentRoot, id, held);
}

/**
 * Deletes the leases with this label whose value is dead, after the active snapshots that they hold, and waits until
 * what they alone protected is gone. What is held here is not asked about.
 */
export async function sweepLeases(
  channel: Channel,
  label: string,
  held: Held,
  isDead: (value: string) => Promise<boolean>,
): Promise<number> {
  const all = await channel.call(leases.list, { filters: [`labels.${JSON.stringify(label)}`] });
  const dead: string[] = [];
  for (const { id, labels } of all.leases) {
    const owner = labels[label];
    if (owner !== undefined && !held.has(id) && (await isDead(owner))) dead.push(id);
  }
  for (const id of dead) await removeWithActive(channel, id, id === dead.at(-1));
  return dead.length;
}

/** Success when the lease has expired and been collected meanwhile, with all that it held. */
async function removeWithActive(channel: Channel, id: string, sync: boolean): Promise<void> {
  try {
    const { resources } = await channel.call(leases.listResources, { id });
    for (const resource of resources) {
      if (resource.type !== `snapshots/${snapshotter}` || !resource.id.startsWith("extract-")) continue;
      await removeSnapshot(channel, {}, resource.id);
    }
  } catch (error) {
    if (!(error instanceof PullError && error.code === "not_found")) throw error;
  }
  await remove(channel, id, sync);
}

/** With `sync`, garbage collection has run when it returns. */
async function remove(channel: Channel, id: string, sync = false): Promise<void> {
  await unlessMissing(channel.call(leases.delete, { id, sync }));
}

class ContainerdLease implements Lease {
  readonly id: string;
  readonly #channel: Channel;
  readonly #contentRoot: string;
  readonly #held: Held;

  constructor(channel: Channel, contentRoot: string, id: string, held: Held) {
    this.#channel = channel;
    this.#contentRoot = contentRoot;
    this.id = id;
    this.#held = held;
  }

  async holdContent(descriptor: Descriptor): Promise<boolean> {
    return await holdContent(this.#channel, this.id, descriptor);
  }

  async putContent(descriptor: Descriptor, bytes: Uint8Array, labels: Labels): Promise<void> {
    await putContent(this.#channel, this.id, descriptor, bytes, labels);
  }

  async adoptContent(descriptor: Descriptor, file: string, labels: Labels): Promise<void> {
    await adoptContent(this.#channel, this.id, this.#contentRoot, descriptor, file, labels);
  }

  async holdSnapshot(chainID: Digest, signal?: AbortSignal): Promise<boolean> {
    return await holdSnapshot(this.#channel, { lease: this.id }, chainID, signal);
  }

  async prepareSnapshot(
    chainID: Digest,
    parent: Digest | undefined,
    labels: Labels,
  ): Promise<PreparedSnapshot> {
    return await prepareSnapshot(this.#channel, { lease: this.id }, chainID, parent, labels);
  }

  async commitSnapshot(snapshot: PreparedSnapshot, chainID: Digest): Promise<void> {
    await commitSnapshot(this.#channel, { lease: this.id }, snapshot, chainID);
  }

  async removeSnapshot(snapshot: PreparedSnapshot): Promise<void> {
    await removeSnapshot(this.#channel, { lease: this.id }, snapshot.key);
  }

  /** Tries again for a while; after that, the lease is swept with the next connection. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#remove();
    } finally {
      this.#held.delete(this.id);
    }
  }

  async #remove(): Promise<void> {
    for (const waitMs of removalRetriesMs) {
      try {
        await remove(this.#channel, this.id);
        return;
      } catch (error) {
        // The connection is closed: the next instance sweeps it.
        if (PullError.from(error).code === "cancelled") throw error;
        await sleep(waitMs);
      }
    }
    await remove(this.#channel, this.id);
  }
}
