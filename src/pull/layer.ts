// One layer from nothing to a committed snapshot, shared node-wide by chainID.
//
// The blob's download and the unpacking into a staging directory run side by side and in any order among layers; then
// the layer waits for its parent's Commit, and its staging directory is renamed onto the empty upperdir that Prepare
// made. Nothing is visible to anyone before size, digest and diffID have been found right.

import { chmod, chown, mkdir, rename, rm, stat } from "node:fs/promises";
import type { Labels, PreparedSnapshot } from "../containerd/containerd.ts";
import { abortError, PullError, throwIfAborted } from "../errors.ts";
import type { LayerEngine, LayerLimits, UnpackedLayer } from "../layer/layer.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import type { Blob } from "./blob.ts";
import type { LeaseShare } from "./lease.ts";
import type { Share } from "./sharing.ts";

export interface LayerOptions {
  readonly descriptor: Descriptor;
  readonly diffID: Digest;
  readonly chainID: Digest;
  readonly parent: { readonly chainID: Digest; readonly committed: Promise<unknown> } | undefined;
  readonly blob: Share<Blob>;
  readonly lease: LeaseShare;
  readonly engine: LayerEngine;
  readonly limits: LayerLimits;
  /** Waits for a worker to be free for this layer. */
  readonly worker: (signal: AbortSignal) => Promise<Disposable>;
  /** A path of our own that does not exist yet. */
  readonly staging: string;
  readonly unpacked: (layer: UnpackedLayer) => void;
  readonly committed: (seconds: number) => void;
}

/** A committed layer. Held by every pull that needs it until that pull is over; then lease and blob are let go. */
export class Layer implements AsyncDisposable {
  readonly #options: LayerOptions;

  private constructor(options: LayerOptions) {
    this.#options = options;
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

  /** Asks for the blob to be kept once nobody needs the layer's spool any more. */
  async keepBlob(labels: Labels): Promise<void> {
    const blob = await this.#options.blob.result;
    blob.keep({ ...labels, "containerd.io/uncompressed": this.#options.diffID });
  }

  /** Gives up the spool before the layer itself; the snapshot stays. */
  async dropBlob(): Promise<void> {
    await this.#options.blob[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#options.blob[Symbol.asyncDispose]();
    await this.#options.lease[Symbol.asyncDispose]();
  }

  async #make(signal: AbortSignal): Promise<void> {
    const { staging } = this.#options;
    try {
      const unpacked = await this.#unpack(signal);
      const { parent } = this.#options;
      if (parent) await whileNotAborted(parent.committed, signal);
      const began = performance.now();
      await this.#commit(unpacked);
      this.#options.committed((performance.now() - began) / 1000);
    } finally {
      await rm(staging, { recursive: true, force: true });
    }
  }

  async #unpack(signal: AbortSignal): Promise<UnpackedLayer> {
    const { descriptor, diffID, engine, limits, staging, parent } = this.#options;
    const blob = await whileNotAborted(this.#options.blob.result, signal);
    await whileNotAborted(blob.started, signal);
    blob.throwIfFailed();
    using _worker = await this.#options.worker(signal);
    await mkdir(staging, { mode: 0o755 });
    try {
      const job = { spool: blob.spool.view, staging, descriptor, diffID, base: parent === undefined, limits };
      const unpacked = await engine.unpack(job, signal);
      this.#options.unpacked(unpacked);
      return unpacked;
    } catch (error) {
      // The download is the cause when both failed: unpacking only saw its spool fail.
      blob.throwIfFailed();
      throw error;
    }
  }

  async #commit(unpacked: UnpackedLayer): Promise<void> {
    const { chainID, parent, lease } = this.#options;
    let snapshot: PreparedSnapshot;
    try {
      snapshot = await lease.lease.prepareSnapshot(chainID, parent?.chainID);
    } catch (error) {
      if (error instanceof PullError && error.code === "exists") return;
      throw error;
    }
    try {
      await this.#place(snapshot, unpacked);
      await lease.lease.commitSnapshot(snapshot, chainID);
    } catch (error) {
      await lease.lease.removeSnapshot(snapshot);
      throw PullError.from(error);
    }
  }

  /** What containerd would have found in the upperdir: our tree, below a root that is 0755 and its parent's owner's. */
  async #place(snapshot: PreparedSnapshot, unpacked: UnpackedLayer): Promise<void> {
    const { upperdir, lowerdirs } = snapshot;
    const below = lowerdirs[0];
    const owner = below === undefined ? { uid: 0, gid: 0 } : await stat(below);
    await rename(this.#options.staging, upperdir);
    await chown(upperdir, owner.uid, owner.gid);
    await chmod(upperdir, 0o755);
    if (unpacked.implicitDirectories.length > 0) {
      await this.#options.engine.inherit(upperdir, lowerdirs, unpacked.implicitDirectories);
    }
  }
}

/** The promise's outcome, or a rejection as soon as the signal is aborted. */
export async function whileNotAborted<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  throwIfAborted(signal);
  return await new Promise<Value>((resolve, reject) => {
    const onAbort = (): void => reject(abortError(signal));
    signal.addEventListener("abort", onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
