// One layer from nothing to a committed snapshot, shared node-wide by chainID.
//
// The blob's download and the unpacking into a staging directory run side by side and in any order among layers; then
// the layer waits for its parent's Commit, and its staging directory is renamed onto the empty upperdir that Prepare
// made. Nothing is visible to anyone before size, digest and diffID have been found right.

import { chmod, chown, mkdir, rename, stat } from "node:fs/promises";
import type { Labels, PreparedSnapshot } from "../containerd/containerd.ts";
import type { Demand } from "../demand.ts";
import { PullError, throwIfAborted, whileNotAborted } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import type { LayerEngine, LayerLimits, UnpackedLayer } from "../layer/layer.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import { removeTree } from "../removal.ts";
import type { Selinux } from "../selinux.ts";
import type { LayerTrace } from "../trace.ts";
import type { Blob } from "./blob.ts";
import type { Keep } from "./journal.ts";
import type { LeaseShare } from "./lease.ts";
import type { Share } from "./sharing.ts";
import { Stall } from "./stall.ts";

export interface LayerOptions {
  readonly descriptor: Descriptor;
  readonly diffID: Digest;
  readonly chainID: Digest;
  /** Of the snapshot, as the image asks for. */
  readonly labels: Labels;
  readonly parent: { readonly chainID: Digest; readonly committed: Promise<unknown> } | undefined;
  /** Joins the blob's download, or starts it. */
  readonly blob: () => Share<Blob>;
  /** How the pull that began this layer wants the blob kept; undefined when it does not. */
  readonly keep: Keep | undefined;
  /** Tells that the blob can be let go early if somebody needs its room. */
  readonly offer: (release: () => void) => Disposable;
  /** Called between the last write into the snapshot and its Commit, with the snapshot's folder. */
  readonly settle: (upperdir: string) => Promise<void>;
  readonly lease: LeaseShare;
  readonly demand: Demand;
  readonly engine: LayerEngine;
  readonly selinux: Selinux;
  readonly limits: LayerLimits;
  /** Waits for a worker to be free for this layer. */
  readonly worker: (signal: AbortSignal) => Promise<Disposable>;
  /** Whether a worker of ours is all that another image waits for. */
  readonly isWorkerWanted: () => boolean;
  /** Of all layers of the image: their registry is too slow to have workers wait for it. */
  readonly pace: { isSlow: boolean };
  /** A path of our own that does not exist yet. */
  readonly staging: string;
  readonly unpacked: (layer: UnpackedLayer) => void;
  readonly committed: (seconds: number) => void;
  readonly trace: LayerTrace;
}

/** A committed layer. Held by every pull that needs it until that pull is over; then lease and blob are let go. */
export class Layer implements AsyncDisposable {
  readonly #options: LayerOptions;
  #blob: Share<Blob>;
  #offer: Disposable | undefined;
  #released: Promise<void> | undefined;

  private constructor(options: LayerOptions) {
    this.#options = options;
    this.#blob = options.blob();
  }

  /** Resolves once the snapshot is committed. On failure nothing of the layer is left. */
  static async make(options: LayerOptions, signal: AbortSignal): Promise<Layer> {
    const layer = new Layer(options);
    try {
      await layer.#make(signal);
      return layer;
    } catch (error) {
      await layer[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Says what a pull that has succeeded wants with the blob: to keep it, or nothing. */
  async finishBlob(keep: Keep | undefined): Promise<void> {
    if (this.#released) return;
    const blob = await this.#blob.result;
    if (keep === undefined) {
      blob.discard();
    } else {
      const labels = { ...keep.labels, "containerd.io/uncompressed": this.#options.diffID };
      blob.keep({ ...keep, labels });
    }
  }

  /** Gives up the spool before the layer itself; the snapshot stays. */
  async dropBlob(): Promise<void> {
    this.#released ??= this.#release();
    await this.#released;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#offer?.[Symbol.dispose]();
    await this.dropBlob();
    await this.#options.lease[Symbol.asyncDispose]();
  }

  async #make(signal: AbortSignal): Promise<void> {
    const { staging } = this.#options;
    try {
      const unpacked = await this.#unpackRight(signal);
      failpoint("unpacked");
      // The bytes are right, and all that may still be wanted of them is a place in the content store.
      this.#offer = this.#options.offer(() => void this.#letGo());
      const { parent, trace } = this.#options;
      if (parent) await trace.spans.of("parent", () => whileNotAborted(parent.committed, signal));
      const began = performance.now();
      await trace.spans.of("commit", () => this.#commit(unpacked, signal));
      this.#options.committed((performance.now() - began) / 1000);
    } finally {
      await removeTree(staging);
    }
  }

  /** Once more from nothing, when bytes that a former attempt left may be what is wrong. */
  async #unpackRight(signal: AbortSignal): Promise<UnpackedLayer> {
    try {
      return await this.#unpack(signal);
    } catch (error) {
      const failure = PullError.from(error);
      const blob = await this.#blob.result.catch(() => undefined);
      if (failure.code === "corrupt" || failure.code === "unsupported") blob?.discard();
      if (failure.code !== "corrupt" || !blob?.isResumed) throw failure;
    }
    this.#blob.retire();
    const former = this.#blob;
    this.#blob = this.#options.blob();
    await former[Symbol.asyncDispose]();
    await removeTree(this.#options.staging);
    return await this.#unpack(signal);
  }

  async #release(): Promise<void> {
    await this.#blob[Symbol.asyncDispose]();
  }

  async #letGo(): Promise<void> {
    await this.finishBlob(this.#options.keep).catch(() => {});
    await this.dropBlob();
  }

  async #unpack(signal: AbortSignal): Promise<UnpackedLayer> {
    const { pace, staging } = this.#options;
    const blob = await whileNotAborted(this.#blob.result, signal);
    await whileNotAborted(blob.started, signal);
    for (;;) {
      if (pace.isSlow) await whileNotAborted(blob.settled, signal);
      blob.throwIfFailed();
      const unpacked = await this.#attempt(blob, signal);
      if (unpacked) return unpacked;
      pace.isSlow = true;
      await removeTree(staging);
    }
  }

  /** Undefined when the worker was given up to somebody who needs it more. */
  async #attempt(blob: Blob, signal: AbortSignal): Promise<UnpackedLayer | undefined> {
    const { descriptor, diffID, demand, engine, limits, staging, parent, isWorkerWanted, trace } =
      this.#options;
    using _worker = await trace.spans.of("worker", () => this.#options.worker(signal));
    await mkdir(staging, { mode: 0o755 });
    using stall = new Stall(blob.spool, isWorkerWanted);
    try {
      const job = { spool: blob.spool.view, staging, descriptor, diffID, base: parent === undefined, limits };
      const either = AbortSignal.any([signal, stall.signal]);
      const unpacked = await trace.spans.of("unpack", () => engine.unpack(job, either, demand));
      const { bytes, entries, waitedMs, caughtUpMs, pausedMs, usage } = unpacked;
      trace.unpacked = { bytes, entries, waitedMs, caughtUpMs, pausedMs, usage };
      this.#options.unpacked(unpacked);
      return unpacked;
    } catch (error) {
      if (stall.signal.aborted && !signal.aborted && PullError.from(error).code === "cancelled")
        return undefined;
      // The download is the cause when both failed: unpacking only saw its spool fail.
      blob.throwIfFailed();
      throw error;
    }
  }

  async #commit(unpacked: UnpackedLayer, signal: AbortSignal): Promise<void> {
    const { chainID, parent, labels, lease, trace } = this.#options;
    let snapshot: PreparedSnapshot;
    try {
      snapshot = await lease.lease.prepareSnapshot(chainID, parent?.chainID, labels);
    } catch (error) {
      if (error instanceof PullError && error.code === "exists") return;
      throw error;
    }
    try {
      failpoint("prepared");
      throwIfAborted(signal);
      await this.#place(snapshot, unpacked, signal);
      await trace.spans.of("settle", () => this.#options.settle(snapshot.upperdir));
      failpoint("placed");
      throwIfAborted(signal);
      await lease.lease.commitSnapshot(snapshot, chainID);
      failpoint("committed");
    } catch (error) {
      // One that cannot be removed now goes with its lease; what counts is why it is to be removed.
      await lease.lease.removeSnapshot(snapshot).catch(() => {});
      throw PullError.from(error);
    }
  }

  /** What containerd would have found in the upperdir: our tree, below a root that is 0755 and its parent's owner's. */
  async #place(snapshot: PreparedSnapshot, unpacked: UnpackedLayer, signal: AbortSignal): Promise<void> {
    const { staging, engine, selinux } = this.#options;
    const { upperdir, lowerdirs } = snapshot;
    const below = lowerdirs[0];
    const owner = below === undefined ? { uid: 0, gid: 0 } : await stat(below);
    // A rename keeps the label; somebody may have relabelled our folder since the site was opened.
    selinux.mustBeEqual(staging, upperdir);
    await rename(staging, upperdir);
    await chown(upperdir, owner.uid, owner.gid);
    await chmod(upperdir, 0o755);
    await engine.inherit(upperdir, lowerdirs, unpacked.implicitDirectories, signal);
  }
}
