// One blob on its way into a spool, shared by every layer (of whatever pull) that is made of it.
//
// The download starts with the object and runs beside its readers. A blob is disposed of when its last reader is gone:
// then its bytes move into containerd's content store if they are to be kept and have been found right, and vanish
// with the spool if not.

import type { Labels } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Repository, RequestPermits } from "../registry/registry.ts";
import { Spool } from "../spool.ts";
import type { LeaseShare } from "./lease.ts";

export interface BlobOptions {
  readonly descriptor: Descriptor;
  readonly repository: Repository;
  readonly permits: RequestPermits;
  /** The spool's path; it must not exist. */
  readonly file: string;
  /** The lease to adopt under; held by the blob until it is disposed of. */
  readonly lease: LeaseShare;
  readonly warn: (error: PullError) => void;
  readonly downloaded: (seconds: number) => void;
}

export class Blob implements AsyncDisposable {
  readonly spool: Spool;
  /** Settles when the first request may be sent: from then on the download makes progress without its readers. */
  readonly started: Promise<void>;
  readonly #done: Promise<void>;
  /** Set before readers of the spool are woken up. */
  #failure: PullError | undefined;
  readonly #options: BlobOptions;
  #adoptLabels: Labels | undefined;

  private constructor(options: BlobOptions, spool: Spool, signal: AbortSignal) {
    this.#options = options;
    this.spool = spool;
    let start = (): void => {};
    this.started = new Promise((resolve) => {
      start = resolve;
    });
    this.#done = this.#download(start, signal).finally(start);
  }

  static async start(options: BlobOptions, signal: AbortSignal): Promise<Blob> {
    try {
      const spool = await Spool.create(options.file, options.descriptor.size);
      return new Blob(options, spool, signal);
    } catch (error) {
      await options.lease[Symbol.asyncDispose]();
      throw PullError.from(error);
    }
  }

  /** Throws why the download failed, if it did; whoever saw the spool fail asks here. */
  throwIfFailed(): void {
    if (this.#failure) throw this.#failure;
  }

  /** Says that the bytes have the right digest and are to be kept in the content store under these labels. */
  keep(labels: Labels): void {
    this.#adoptLabels = labels;
  }

  /** Waits for the download to stop; adopts the bytes or drops them. Never throws. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#done;
    try {
      if (this.#adoptLabels !== undefined) {
        const { descriptor, lease } = this.#options;
        await this.spool.sync();
        await lease.lease.adoptContent(descriptor, this.spool.view.path, this.#adoptLabels);
      }
    } catch (error) {
      this.#options.warn(PullError.from(error));
    } finally {
      await this.spool[Symbol.asyncDispose]();
      await this.#options.lease[Symbol.asyncDispose]();
    }
  }

  async #download(start: () => void, signal: AbortSignal): Promise<void> {
    const { descriptor, repository, permits, downloaded } = this.#options;
    const announced: RequestPermits = {
      acquire: async (host, requestSignal) => {
        const permit = await permits.acquire(host, requestSignal);
        start();
        return permit;
      },
    };
    const began = performance.now();
    try {
      await repository.download(descriptor, this.spool, announced, signal);
      downloaded((performance.now() - began) / 1000);
    } catch (error) {
      this.#failure = PullError.from(error);
      this.spool.fail();
    }
  }
}
