// One blob on its way into a spool, shared by every layer (of whatever pull) that is made of it.
//
// The download starts with the object, once there is room, and runs beside its readers. When the last reader is gone
// the spool is parked, for the next pull to go on from; unless a reader has said that the bytes are right and not needed
// any more, or wrong, or that they are to move into containerd's content store.

import type { Labels } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Repository, RequestPermits } from "../registry/registry.ts";
import type { Spool } from "../spool.ts";
import type { BlobTrace } from "../trace.ts";
import type { Keep } from "./journal.ts";
import type { LeaseShare } from "./lease.ts";
import type { HeldSpool, Spools } from "./spools.ts";
import type { Urgency } from "./urgency.ts";

export interface BlobOptions {
  readonly descriptor: Descriptor;
  readonly repository: Repository;
  readonly permits: RequestPermits;
  readonly spools: Spools;
  /** Of its room in the spool. */
  readonly urgency: Urgency;
  /** The lease to adopt under; held by the blob until it is disposed of. */
  readonly lease: LeaseShare;
  readonly warn: (error: PullError) => void;
  readonly downloaded: (seconds: number) => void;
  readonly trace: BlobTrace;
}

/** What becomes of the spool in the end. */
type End =
  | { readonly kind: "park" }
  | { readonly kind: "discard" }
  | { readonly kind: "adopt"; readonly keep: Keep };

export class Blob implements AsyncDisposable {
  readonly spool: Spool;
  /** Some of the bytes come from a former attempt, and may be why the whole is wrong. */
  readonly isResumed: boolean;
  /** Settles when the first request may be sent: from then on the download makes progress without its readers. */
  readonly started: Promise<void>;
  readonly #done: Promise<void>;
  /** Set before readers of the spool are woken up. */
  #failure: PullError | undefined;
  readonly #options: BlobOptions;
  readonly #held: HeldSpool;
  #end: End = { kind: "park" };

  private constructor(options: BlobOptions, held: HeldSpool, signal: AbortSignal) {
    this.#options = options;
    this.#held = held;
    this.spool = held.spool;
    this.isResumed = held.isResumed;
    let start = (): void => {};
    this.started = new Promise((resolve) => {
      start = resolve;
    });
    this.#done = this.#download(start, signal).finally(start);
  }

  static async start(options: BlobOptions, signal: AbortSignal): Promise<Blob> {
    try {
      const { spools, descriptor, urgency, trace } = options;
      const held = await trace.spans.of("open", () => spools.take(descriptor, urgency, trace.spans, signal));
      const missing = held.spool.missing().reduce((sum, { start, end }) => sum + end - start, 0);
      trace.presentBytes = descriptor.size - missing;
      failpoint("spool-taken");
      return new Blob(options, held, signal);
    } catch (error) {
      await options.lease[Symbol.asyncDispose]();
      throw PullError.from(error);
    }
  }

  /** Settles once the download has ended, in whatever way. */
  get settled(): Promise<void> {
    return this.#done;
  }

  /** Throws why the download failed, if it did; whoever saw the spool fail asks here. */
  throwIfFailed(): void {
    if (this.#failure) throw this.#failure;
  }

  /** Says that the bytes have the right digest and are to be kept in the content store. */
  keep({ image, labels }: Keep): void {
    const before = this.#end.kind === "adopt" ? this.#end.keep.labels : {};
    const keep = { image, labels: mergeLabels(before, labels) };
    this.#end = { kind: "adopt", keep };
    this.#held.keep(keep);
  }

  /** Says that the bytes are wrong, or right and not needed any more. Never undoes keep(). */
  discard(): void {
    if (this.#end.kind === "park") this.#end = { kind: "discard" };
  }

  /** Waits for the download to stop, then parks, discards or adopts. Never throws. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#done;
    try {
      await this.#finish();
    } catch (error) {
      await this.#failed(PullError.from(error));
    } finally {
      await this.#options.lease[Symbol.asyncDispose]();
    }
  }

  async #finish(): Promise<void> {
    if (this.#end.kind === "park") {
      await this.#held.park();
      return;
    }
    if (this.#end.kind === "adopt") {
      const { descriptor, lease } = this.#options;
      await this.spool.sync();
      await lease.lease.adoptContent(descriptor, this.spool.view.path, this.#end.keep.labels);
      failpoint("adopted");
    }
    await this.#held.discard();
  }

  async #failed(failure: PullError): Promise<void> {
    // An adoption was promised, and whoever takes it up later looks at the bytes once more.
    const isDeferred =
      this.#end.kind === "adopt" &&
      (await this.#held.defer(this.#end.keep).then(
        () => true,
        () => false,
      ));
    if (isDeferred) return;
    this.#options.warn(failure);
    await this.#held.discard().catch(() => {});
  }

  async #download(start: () => void, signal: AbortSignal): Promise<void> {
    const { descriptor, repository, permits, downloaded, trace } = this.#options;
    const announced: RequestPermits = {
      ...permits,
      acquire: async (host, requestSignal) => {
        const permit = await permits.acquire(host, requestSignal);
        start();
        return permit;
      },
    };
    const began = performance.now();
    try {
      await trace.spans.of("download", () => repository.download(descriptor, this.spool, announced, signal));
      downloaded((performance.now() - began) / 1000);
    } catch (error) {
      this.#failure = PullError.from(error);
      // A full disk is not helped by half a blob.
      if (this.#failure.code === "exhausted") this.discard();
      this.spool.fail();
    }
  }
}

/** Of several repositories that one registry has the blob in, all are named, in order, as containerd does it. */
function mergeLabels(before: Labels, added: Labels): Labels {
  const merged = { ...before, ...added };
  for (const [key, value] of Object.entries(added)) {
    const former = before[key];
    if (former === undefined || !key.startsWith("containerd.io/distribution.source.")) continue;
    merged[key] = [...new Set([...former.split(","), ...value.split(",")])].sort().join(",");
  }
  return merged;
}
