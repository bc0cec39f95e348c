// The face of the containerd room: containerd's gRPC services in Hawser's words.
//
// Every call goes over one channel to containerd's socket, in the configured namespace; calls made through a Lease
// carry its id, so that what they touch survives garbage collection until the lease is deleted. Status codes become
// PullErrors here (NOT_FOUND `not_found`, ALREADY_EXISTS `exists`, UNAVAILABLE `unavailable`, ...). This room never
// interprets an image and never deletes what is not ours.

import type { CallOptions, ClientReadableStream, Metadata } from "@grpc/grpc-js";
import type { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import type { Selinux } from "../selinux.ts";

export type Labels = Readonly<Record<string, string>>;

/** What Prepare answers for overlayfs: where to write, and which directories lie below, nearest first. */
export interface PreparedSnapshot {
  readonly key: string;
  /** As it was prepared with; Commit wants them again. */
  readonly labels: Labels;
  readonly upperdir: string;
  readonly lowerdirs: readonly string[];
}

/** A lease, and what is done under it. Disposing deletes it; a failed deletion is logged, never thrown. */
export interface Lease extends AsyncDisposable {
  readonly id: string;

  /** True when the blob is in our namespace already; it is then held by this lease too. */
  holdContent(descriptor: Descriptor): Promise<boolean>;
  /** Writes a small blob; success when it is there already (its labels are then added, see {@link Records.labelContent}). */
  putContent(descriptor: Descriptor, bytes: Uint8Array, labels: Labels): Promise<void>;
  /**
   * Puts a verified, complete file into the content store without streaming it (reference 3.2, adoption); streams it
   * when containerd does not take it that way. The file stays, and may be a blob's other name: the caller removes it.
   */
  adoptContent(descriptor: Descriptor, file: string, labels: Labels): Promise<void>;

  /**
   * True when the committed snapshot exists; it and its parents are then held by this lease too. A pull that is over waits
   * for no answer: the signal rejects with `cancelled`.
   */
  holdSnapshot(chainID: Digest, signal?: AbortSignal): Promise<boolean>;
  /**
   * Prepares an active snapshot to be committed as chainID, with labels of its own besides the usual one. Throws
   * `exists` when that is committed (and holds it).
   */
  prepareSnapshot(chainID: Digest, parent: Digest | undefined, labels: Labels): Promise<PreparedSnapshot>;
  /** Commits it; `exists` counts as success and the active snapshot is then removed. */
  commitSnapshot(snapshot: PreparedSnapshot, chainID: Digest): Promise<void>;
  /** Removes an active snapshot; success when it is gone already. */
  removeSnapshot(snapshot: PreparedSnapshot): Promise<void>;
}

/** What an image's name stands for. */
export interface ImageRecord {
  /** Index, or manifest where there is none. */
  readonly target: Descriptor;
  readonly labels: Labels;
}

/** An image as CRI answers for it. */
export interface CriImage {
  /** Digest of its config. */
  readonly id: string;
  readonly tags: readonly string[];
  readonly digests: readonly string[];
}

/** What is registered; nothing of it is held. */
export interface Records {
  /** The record of this name. */
  image(name: string): Promise<ImageRecord | undefined>;
  /** Makes a record; throws `exists` when there is one of this name. CRI learns of it a little later. */
  createImage(name: string, record: ImageRecord): Promise<void>;
  /** Has the name stand for this instead of what it stands for, with no other labels; throws `not_found` when there is none. */
  replaceImage(name: string, record: ImageRecord): Promise<void>;
  /** Removes a record; success when there is none. */
  removeImage(name: string): Promise<void>;
  /** The labels of a blob; undefined when there is none in our namespace. */
  contentLabels(digest: Digest): Promise<Labels | undefined>;
  /** Gives a blob these labels besides its others; repositories that it is from are added to those it is said to be from. */
  labelContent(digest: Digest, labels: Labels): Promise<void>;
  /** Whether the snapshot is committed. */
  hasSnapshot(chainID: Digest): Promise<boolean>;
  /** What CRI knows under this name; undefined when nothing. */
  status(name: string): Promise<CriImage | undefined>;
}

/** What is to be held of an image. None of it need be there yet. */
export interface Holdable {
  readonly target: Digest;
  readonly contents: readonly Digest[];
  /** Of the topmost layer, with which those below it are held. */
  readonly chainID: Digest | undefined;
  readonly bytes: number;
}

export interface Hold {
  readonly id: string;
  /** Of the image. */
  readonly name: string;
  readonly target: Digest;
  /** Of its layers, compressed. */
  readonly bytes: number;
}

/** What stays on the node beyond any pull, though no record leads to it. */
export interface Holds {
  /** Protects all of this for so long. */
  make(name: string, what: Holdable, lifeMs: number): Promise<Hold>;
  /** For so long from now on; undefined when it has ended meanwhile. */
  renew(hold: Hold, lifeMs: number): Promise<Hold | undefined>;
  /** Success when it has ended already. */
  release(hold: Hold): Promise<void>;
  /** Those of this containerd, whoever made them. */
  list(): Promise<readonly Hold[]>;
}

/** What introspection and the CRI settings say of this containerd; read on each (re)connect. */
export interface ContainerdFacts {
  readonly version: string;
  /** `<containerd root>/io.containerd.content.v1.content`. */
  readonly contentRoot: string;
  /** `<containerd root>/io.containerd.snapshotter.v1.overlayfs`. */
  readonly snapshotterRoot: string;
  /** Snapshotter that CRI uses by default. */
  readonly snapshotter: string;
  /** Directories of `config_path`, in order; empty when it is not set. */
  readonly registryConfigPath: readonly string[];
  /** Layer blobs are dropped after unpacking (`discard_unpacked_layers`). */
  readonly discardUnpackedLayers: boolean;
  /** Layers are on disk before their images are (`image_pull_with_sync_fs`). */
  readonly syncsLayers: boolean;
  /** Whether it is known that records of ours are as good as its own: its version passes the parity suite. */
  readonly takesRecords: boolean;
  /** Names of images, as operators wrote them, that are never to be collected; containerd marks their records. */
  readonly pinnedImages: readonly string[];
  /** Why no pull on this containerd may be accelerated, or undefined: deprecated registry settings, user namespace, … */
  readonly unfit: string | undefined;
}

/** The image half of the CRI plugin's settings; on every version only what a pull needs. */
export interface CriSettings {
  readonly snapshotter: string;
  /** Directories of `config_path`, in order; empty when it is not set. */
  readonly configPath: readonly string[];
  readonly discardUnpackedLayers: boolean;
  /** Layers are synced to disk (`image_pull_with_sync_fs`). */
  readonly syncsLayers: boolean;
  /** Each snapshot is labelled with the image that it was pulled for, as remote snapshotters want it. */
  readonly labelsSnapshots: boolean;
  /** The sandbox image and others that are never to be collected. */
  readonly pinnedImages: readonly string[];
  /** Names of deprecated registry settings that are in use. */
  readonly deprecated: readonly string[];
  /** Where image verifiers are, on a containerd that has the plugin. */
  readonly verifierFolder: string;
}

export interface Plugin {
  readonly type: string;
  readonly id: string;
  /** Where it keeps its files, if it says so. */
  readonly root: string | undefined;
  /** Why it did not start. */
  readonly error: string | undefined;
}

/** What facts are made of, not judged yet. */
export interface Inspection {
  readonly version: string;
  readonly plugins: readonly Plugin[];
  /** Or why they cannot be read. */
  readonly cri: CriSettings | PullError;
  /** Programs that containerd has judge its own pulls. */
  readonly verifiers: readonly string[];
}

export interface Containerd {
  /** Reads the facts; throws `unavailable` while containerd is down. */
  facts(signal: AbortSignal): Promise<ContainerdFacts>;
  /** Makes a lease that expires by itself after 24 hours. */
  lease(labels: Labels): Promise<Lease>;
  readonly records: Records;
  readonly holds: Holds;
  /**
   * Removes what dead instances left here: leases that carry this label with an instance's id, the active snapshots that
   * they hold, what they alone protected, and self-tests. Of `self` that goes which nobody here holds, since its making
   * or deletion was broken off. Returns how many leases there were.
   */
  sweep(label: string, self: string, isDead: (instance: string) => Promise<boolean>): Promise<number>;
  /**
   * Proves in a namespace of our own that a staging directory can become a snapshot; throws the step that failed. The
   * directory is named by its instance.
   */
  selfTest(staging: string, selinux: Selinux, signal: AbortSignal): Promise<void>;
  /**
   * Makes a foreign call with the bytes as they are: one request, any number of answers. Metadata, deadline, status and
   * cancellation are the caller's business; nothing is interpreted.
   */
  forward(
    path: string,
    request: Buffer,
    metadata: Metadata,
    options: CallOptions,
  ): ClientReadableStream<Buffer>;
  /** Calls back once it is known whether containerd can be reached, and on each change. */
  watch(listener: (connected: boolean) => void): Disposable;
  /** Cancels what is under way, and whatever is asked for from now on. */
  close(): void;
}
