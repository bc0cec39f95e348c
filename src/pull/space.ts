// Whether the disk can hold what an image still needs, asked once its manifest is known and before any layer byte is.
//
// It is an estimate: how far a layer unfolds is known only once it has. So it is a low one, which turns away what could
// not have fitted and never what might have; the rest meets a full disk in earnest, which is handled where it happens.
// Where blobs are not kept it also says whether their spools may stay until the pull is over, which makes a broken-off
// pull cheap to repeat, or have to go as soon as their layers are unpacked.

import type { BigIntStatsFs } from "node:fs";
import { stat, statfs } from "node:fs/promises";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import type { PlannedLayer } from "./plan.ts";

/** What is to be on disk that is not there yet. */
export interface Need {
  readonly layers: readonly PlannedLayer[];
  /** The blobs stay in the content store. */
  readonly keep: boolean;
  /** How many bytes of a blob the spool has from an earlier attempt. */
  readonly present: (descriptor: Descriptor) => number;
  /** How many bytes of a volume must stay free, where that is the configuration's to say. */
  readonly spare?: ((volume: Volume) => number) | undefined;
  /** The estimate is a high one, since nobody waits for the image. */
  readonly isHigh?: boolean;
}

/** The folders that a pull fills: of spools (compressed bytes) and of staging (unpacked bytes). */
export interface Filled {
  readonly spool: string;
  readonly staging: string;
}

/** A file system as far as it matters here. */
export interface Volume {
  /** Equal for two folders exactly when they share their space. */
  readonly id: string;
  readonly freeBytes: number;
  readonly sizeBytes: number;
}

/** `tight`: all spools and all trees may not fit side by side. */
export type Room = "ample" | "tight";

/** Left free for everybody else on the node: containerd's database, logs, running containers. */
const reserveBytes = 32 * 1024 * 1024;
/** Layers that are compressed seldom unfold to more than so many times their blob. */
const usualRatioMax = 4;

/** Throws `exhausted`, naming folder and shortfall, when the missing layers cannot fit. */
export async function mustFit(
  { layers, keep, present, spare, isHigh = false }: Need,
  { spool, staging }: Filled,
  measure: (folder: string) => Promise<Volume> = volumeOf,
): Promise<Room> {
  // A tree is not smaller than the blob that it comes from, give or take what compression adds to random bytes.
  const leastBytes = layers.reduce((sum, { descriptor }) => sum + descriptor.size, 0);
  if (leastBytes === 0) return "ample";
  const treeBytes = isHigh ? usualBytes(layers) : leastBytes;
  // One blob can be several layers.
  const blobs = new Map<Digest, Descriptor>(layers.map(({ descriptor }) => [descriptor.digest, descriptor]));
  const missing = [...blobs.values()].map((blob) => Math.max(0, blob.size - present(blob)));
  const all = missing.reduce((sum, bytes) => sum + bytes, 0);
  // At the least the largest one is there beside the trees.
  const least = keep ? all : missing.reduce((most, bytes) => Math.max(most, bytes), 0);
  const [spools, trees] = await Promise.all([measure(spool), measure(staging)]);
  const spareOf = spare ?? reserve;
  if (spools.id === trees.id) {
    mustHave(spools, least + treeBytes, spool, spareOf);
    return keep || has(spools, all + usualBytes(layers), reserveBytes) ? "ample" : "tight";
  }
  mustHave(spools, least, spool, spareOf);
  mustHave(trees, treeBytes, staging, spareOf);
  return keep || has(spools, all, reserveBytes) ? "ample" : "tight";
}

/** What trees of these layers usually take. */
function usualBytes(layers: readonly PlannedLayer[]): number {
  const isPacked = ({ mediaType }: Descriptor): boolean => !mediaType.endsWith(".tar");
  return layers.reduce(
    (sum, { descriptor }) => sum + descriptor.size * (isPacked(descriptor) ? usualRatioMax : 1),
    0,
  );
}

function reserve(): number {
  return reserveBytes;
}

function has({ freeBytes }: Volume, neededBytes: number, spareBytes: number): boolean {
  return neededBytes + spareBytes <= freeBytes;
}

function mustHave(
  volume: Volume,
  neededBytes: number,
  folder: string,
  spareOf: (volume: Volume) => number,
): void {
  const spareBytes = spareOf(volume);
  if (has(volume, neededBytes, spareBytes)) return;
  const { freeBytes } = volume;
  const key = spareOf === reserve ? "" : " (prewarm.min_free_disk)";
  const shortBytes = neededBytes + spareBytes - freeBytes;
  throw new PullError(
    "exhausted",
    `${folder} has ${mebibytes(freeBytes)} MiB free and the image needs at least ${mebibytes(neededBytes)} MiB ` +
      `with ${mebibytes(spareBytes)} MiB to spare${key}: ${mebibytes(shortBytes)} MiB too little`,
  );
}

function mebibytes(bytes: number): number {
  return Math.ceil(bytes / 1048576);
}

/** What an unprivileged writer would have, as containerd's own checks and kubelet's eviction count it. */
export async function volumeOf(folder: string): Promise<Volume> {
  const [{ dev }, space]: [{ dev: bigint }, BigIntStatsFs] = await Promise.all([
    stat(folder, { bigint: true }),
    statfs(folder, { bigint: true }),
  ]);
  const [freeBytes, sizeBytes] = [space.bavail, space.blocks].map((blocks) => Number(blocks * space.bsize));
  return { id: String(dev), freeBytes: freeBytes ?? 0, sizeBytes: sizeBytes ?? 0 };
}
