// The face of the layer room: one layer's bytes go in as a spool that may still be filling, a directory comes out.
//
// A worker thread reads the spool behind the watermark and runs sha256(compressed), inflate, sha256(diffID), tar and
// apply in one loop; no layer byte passes through the main thread. This room never talks to a registry or to
// containerd, never commits anything, and never writes outside of the staging directory that it is given.

import type { Demand } from "../demand.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import type { SpoolView } from "../spool.ts";
import type { ThreadUsage } from "../usage.ts";

/** Safety limits of one layer, from `[unpack]`; past one of them the layer fails with `exhausted`. */
export interface LayerLimits {
  /** Most entries of the archive. */
  readonly entriesMax: number;
  /** Most bytes after inflating. */
  readonly bytesMax: number;
  /** Most bytes out per byte in, judged once more than 64 MiB are out. */
  readonly ratioMax: number;
}

export interface LayerJob {
  readonly spool: SpoolView;
  /** An existing empty directory of ours, mode 0755. On failure its content is unspecified: the caller removes it. */
  readonly staging: string;
  readonly descriptor: Descriptor;
  readonly diffID: Digest;
  /**
   * The bottom layer of an image: whiteouts remove what this layer itself has written so far (reference 4.1, "naive").
   * In every other layer they take the form that overlayfs reads: device 0:0 and `trusted.overlay.opaque`.
   */
  readonly base: boolean;
  readonly limits: LayerLimits;
}

/**
 * Directories that the archive did not name before it put something in them; they take after the lower layers. A tree
 * instead of paths, which deep in a tree are thousands of times as long as what the archive spends on them. Parents come
 * before their children, and those that only lead to an implicit directory are among them.
 */
export interface ImplicitDirectories {
  /** One after another, with "/" between them; one character per byte ("latin1"). */
  readonly names: string;
  /** How many directories lie between each and the layer's root. */
  readonly depths: Uint16Array;
  /** What each is: one of `implicitKinds`. */
  readonly kinds: Uint8Array;
}

/** Of one that the archive has named later, only extended attributes that it lacks are inherited. */
export const implicitKinds = { way: 0, unnamed: 1, named: 2 } as const;

export interface UnpackedLayer {
  /** Bytes after inflating, the whole tar stream. */
  readonly bytes: number;
  readonly entries: number;
  readonly implicitDirectories: ImplicitDirectories;
  /** Milliseconds in all, and of these the ones that the worker spent waiting for the watermark. */
  readonly elapsedMs: number;
  readonly waitedMs: number;
  /** Milliseconds until the last of these waits was over; 0 without any. What came behind that, nobody's bytes held up. */
  readonly caughtUpMs: number;
  /** Milliseconds in which it stood still for layers that somebody waits for. */
  readonly pausedMs: number;
  /** Of the busier of its threads; undefined where that is not known. */
  readonly usage: ThreadUsage | undefined;
}

export interface LayerEngine {
  readonly name: "native" | "portable";

  /**
   * Unpacks one layer, following the spool's watermark; returns once size, digest and diffID have all been found
   * right, and not before the last byte of the blob was read. Rejects with `corrupt` (wrong size, digest, diffID, bad
   * compression, bad archive), `unsupported` (containerd can, we cannot), `exhausted` (limits, disk), `cancelled`, or
   * the spool's own failure. Aborting stops the worker between two entries; the promise settles only then, so that
   * the staging directory can be removed safely afterwards. Runs at most `threads` layers at once; more wait. Layers that
   * nobody waits for take other threads, as many again at the most, and only the time that the cores have left.
   */
  unpack(job: LayerJob, signal: AbortSignal, demand?: Demand): Promise<UnpackedLayer>;

  /**
   * Gives implicit directories the attributes of the nearest lower layer that has a directory there (reference 4.2,
   * step 4). `upper` is the layer's root, `lowers` the roots of the layers below, nearest first. There may be a great
   * many of both; rejects with `cancelled` soon after the signal is aborted.
   */
  inherit(
    upper: string,
    lowers: readonly string[],
    directories: ImplicitDirectories,
    signal: AbortSignal,
  ): Promise<void>;

  /** Makes everything on the file system of this directory durable (syncfs(2)). Native engine only. */
  sync(directory: string): Promise<void>;

  /** Has the unpacking of layers that nobody waits for pause, or go on, at the next entry. */
  pause(isPaused: boolean): void;

  /** Ends the workers once they are idle. */
  close(): Promise<void>;
}
