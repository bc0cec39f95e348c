// Holds: leases that outlast the pull behind them, for images that stay on the node although no record leads to them.
//
// They are found again by their labels, so that nothing about them is kept anywhere else. Each ends by itself: whatever
// becomes of Hawser, containerd collects in the end what nobody holds any more.

import { randomUUID } from "node:crypto";
import { PullError } from "../errors.ts";
import type { Digest } from "../oci/digest.ts";
import { type Channel, unlessMissing } from "./channel.ts";
import type { Hold, Holdable, Holds } from "./containerd.ts";
import { expiresAfter } from "./lease.ts";
import { leases } from "./methods.ts";
import { snapshotter } from "./snapshots.ts";

const labels = { name: "io.hawser/warm", target: "io.hawser/target", bytes: "io.hawser/bytes" } as const;

export class ContainerdHolds implements Holds {
  readonly #channel: Channel;

  constructor(channel: Channel) {
    this.#channel = channel;
  }

  async make(name: string, { target, contents, chainID, bytes }: Holdable, lifeMs: number): Promise<Hold> {
    const resources = contents.map((id) => ({ type: "content", id: id as string }));
    if (chainID) resources.push({ type: `snapshots/${snapshotter}`, id: chainID });
    const own = { [labels.name]: name, [labels.target]: target, [labels.bytes]: String(bytes) };
    return { id: await this.#make(own, resources, lifeMs), name, target, bytes };
  }

  async renew(hold: Hold, lifeMs: number): Promise<Hold | undefined> {
    const { id, name, target, bytes } = hold;
    const found = await unlessMissing(this.#channel.call(leases.listResources, { id }));
    if (found === undefined) return undefined;
    const own = { [labels.name]: name, [labels.target]: target, [labels.bytes]: String(bytes) };
    const renewed = { ...hold, id: await this.#make(own, found.resources, lifeMs) };
    await this.release(hold);
    return renewed;
  }

  async release({ id }: Pick<Hold, "id">): Promise<void> {
    await unlessMissing(this.#channel.call(leases.delete, { id, sync: false }));
  }

  async list(): Promise<readonly Hold[]> {
    const all = await this.#channel.call(leases.list, { filters: [`labels.${JSON.stringify(labels.name)}`] });
    return all.leases.map(({ id, labels: own }) => ({
      id,
      name: own[labels.name] ?? "",
      target: (own[labels.target] ?? "") as Digest,
      bytes: Number(own[labels.bytes] ?? 0),
    }));
  }

  /** Nothing is left of one that is not complete. */
  async #make(
    own: Readonly<Record<string, string>>,
    resources: readonly { readonly type: string; readonly id: string }[],
    lifeMs: number,
  ): Promise<string> {
    const id = `hawser-warm-${randomUUID()}`;
    await this.#channel.call(leases.create, { id, labels: { ...own, ...expiresAfter(lifeMs) } });
    try {
      for (const { type, id: resource } of resources)
        await this.#channel.call(leases.addResource, { id, resource: { type, id: resource } });
      return id;
    } catch (error) {
      await this.release({ id }).catch(() => {});
      throw PullError.from(error);
    }
  }
}
