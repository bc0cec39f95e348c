// An image that nobody has pulled, entered among containerd's images: as its own import does it, on every version alike.
//
// A record of the image's name is enough: CRI hears of it, looks at what it leads to, and makes of it what its version
// makes of images (the record of the id, marks, pins). So labels that keep the image's parts are on its documents before,
// and what is answered for is looked at behind that. Unlike a pull, this may have a name stand for something else than before.

import { setTimeout as sleep } from "node:timers/promises";
import type { ContainerdFacts, ImageRecord, Labels, Records } from "../containerd/containerd.ts";
import { PullError, throwIfAborted } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import type { Reference } from "../oci/reference.ts";
import type { Plan } from "./plan.ts";
import { isSameTarget, mustBePlain, references, snapshotLabel } from "./registration.ts";

/** CRI is asked again after 0, 1, 2, 4 ms and so on, up to the maximum, until it answers or this much has gone by. */
const pollMs = { max: 50, total: 10_000 } as const;

/** `name`: the reference alone; `digest`: that, and the repository with the image's digest. */
export type Names = "name" | "digest";

export interface Listing {
  /** The image's id: the digest of its config. */
  readonly id: Digest;
  readonly names: readonly string[];
  readonly record: ImageRecord;
  /** What each document is to be labelled with. */
  readonly labels: ReadonlyMap<Digest, Labels>;
}

/** `source` labels what comes from a registry. */
export function listingOf(
  reference: Reference,
  { documents, layers }: Plan,
  facts: Pick<ContainerdFacts, "discardUnpackedLayers">,
  { names, source }: { readonly names: Names; readonly source: Labels },
): Listing {
  mustBePlain(reference);
  const { name, host, repository } = reference;
  const [target] = documents;
  const config = documents.find(({ kind }) => kind === "config");
  const top = layers.at(-1);
  if (!target || !config || !top)
    throw new PullError("unsupported", "an image without layers cannot be listed");
  const { mediaType, digest, size } = target.descriptor;
  const byDigest = names === "digest" ? [`${host}/${repository}@${digest}`] : [];
  return {
    id: config.descriptor.digest,
    names: [...new Set([name, ...byDigest])],
    record: { target: { mediaType, digest, size }, labels: {} },
    labels: new Map(
      documents.map((document) => {
        const own = document === config ? { [snapshotLabel]: top.chainID } : references(document, facts);
        return [document.descriptor.digest, { ...own, ...source }];
      }),
    ),
  };
}

/** What may be replaced by another image: whatever there is, or only what it was when the image was asked for. */
type Replaced = "any" | Descriptor | undefined;

/**
 * Makes the records, whose documents and snapshots have to be in place and held, and waits until CRI answers for the image
 * under each name. Throws `unavailable` when a name has come to stand for something else than may be replaced, or when CRI
 * does not come to know the image; then the records are as they were.
 */
export async function list(
  wanted: Listing,
  replaced: Replaced,
  records: Records,
  signal: AbortSignal,
): Promise<void> {
  const undo: (() => Promise<void>)[] = [];
  try {
    for (const name of wanted.names) undo.push(await enter(name, wanted.record, replaced, records));
    await untilListed(wanted, records, signal);
  } catch (error) {
    for (const one of undo.toReversed()) await one().catch(() => {});
    throw error;
  }
}

async function untilListed(wanted: Listing, records: Records, signal: AbortSignal): Promise<void> {
  const deadline = performance.now() + pollMs.total;
  for (let pauseMs = 0; performance.now() < deadline; pauseMs = Math.min(2 * pauseMs || 1, pollMs.max)) {
    throwIfAborted(signal);
    const found = await Promise.all(wanted.names.map(async (name) => await records.status(name)));
    if (found.every((image) => image?.id === wanted.id)) return;
    await sleep(pauseMs, undefined, { signal }).catch(() => {});
  }
  throw new PullError("unavailable", `containerd does not list ${wanted.names[0]} after 10 s`);
}

/** Returns what undoes it. One that stands for the same is left as it is: CRI has marked it. */
async function enter(
  name: string,
  record: ImageRecord,
  replaced: Replaced,
  records: Records,
): Promise<() => Promise<void>> {
  const found = await records.image(name);
  if (found === undefined) return await make(name, record, replaced, records);
  if (isSameTarget(found.target, record.target)) return async () => {};
  const may = replaced === "any" || (replaced && isSameTarget(found.target, replaced));
  if (!may) {
    const text = `${name} has come to stand for another image meanwhile`;
    throw new PullError("unavailable", text, { temporary: true });
  }
  await records.replaceImage(name, record);
  return async () => await records.replaceImage(name, found);
}

async function make(
  name: string,
  record: ImageRecord,
  replaced: Replaced,
  records: Records,
): Promise<() => Promise<void>> {
  try {
    await records.createImage(name, record);
    return async () => await records.removeImage(name);
  } catch (error) {
    // Somebody else has made one meanwhile.
    if (error instanceof PullError && error.code === "exists")
      return await enter(name, record, replaced, records);
    throw error;
  }
}
