// The disk: room, and inodes, where blobs and layers go, measured as kubelet does, which deletes images when they run out.

import type { BigIntStatsFs } from "node:fs";
import { statfs } from "node:fs/promises";
import { dirname, join } from "node:path";
import { rootsOf } from "./containerd.ts";
import type { Context, Finding } from "./doctor.ts";
import { mountOf, parseMounts } from "./mounts.ts";
import type { Tree } from "./tree.ts";

export interface Room {
  readonly freeBytes: number;
  readonly sizeBytes: number;
  readonly freeInodes: number;
  /** 0 where inodes are not counted. */
  readonly inodes: number;
}

/** Below this share kubelet begins to delete images (imageGCHighThresholdPercent is 85). */
const freeShareMin = 0.15;
/** Less than a large image needs, unpacked and compressed. */
const freeBytesMin = 2 * 1024 ** 3;
/** kubelet evicts pods below this share of inodes (imagefs.inodesFree). */
const freeInodesShareMin = 0.05;

export async function* checkDisk(
  context: Context,
  _signal: AbortSignal,
  measure: (folder: string) => Promise<Room> = roomOf,
): AsyncGenerator<Finding> {
  const { tree } = context;
  const { content, snapshots } = rootsOf(await context.inspection());
  const places: [string, string | undefined][] = [
    ["content", content],
    ["snapshots", snapshots],
    ["spool", content && join(dirname(content), "io.hawser/spool")],
  ];
  const mounts = parseMounts(await tree.read("/proc/self/mountinfo"));
  const told = new Map<string, string>();
  for (const [what, folder] of places) {
    if (folder === undefined) {
      yield { state: "unknown", what, finding: "containerd does not say where it is" };
      continue;
    }
    const place = await existing(tree, folder);
    const mount = mountOf(mounts, await tree.real(folder));
    const sharing = mount && told.get(mount.id);
    if (sharing !== undefined) {
      yield { state: "ok", what, finding: `${folder}, on the same file system as ${sharing}` };
      continue;
    }
    if (mount) told.set(mount.id, what);
    if (mount?.isReadOnly) {
      const todo = `look for the file system's errors in the kernel's log, then remount ${mount.point}`;
      yield { state: "broken", what, finding: `${mount.point} is mounted read-only`, todo };
      continue;
    }
    yield* judge(what, folder, await measure(tree.at(place)));
  }
}

function* judge(what: string, folder: string, room: Room): Generator<Finding> {
  const { freeBytes, sizeBytes, freeInodes, inodes } = room;
  const free = `${folder}: ${gibibytes(freeBytes)} of ${gibibytes(sizeBytes)} GiB free`;
  const todo = "remove images that are not used (crictl rmi --prune), or enlarge the disk";
  if (freeBytes < freeBytesMin)
    yield { state: "broken", what, finding: `${free}, too little for a large image`, todo };
  else if (freeBytes < freeShareMin * sizeBytes) {
    yield {
      state: "slow",
      what,
      finding: `${free}: kubelet deletes images when less than 15 % are free`,
      todo,
    };
  } else yield { state: "ok", what, finding: free };
  if (inodes === 0) return;
  const share = freeInodes / inodes;
  if (share >= freeInodesShareMin) return;
  const finding = `${folder}: ${freeInodes} of ${inodes} inodes free`;
  yield { state: share < 0.01 ? "broken" : "slow", what: `${what} inodes`, finding, todo };
}

/** The folder, or the nearest one above it that is there. */
async function existing(tree: Tree, folder: string): Promise<string> {
  return folder === "/" || (await tree.isDirectory(folder)) ? folder : await existing(tree, dirname(folder));
}

/** What an unprivileged writer would have, as kubelet counts it. */
async function roomOf(folder: string): Promise<Room> {
  const space: BigIntStatsFs = await statfs(folder, { bigint: true });
  return {
    freeBytes: Number(space.bavail * space.bsize),
    sizeBytes: Number(space.blocks * space.bsize),
    freeInodes: Number(space.ffree),
    inodes: Number(space.files),
  };
}

function gibibytes(bytes: number): string {
  return (bytes / 1024 ** 3).toFixed(1);
}
