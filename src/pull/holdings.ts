// What the node has of an image's layers already, whole or in part: committed, parked in the spool, or as a blob that
// somebody else has fetched; and whether there is room for what is missing.
//
// Nothing is fetched here. What is found is held by the pull's lease before anybody relies on it.

import { join } from "node:path";
import type { Holdable, Lease } from "../containerd/containerd.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { hexOf } from "../oci/digest.ts";
import type { ImageOptions } from "./image.ts";
import type { Plan, PlannedLayer } from "./plan.ts";
import { mustFit, type Room } from "./space.ts";

export class Holdings {
  readonly #image: Pick<ImageOptions, "ahead" | "given" | "keepLayers" | "site" | "work">;
  readonly #lease: Lease;

  constructor(image: Pick<ImageOptions, "ahead" | "given" | "keepLayers" | "site" | "work">, lease: Lease) {
    this.#image = image;
    this.#lease = lease;
  }

  /**
   * Layers that are committed and whose blobs are not where containerd would have them: another pull of ours has them
   * still, or broke off and left them. Such a layer is gone through like a missing one, which brings its blob along. Of an
   * image that is given all are looked for, since nobody could fetch them later.
   */
  async findUnkept(layers: readonly PlannedLayer[]): Promise<Set<PlannedLayer>> {
    const { work, site, keepLayers, given } = this.#image;
    const unkept = new Set<PlannedLayer>();
    if (!keepLayers) return unkept;
    for (const layer of layers) {
      const isLeft = site.spools.isParked(layer.descriptor.digest);
      if (work.isUnderWay(layer.chainID)) unkept.add(layer);
      else if (isLeft && (await this.#lease.holdContent(layer.descriptor)))
        await site.spools.drop([layer.descriptor.digest]);
      else if (isLeft) unkept.add(layer);
      else if (given && !(await this.#lease.holdContent(layer.descriptor))) unkept.add(layer);
    }
    return unkept;
  }

  /** Blobs without their snapshots, which somebody else has fetched, are gone on with like what a pull of ours left. */
  async borrow(missing: readonly PlannedLayer[]): Promise<void> {
    const { site, work } = this.#image;
    const wanted = missing.filter(
      ({ chainID, descriptor }) => !work.isUnderWay(chainID) && !site.spools.isParked(descriptor.digest),
    );
    const blobs = new Map(wanted.map(({ descriptor }) => [descriptor.digest, descriptor]));
    await Promise.all(
      Array.from(blobs.values(), async (blob) => {
        if (!(await this.#lease.holdContent(blob))) return;
        await site.spools.borrow(blob, join(site.facts.contentRoot, "blobs/sha256", hexOf(blob.digest)));
      }),
    );
  }

  /**
   * What earlier pulls left in the spool gives way to a pull that needs the space, but for what it can go on with; to one
   * that nobody waits for it does not.
   */
  async fit(missing: readonly PlannedLayer[]): Promise<Room> {
    const { site, work, keepLayers, ahead, given } = this.#image;
    const { facts, spools } = site;
    const layers = missing.filter(({ chainID }) => !work.isUnderWay(chainID));
    const need = {
      layers,
      keep: keepLayers,
      present: (blob: Descriptor) => spools.presentBytes(blob),
      spare: ahead?.spare ?? given?.spare,
      isHigh: ahead !== undefined,
    };
    const folders = { spool: facts.contentRoot, staging: facts.snapshotterRoot };
    try {
      return await mustFit(need, folders);
    } catch (error) {
      const own = new Set(layers.map(({ descriptor }) => descriptor.digest));
      if (ahead || !(await spools.dropAllBut(own))) throw error;
      return await mustFit(need, folders);
    }
  }
}

/** What is to be held of an image, that it may stay without a record. */
export function holdableOf({ documents, layers }: Plan, keepLayers: boolean): Holdable | undefined {
  const digests = [...documents, ...(keepLayers ? layers : [])].map(({ descriptor }) => descriptor.digest);
  const [target] = digests;
  const bytes = layers.reduce((sum, { descriptor }) => sum + descriptor.size, 0);
  return target && { target, contents: [...new Set(digests)], chainID: layers.at(-1)?.chainID, bytes };
}
