// Whether an image is there with all that belongs to it, so that a pull of it need only ask the registry for access.
//
// What an image is made of is read where its documents lie, once; of those pulled last it is remembered what to look
// for, which is then asked of containerd anew each time. Nothing is held or written here, nothing is taken on trust from
// an earlier time but what a digest stands for, and whatever goes wrong means that the image is pulled like any other.

import type { Containerd, ContainerdFacts } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import type { Reference } from "../oci/reference.ts";
import { type Plan, type PlannedLayer, plan, readStored } from "./plan.ts";
import { isAnswered, isRegistered, isSameTarget, type Registration, registrationOf } from "./registration.ts";

/** How many images are remembered, and how many labels and layers one of them may have: 100 KiB at the most, usually 5. */
const rememberedMax = 64;
const partsMax = 500;

/** An image, and what it is to be found by. */
export interface Known {
  readonly registration: Registration;
  readonly layers: readonly KnownLayer[];
}

/** What tells whether something is still to be done about a layer. */
export type KnownLayer = Pick<PlannedLayer, "chainID"> & { readonly digest: Digest };

export function knownLayers(layers: readonly PlannedLayer[]): KnownLayer[] {
  return layers.map(({ chainID, descriptor }) => ({ chainID, digest: descriptor.digest }));
}

/** Images by name, as they were when they were last pulled. */
export class Memory {
  readonly #known = new Map<string, Known & { readonly facts: ContainerdFacts }>();

  /** Nothing that was found out under other settings of containerd. */
  of({ name }: Reference, facts: ContainerdFacts): Known | undefined {
    const known = this.#known.get(name);
    return known?.facts === facts ? known : undefined;
  }

  keep({ name }: Reference, facts: ContainerdFacts, { registration, layers }: Known): void {
    this.#known.delete(name);
    const parts = [...registration.labels.values()].reduce(
      (sum, labels) => sum + Object.keys(labels).length,
      0,
    );
    if (parts + layers.length > partsMax) return;
    // The map's order is that of age.
    this.#known.set(name, { registration, layers, facts });
    const [oldest] = this.#known.keys();
    if (this.#known.size > rememberedMax && oldest !== undefined) this.#known.delete(oldest);
  }

  forget({ name }: Reference): void {
    this.#known.delete(name);
  }
}

/** What the documents of this target say. Undefined when one is not in the content store, or the image is not for us to judge. */
export async function readKnown(
  reference: Reference,
  target: Descriptor,
  facts: ContainerdFacts,
): Promise<Known | undefined> {
  let planned: Plan;
  try {
    planned = await plan(target, async (descriptor) => {
      const bytes = await readStored(descriptor, facts.contentRoot);
      if (bytes) return { bytes, isStored: true };
      throw new PullError("not_found", `${descriptor.digest} is not in the content store`);
    });
  } catch {
    return undefined;
  }
  const registration = registrationOf(reference, planned, facts);
  return registration && { registration, layers: knownLayers(planned.layers) };
}

/** Whether nothing is missing now, but for CRI's word; `isOpen` says that something is still to be done about a layer. Never rejects. */
export async function isPresent(
  { registration, layers }: Known,
  { records }: Containerd,
  isOpen: (layer: KnownLayer) => boolean,
): Promise<boolean> {
  if (layers.some(isOpen)) return false;
  return await isRegistered(registration, records).catch(() => false);
}

/**
 * Whether it is what the registry names, and still there by the time that this is known: registries may take long to
 * answer, and images are removed. Never rejects.
 */
export async function isCurrent(
  { registration }: Known,
  named: Descriptor,
  { records }: Containerd,
): Promise<boolean> {
  if (!isSameTarget(registration.record.target, named)) return false;
  return await isAnswered(registration, records).catch(() => false);
}
