// What containerd's own PullImage leaves of an image beside its layers: three records, and labels on its documents. Here
// it is worked out, looked for, and made (reference 2.3, 2.4 and 9.1).
//
// Labels go onto blobs as these are written, and records come last: CRI reads what they lead to the moment it hears of
// them, and answers for the image some milliseconds later, which is waited for. What might be refused by containerd, or
// be marked otherwise than usual, is not made here but left to its PullImage. No record that is there is ever changed.

import { setTimeout as sleep } from "node:timers/promises";
import type { ContainerdFacts, ImageRecord, Labels, Records } from "../containerd/containerd.ts";
import { sourcePrefix } from "../containerd/content.ts";
import { PullError, throwIfAborted } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import { countOwn, hostPlatform } from "../oci/manifest.ts";
import { isConfig, isIndex, isManifest } from "../oci/media.ts";
import { isOrdinary } from "../oci/ordinary.ts";
import { parseReference, type Reference } from "../oci/reference.ts";
import type { Plan } from "./plan.ts";

const managedLabel = "io.cri-containerd.image";
const referencePrefix = "containerd.io/gc.ref.content.";
const snapshotLabel = "containerd.io/gc.ref.snapshot.overlayfs";
/** Most bytes of a label, key and value together (containerd's labels.Validate). */
const labelBytesMax = 4096;

/** CRI is asked again after 0, 1, 2, 4 ms and so on, up to the maximum, until it knows the image or this much has gone by. */
const pollMs = { max: 50, total: 2_000 } as const;

export interface Registration {
  /** The image's id: the digest of its config. */
  readonly id: Digest;
  /** Of its records: the id, the tag if there is one, and the digest. */
  readonly names: readonly string[];
  readonly record: ImageRecord;
  readonly topChainID: Digest;
  /** What each document is to be labelled with. */
  readonly labels: ReadonlyMap<Digest, Labels>;
}

/**
 * Undefined for an image that containerd registers in a way of its own, for one without layers, and for an index with
 * more than one that fits: containerd 2.1 pulls them all.
 */
export function registrationOf(
  reference: Reference,
  { documents, layers }: Plan,
  facts: ContainerdFacts,
): Registration | undefined {
  const [target] = documents;
  const config = documents.find(({ kind }) => kind === "config");
  const top = layers.at(-1);
  if (!target || !config || !top || isPinned(reference, facts)) return undefined;
  if (target.kind === "index" && countOwn(target.children, hostPlatform()) > 1) return undefined;
  const source = sourceOf(reference);
  const labels = new Map<Digest, Labels>();
  for (const document of documents) {
    const own = document === config ? { [snapshotLabel]: top.chainID } : references(document.children, facts);
    if (own === undefined) return undefined;
    labels.set(document.descriptor.digest, { ...own, ...source });
  }
  const { mediaType, digest, size } = target.descriptor;
  const byDigest = `${reference.host}/${reference.repository}@${digest}`;
  return {
    id: config.descriptor.digest,
    names: [...new Set([config.descriptor.digest, reference.name, byDigest])],
    record: { target: { mediaType, digest, size }, labels: { [managedLabel]: "managed" } },
    topChainID: top.chainID,
    labels,
  };
}

/** The label of blobs from this repository. */
export function sourceOf({ host, repository }: Reference): Labels {
  return { [`${sourcePrefix}${host.replace(/:\d+$/, "")}`]: repository };
}

/** Sandbox images are marked as such by some versions and not by others, and have names that every version has set anew. */
function isPinned({ name, repository }: Reference, { pinnedImages }: ContainerdFacts): boolean {
  return (
    repository.split("/").at(-1) === "pause" || pinnedImages.some((pinned) => canonical(pinned) === name)
  );
}

function canonical(name: string): string | undefined {
  try {
    return parseReference(name).name;
  } catch {
    return undefined;
  }
}

/** Labels by which a document keeps what it names; undefined where containerd's are of another kind. */
function references(children: readonly Descriptor[], facts: ContainerdFacts): Labels | undefined {
  const labels: Record<string, Digest> = {};
  let [manifests, layers] = [0, 0];
  for (const { mediaType, digest } of children) {
    if (isConfig(mediaType)) labels[`${referencePrefix}config`] = digest;
    else if (isManifest(mediaType) || isIndex(mediaType))
      labels[`${referencePrefix}m.${manifests++}`] = digest;
    else if (!/\.layer\.|rootfs\.diff/.test(mediaType)) return undefined;
    else if (!facts.discardUnpackedLayers) labels[`${referencePrefix}l.${layers++}`] = digest;
  }
  return labels;
}

/** Whether nothing is left to be done for this image. */
export async function isRegistered(wanted: Registration, records: Records): Promise<boolean> {
  const [tests, status] = await Promise.all([
    Promise.all([
      ...wanted.names.map(async (name) => isSame(await records.image(name), wanted.record)),
      ...Array.from(wanted.labels, async ([digest, labels]) =>
        hasLabels(await records.contentLabels(digest), labels),
      ),
      records.hasSnapshot(wanted.topChainID),
    ]),
    records.status(wanted.id),
  ]);
  return tests.every(Boolean) && answers(status, wanted);
}

function isSame(found: ImageRecord | undefined, { target, labels }: ImageRecord): boolean {
  return found !== undefined && isSameTarget(found.target, target) && hasLabels(found.labels, labels);
}

/** Whether two records with these targets stand for one image. */
export function isSameTarget(one: Descriptor, other: Descriptor): boolean {
  return one.digest === other.digest && one.mediaType === other.mediaType && one.size === other.size;
}

function hasLabels(found: Labels | undefined, wanted: Labels): boolean {
  return Object.entries(wanted).every(([key, value]) => {
    const present = found?.[key];
    return present === value || (key.startsWith(sourcePrefix) && present?.split(",").includes(value));
  });
}

/** Whether CRI knows the image by its id and under every name. */
function answers(status: Awaited<ReturnType<Records["status"]>>, { id, names }: Registration): boolean {
  if (status?.id !== id) return false;
  const known = new Set([id, ...status.tags, ...status.digests]);
  return names.every((name) => known.has(name));
}

/** Whether containerd is sure to take these documents for an image, and these labels. */
export function isTaken({ labels }: Registration, { documents }: Plan): boolean {
  const all = [...labels.values()].flatMap((own) => Object.entries(own));
  return (
    all.every(([key, value]) => key.length + value.length <= labelBytesMax) &&
    documents.every(({ kind, bytes }) => isOrdinary(kind, bytes))
  );
}

/**
 * Makes the records of an image whose documents and snapshots are in place, and waits until CRI answers for it. False
 * when it is not for us to finish: a name stands for something else, or CRI does not come to know it.
 */
export async function register(
  wanted: Registration,
  records: Records,
  signal: AbortSignal,
): Promise<boolean> {
  const made = await Promise.all(wanted.names.map((name) => makeRecord(name, wanted.record, records)));
  if (!made.every(Boolean)) return false;
  const deadline = performance.now() + pollMs.total;
  for (let pauseMs = 0; performance.now() < deadline; pauseMs = Math.min(2 * pauseMs || 1, pollMs.max)) {
    throwIfAborted(signal);
    if (answers(await records.status(wanted.id), wanted)) return true;
    await sleep(pauseMs, undefined, { signal }).catch(() => {});
  }
  return false;
}

async function makeRecord(name: string, record: ImageRecord, records: Records): Promise<boolean> {
  try {
    await records.createImage(name, record);
    return true;
  } catch (error) {
    if (!(error instanceof PullError && error.code === "exists")) throw error;
    return isSame(await records.image(name), record);
  }
}
