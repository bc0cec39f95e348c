// Whether an image is there with all that belongs to it, so that a pull of it need only ask the registry for access.
//
// What an image is made of is read where its documents lie, once; of those pulled last it is remembered what to look
// for, which is then asked of containerd anew each time. Nothing is held or written here, nothing is taken on trust from
// an earlier time but what a digest stands for, and whatever goes wrong means that the image is pulled like any other.

import type { Containerd, ContainerdFacts } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Reference } from "../oci/reference.ts";
import { type Plan, type PlannedLayer, plan, readStored } from "./plan.ts";
import { isRegistered, type Registration, registrationOf } from "./registration.ts";

/** How many images are remembered. One may take 300 KiB, with the most layers that there may be; 5 KiB are usual. */
const rememberedMax = 64;

/** An image, and what it is to be found by. */
export interface Known {
  readonly registration: Registration;
  readonly layers: readonly PlannedLayer[];
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
    // The map's order is that of age.
    this.#known.delete(name);
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
  return registration && { registration, layers: planned.layers };
}

/** Whether nothing is missing now; `isOpen` says that something is still to be done about a layer. Never rejects. */
export async function isPresent(
  { registration, layers }: Known,
  { records }: Containerd,
  isOpen: (layer: PlannedLayer) => boolean,
): Promise<boolean> {
  if (layers.some(isOpen)) return false;
  return await isRegistered(registration, records).catch(() => false);
}
