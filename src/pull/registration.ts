// What containerd's own PullImage leaves of an image beside its layers: three records, and labels on its documents. Here
// it is worked out, looked for, and made (reference 2.3, 2.4 and 9.1).
//
// Labels go onto blobs as these are written, and records come last: CRI reads what they lead to the moment it hears of
// them, and answers for the image some milliseconds later, which is waited for. What might be refused by containerd, or
// be marked otherwise than usual, is not made here but left to its PullImage. No record that is there is ever changed.

import { setTimeout as sleep } from "node:timers/promises";
import type { ContainerdFacts, ImageRecord, Labels, Records } from "../containerd/containerd.ts";
import { mergeLabel } from "../containerd/content.ts";
import { PullError, throwIfAborted } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import { countOwn, hostPlatform } from "../oci/manifest.ts";
import { isManifest } from "../oci/media.ts";
import { isOrdinary } from "../oci/ordinary.ts";
import { parseReference, type Reference } from "../oci/reference.ts";
import type { Document, Plan } from "./plan.ts";

const managedLabel = "io.cri-containerd.image";
const referencePrefix = "containerd.io/gc.ref.content.";
/** Of a config: the topmost layer. */
export const snapshotLabel = "containerd.io/gc.ref.snapshot.overlayfs";
const sourcePrefix = "containerd.io/distribution.source.";
/** Hosts that every version of containerd takes for one, and names alike. */
const plainHost = /^(?:[a-z0-9-]+(?:\.[a-z0-9-]+)+(?::\d+)?|[a-z0-9-]+:\d+|localhost)$/;

/** CRI is asked again after 0, 1, 2, 4 ms and so on, up to the maximum, until it knows the image or this much has gone by. */
const pollMs = { max: 50, total: 2_000 } as const;

export interface Registration {
  /** The image's id: the digest of its config. */
  readonly id: Digest;
  /** Of the record that is the reference's own. */
  readonly name: string;
  /** Of all its records: the id, the tag if there is one, and the digest. */
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
  if (!target || !config || !top || !plainHost.test(reference.host) || isPinned(reference, facts))
    return undefined;
  if (target.kind === "index" && !isPlainIndex(target)) return undefined;
  const source = sourceOf(reference);
  const labels = new Map<Digest, Labels>();
  for (const document of documents) {
    const own = document === config ? { [snapshotLabel]: top.chainID } : references(document, facts);
    labels.set(document.descriptor.digest, { ...own, ...source });
  }
  const { mediaType, digest, size } = target.descriptor;
  const byDigest = `${reference.host}/${reference.repository}@${digest}`;
  return {
    id: config.descriptor.digest,
    name: reference.name,
    names: [...new Set([config.descriptor.digest, reference.name, byDigest])],
    record: { target: { mediaType, digest, size }, labels: { [managedLabel]: "managed" } },
    topChainID: top.chainID,
    labels,
  };
}

/** containerd labels other things than manifests otherwise. */
function isPlainIndex({ children }: Document): boolean {
  return countOwn(children, hostPlatform()) <= 1 && children.every(({ mediaType }) => isManifest(mediaType));
}

/** Throws `invalid` for a name that some versions of containerd do not take for one. */
export function mustBePlain({ name, host }: Reference): void {
  if (plainHost.test(host)) return;
  throw new PullError("invalid", `${name} has a host that not every containerd takes for one`);
}

function isSource(key: string): boolean {
  return key.startsWith(sourcePrefix);
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

/** Labels by which a document keeps what it names. */
export function references(
  { kind, children }: Pick<Document, "kind" | "children">,
  facts: Pick<ContainerdFacts, "discardUnpackedLayers">,
): Labels {
  if (kind === "index")
    return Object.fromEntries(children.map(({ digest }, nth) => [`${referencePrefix}m.${nth}`, digest]));
  const [config, ...layers] = children;
  const kept = facts.discardUnpackedLayers ? [] : layers;
  return {
    ...(config && { [`${referencePrefix}config`]: config.digest }),
    ...Object.fromEntries(kept.map(({ digest }, nth) => [`${referencePrefix}l.${nth}`, digest])),
  };
}

/** Whether records, labels and snapshots are there. CRI is another matter: {@link isAnswered}. */
export async function isRegistered(wanted: Registration, records: Records): Promise<boolean> {
  const tests = await Promise.all([
    ...wanted.names.map(async (name) => isSame(name, await records.image(name), wanted)),
    ...Array.from(wanted.labels, async ([digest, labels]) =>
      hasLabels(await records.contentLabels(digest), labels),
    ),
    records.hasSnapshot(wanted.topChainID),
  ]);
  return tests.every(Boolean);
}

/** Whether the record is as containerd would leave it: it writes the labels of the reference's own anew. */
function isSame(name: string, found: ImageRecord | undefined, wanted: Registration): boolean {
  const { target, labels } = wanted.record;
  if (found === undefined || !isSameTarget(found.target, target) || !hasLabels(found.labels, labels))
    return false;
  return name !== wanted.name || Object.keys(found.labels).length === Object.keys(labels).length;
}

/** Whether two records with these targets stand for one image. */
export function isSameTarget(one: Descriptor, other: Descriptor): boolean {
  return one.digest === other.digest && one.mediaType === other.mediaType && one.size === other.size;
}

function hasLabels(found: Labels | undefined, wanted: Labels): boolean {
  return Object.entries(wanted).every(([key, value]) => {
    const present = found?.[key];
    return (
      present !== undefined &&
      mergeLabel(key, present, value) === present &&
      (isSource(key) || present === value)
    );
  });
}

/** Whether CRI knows the image by its id and under every name. */
export async function isAnswered({ id, names }: Registration, records: Records): Promise<boolean> {
  const status = await records.status(id);
  if (status?.id !== id) return false;
  const known = new Set([id, ...status.tags, ...status.digests]);
  return names.every((name) => known.has(name));
}

/** Whether containerd is sure to take these documents for an image. */
export function isTaken({ documents }: Plan): boolean {
  return documents.every(({ kind, bytes }) => isOrdinary(kind, bytes));
}

/**
 * Makes the records of an image whose documents and snapshots are in place, and waits until CRI answers for it. False
 * when it is not for us to finish: a name stands for something else, or CRI does not come to know it. Then, and when it
 * throws, no record that it made is left: nobody would remove those of an image that containerd refuses.
 */
export async function register(
  wanted: Registration,
  records: Records,
  signal: AbortSignal,
): Promise<boolean> {
  const made: string[] = [];
  const make = async (name: string): Promise<boolean> => {
    const isMade = await makeRecord(name, wanted, records);
    if (isMade === "made") made.push(name);
    return isMade !== undefined;
  };
  let isDone = false;
  try {
    const outcomes = await Promise.allSettled(wanted.names.map(make));
    const failed = outcomes.find(({ status }) => status === "rejected");
    if (failed?.status === "rejected") throw failed.reason;
    const isOurs = outcomes.every((outcome) => outcome.status === "fulfilled" && outcome.value);
    isDone = isOurs && (await untilAnswered(wanted, records, signal));
    return isDone;
  } finally {
    if (!isDone) await Promise.allSettled(made.map((name) => records.removeImage(name)));
  }
}

async function untilAnswered(wanted: Registration, records: Records, signal: AbortSignal): Promise<boolean> {
  const deadline = performance.now() + pollMs.total;
  for (let pauseMs = 0; performance.now() < deadline; pauseMs = Math.min(2 * pauseMs || 1, pollMs.max)) {
    throwIfAborted(signal);
    if (await isAnswered(wanted, records)) return true;
    await sleep(pauseMs, undefined, { signal }).catch(() => {});
  }
  return false;
}

/** Undefined when there is another of this name. */
async function makeRecord(
  name: string,
  wanted: Registration,
  records: Records,
): Promise<"made" | "found" | undefined> {
  try {
    await records.createImage(name, wanted.record);
    return "made";
  } catch (error) {
    if (!(error instanceof PullError && error.code === "exists")) throw error;
    return isSame(name, await records.image(name), wanted) ? "found" : undefined;
  }
}
