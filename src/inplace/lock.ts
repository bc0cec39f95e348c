// The lock of an upgrade: a Lease of the workload's, which only one process at a time holds and renews.
//
// Clocks of machines differ, so that nobody is taken for dead by what a lease's time says: only after it has not been
// renewed for as long as it is good for, by the clock of whoever looks. A lock that was lost is told before the next
// change. A lease that is left behind is for the workload alone, and goes with it.

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, numberOf, wordOf } from "../cluster/fields.ts";
import { PullError, throwIfAborted } from "../errors.ts";
import type { Steady } from "./steady.ts";

/** No lease says that it is good for longer. */
const lifeMsMax = 120_000;

export interface LockOptions {
  readonly steady: Steady;
  readonly namespace: string;
  /** Whose upgrade it is: an object with apiVersion and kind. */
  readonly owner: KubernetesObject;
  /** For others to read; what tells two upgrades of the same holder apart is added. */
  readonly holder: string;
  readonly lifeMs: number;
  /** Told when somebody else's has to be waited for. */
  readonly waits: (holder: string) => void;
}

export class Lock implements AsyncDisposable {
  readonly #options: LockOptions;
  readonly #name: string;
  readonly #identity: string;
  readonly #lost = new AbortController();
  readonly #ended = new AbortController();
  #lease: KubernetesObject | undefined;
  #renewedMs = 0;
  #renewing: Promise<void> | undefined;
  #over: Promise<void> = Promise.resolve();

  private constructor(options: LockOptions) {
    this.#options = options;
    this.#name = `hawser-upgrade-${options.owner.metadata.uid}`;
    this.#identity = `${options.holder} (${randomBytes(4).toString("hex")})`;
  }

  /** Throws `exists` where another upgrade goes on. */
  static async take(options: LockOptions, signal: AbortSignal): Promise<Lock> {
    const lock = new Lock(options);
    await lock.#take(signal);
    lock.#over = lock.#keep();
    return lock;
  }

  /** Aborted when somebody else has it. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** Makes sure that it is held; throws `conflict` when it is not any more, `unavailable` when that cannot be told. */
  async ensure(signal: AbortSignal): Promise<void> {
    throwIfAborted(this.#lost.signal);
    // By the clock on the wall: the other one stands still while the machine sleeps.
    const sinceMs = Date.now() - this.#renewedMs;
    if (sinceMs < 0 || sinceMs > this.#options.lifeMs / 2) await this.#renewOnce(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended.abort();
    await this.#over;
    if (this.#lost.signal.aborted) return;
    // It ends by itself where this fails.
    await this.#release(AbortSignal.timeout(this.#options.lifeMs)).catch(() => {});
  }

  async #release(signal: AbortSignal): Promise<void> {
    let lease = this.#lease;
    // The answer to a renewal may not have been heard any more.
    while (lease && holderOf(lease) === this.#identity) {
      const version = lease.metadata.resourceVersion;
      try {
        await this.#options.steady.write({ kind: "remove", path: this.#path, version }, signal);
        return;
      } catch (error) {
        if (PullError.from(error).code !== "conflict") throw error;
        lease = await this.#read(signal);
      }
    }
  }

  get #collection(): string {
    return `/apis/coordination.k8s.io/v1/namespaces/${this.#options.namespace}/leases`;
  }

  get #path(): string {
    return `${this.#collection}/${this.#name}`;
  }

  async #take(signal: AbortSignal): Promise<void> {
    const { steady, owner } = this.#options;
    const { apiVersion, kind } = owner as unknown as { readonly apiVersion: string; readonly kind: string };
    const { name, uid } = owner.metadata;
    const lease = {
      apiVersion: "coordination.k8s.io/v1",
      kind: "Lease",
      metadata: { name: this.#name, ownerReferences: [{ apiVersion, kind, name, uid }] },
      spec: { ...this.#spec(), acquireTime: microTime() },
    };
    try {
      const askedMs = Date.now();
      this.#held(
        await steady.write({ kind: "create", path: this.#collection, object: lease }, signal),
        askedMs,
      );
    } catch (error) {
      if (PullError.from(error).code !== "exists") throw error;
      await this.#takeOver(signal);
    }
  }

  /** From somebody who does not renew it; or it is ours, and only the answer was lost. */
  async #takeOver(signal: AbortSignal): Promise<void> {
    const { steady, lifeMs, waits } = this.#options;
    const first = await this.#read(signal);
    const since = performance.now();
    const beganMs = Date.now();
    for (let last = first; ; last = await this.#read(signal)) {
      if (last === undefined) return await this.#take(signal);
      const holder = holderOf(last);
      if (holder === this.#identity) return this.#held(last, beganMs);
      if (last.metadata.resourceVersion !== first?.metadata.resourceVersion)
        throw new PullError("exists", `another upgrade of it goes on, by ${holder}: wait for its end`);
      if (performance.now() - since >= Math.max(lifeMs, lifeOf(last))) break;
      if (last === first) waits(holder);
      await sleep(lifeMs / 20, undefined, { signal }).catch(() => {});
    }
    const { uid, resourceVersion } = first?.metadata ?? {};
    const patch = { metadata: { uid, resourceVersion }, spec: { ...this.#spec(), acquireTime: microTime() } };
    const askedMs = Date.now();
    try {
      this.#held(await steady.write({ kind: "merge", path: this.#path, patch }, signal), askedMs);
    } catch (error) {
      if (PullError.from(error).code !== "conflict") throw error;
      const now = await this.#read(signal);
      if (now === undefined || holderOf(now) !== this.#identity)
        throw new PullError("exists", "another upgrade of it has just begun: wait for its end");
      this.#held(now, askedMs);
    }
  }

  async #read(signal: AbortSignal): Promise<KubernetesObject | undefined> {
    try {
      return await this.#options.steady.get(this.#path, signal);
    } catch (error) {
      if (PullError.from(error).code === "not_found") return undefined;
      throw error;
    }
  }

  async #keep(): Promise<void> {
    const { signal } = this.#ended;
    const isOver = (): boolean => signal.aborted || this.#lost.signal.aborted;
    while (!isOver()) {
      await sleep(this.#options.lifeMs / 4, undefined, { signal }).catch(() => {});
      // What comes of it is seen before the next change.
      if (!isOver()) await this.#renewOnce(signal).catch(() => {});
    }
  }

  async #renewOnce(signal: AbortSignal): Promise<void> {
    this.#renewing ??= this.#renew(signal).finally(() => {
      this.#renewing = undefined;
    });
    await this.#renewing;
  }

  async #renew(signal: AbortSignal): Promise<void> {
    const { steady } = this.#options;
    for (;;) {
      const { uid, resourceVersion } = this.#lease?.metadata ?? {};
      const patch = { metadata: { uid, resourceVersion }, spec: this.#spec() };
      const askedMs = Date.now();
      try {
        return this.#held(await steady.write({ kind: "merge", path: this.#path, patch }, signal), askedMs);
      } catch (error) {
        const { code } = PullError.from(error);
        if (code !== "conflict" && code !== "not_found") throw error;
      }
      const now = await this.#read(signal);
      if (now === undefined || holderOf(now) !== this.#identity) {
        const who = now === undefined ? "somebody has removed its lock" : `${holderOf(now)} has taken over`;
        const failure = new PullError("conflict", `this upgrade is not to go on: ${who}`);
        this.#lost.abort(failure);
        throw failure;
      }
      this.#lease = now;
    }
  }

  /** As of when that was asked for. */
  #held(lease: KubernetesObject, askedMs: number): void {
    this.#lease = lease;
    this.#renewedMs = askedMs;
  }

  #spec(): object {
    return {
      holderIdentity: this.#identity,
      leaseDurationSeconds: Math.max(1, Math.ceil(this.#options.lifeMs / 1000)),
      renewTime: microTime(),
    };
  }
}

function holderOf(lease: KubernetesObject): string {
  return wordOf(fieldsOf(lease["spec"])["holderIdentity"]) ?? "somebody";
}

function lifeOf(lease: KubernetesObject): number {
  return Math.min(lifeMsMax, 1000 * numberOf(fieldsOf(lease["spec"])["leaseDurationSeconds"], 0));
}

/** As a lease has it (MicroTime). */
function microTime(): string {
  return new Date().toISOString().replace("Z", "000Z");
}
