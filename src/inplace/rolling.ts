// The pods of a workload, one after another or a few at a time: never are more of them out of service than may be.
//
// What counts is what the API tells of all its pods, whoever has made them unready: those that are not ready, those that
// somebody is at, and those that should be there and are not. A pod that has been out for a while, or was taken out by an
// upgrade, costs nothing to go about, and comes first; but no more than so many are gone about at once. Pods that come
// meanwhile are taken in.

import { setMaxListeners } from "node:events";
import type { KubernetesObject } from "../cluster/cluster.ts";
import { abortError, PullError } from "../errors.ts";
import { type ExchangeOptions, exchange, type Goal } from "./exchange.ts";
import { isGateOpen, isInService, isServing, markOf, uidOf } from "./pod.ts";
import { someOf } from "./workload.ts";

export interface RollingOptions extends ExchangeOptions {
  readonly maxUnavailable: number;
  readonly replicas: () => number;
  /** What a pod is to come to; undefined where it has. */
  readonly goalOf: (pod: KubernetesObject) => Goal | undefined;
  /** Before anything else is done with a pod; none where nothing is. */
  readonly prepare?: (pod: KubernetesObject, signal: AbortSignal) => Promise<void>;
  /** What fails ends all; or the others are gone on with, and it is left. */
  readonly failed: (pod: KubernetesObject, failure: PullError) => "end" | "go on";
  readonly signal: AbortSignal;
}

/** Throws the first failure that ends it, once nobody is at any pod any more. */
export async function roll(options: RollingOptions): Promise<void> {
  await new Rolling(options).run();
}

class Rolling {
  readonly #options: RollingOptions;
  readonly #busy = new Map<string, Promise<void>>();
  /** What has failed and was left, or is gone though that has not been heard. */
  readonly #left = new Set<string>();
  /** Since when pods are seen to be out of service. */
  readonly #outSince = new Map<string, number>();
  #looking: NodeJS.Timeout | undefined;
  readonly #abort = new AbortController();
  #failure: PullError | undefined;

  constructor(options: RollingOptions) {
    this.#options = options;
  }

  async run(): Promise<void> {
    const { signal } = this.#options;
    // Everything at each pod ends with it; Node takes more than ten listeners for a leak.
    setMaxListeners(0, this.#abort.signal);
    const stop = (): void => this.#end(abortError(signal));
    signal.addEventListener("abort", stop, { once: true });
    if (signal.aborted) stop();
    try {
      while (this.#failure === undefined) if (!(await this.#step())) break;
    } catch (error) {
      this.#end(PullError.from(error));
    } finally {
      signal.removeEventListener("abort", stop);
      clearTimeout(this.#looking);
      await Promise.all(this.#busy.values());
    }
    if (this.#failure) throw this.#failure;
  }

  /** Begins with what may be begun, and waits until that may be more; false once there is nothing left to do. */
  async #step(): Promise<boolean> {
    const { pods, timeoutMs, settleMs } = this.#options;
    const next = this.#next();
    if (next) {
      this.#begin(next);
      return true;
    }
    if (this.#isDone()) return false;
    const over = new AbortController();
    const isChanged = pods.until(() => (this.#next() || this.#isDone() ? true : undefined), {
      otherwise: `no more pods may be taken out of service: ${this.#whyNot()}; nothing changed`,
      // Whoever is at a pod has a time of its own.
      timeoutMs: this.#busy.size > 0 ? 2 ** 31 - 1 : Math.max(timeoutMs, 2 * settleMs),
      signal: AbortSignal.any([this.#abort.signal, over.signal]),
    });
    try {
      await Promise.race([isChanged, ...this.#busy.values()]);
    } finally {
      isChanged.catch(() => {});
      over.abort();
    }
    return true;
  }

  #isDone(): boolean {
    return this.#busy.size === 0 && this.#open().length === 0;
  }

  #open(): readonly KubernetesObject[] {
    const { pods, goalOf } = this.#options;
    for (const pod of pods.all) if (isInService(pod)) this.#outSince.delete(uidOf(pod));
    const open = pods.all.filter((pod) => {
      const uid = uidOf(pod);
      return isServing(pod) && !this.#busy.has(uid) && !this.#left.has(uid) && goalOf(pod) !== undefined;
    });
    return open.toSorted(inOrder);
  }

  #next(): KubernetesObject | undefined {
    const { maxUnavailable } = this.#options;
    if (this.#busy.size >= maxUnavailable) return undefined;
    const open = this.#open();
    const broken = open.find((pod) => !isInService(pod) && this.#isBroken(pod));
    if (broken) return broken;
    if (this.#unavailable() >= maxUnavailable) return undefined;
    return open.find(isInService);
  }

  /** One that is not ready for a moment would be kept out for longer. */
  #isBroken(pod: KubernetesObject): boolean {
    if (markOf(pod) !== undefined && !isGateOpen(pod)) return true;
    const { settleMs, pods } = this.#options;
    const now = performance.now();
    const since = this.#outSince.get(uidOf(pod)) ?? now;
    this.#outSince.set(uidOf(pod), since);
    const leftMs = since + settleMs - now;
    if (leftMs > 0)
      this.#looking ??= setTimeout(() => {
        this.#looking = undefined;
        pods.poke();
      }, leftMs);
    return leftMs <= 0;
  }

  #unavailable(): number {
    const { replicas } = this.#options;
    const serving = this.#serving();
    const out = serving.filter((pod) => !isInService(pod) || this.#busy.has(uidOf(pod)));
    return out.length + Math.max(0, replicas() - serving.length);
  }

  #serving(): readonly KubernetesObject[] {
    return this.#options.pods.all.filter(isServing);
  }

  #whyNot(): string {
    const { replicas, maxUnavailable } = this.#options;
    const serving = this.#serving();
    const unready = serving.flatMap((pod) => (isInService(pod) ? [] : [pod.metadata.name]));
    const absent = Math.max(0, replicas() - serving.length);
    const all = [
      ...(unready.length > 0 ? [`not ready: ${someOf(unready)}`] : []),
      ...(absent > 0 ? [`${absent} not there`] : []),
    ];
    return `at most ${maxUnavailable} of ${replicas()}, and ${all.join(", ")}`;
  }

  #begin(pod: KubernetesObject): void {
    const uid = uidOf(pod);
    const work = this.#work(pod)
      .catch((error: unknown) => {
        const failure = PullError.from(error);
        if (this.#failure !== undefined) return;
        if (this.#options.failed(pod, failure) === "end") this.#end(failure);
        else this.#left.add(uid);
      })
      .finally(() => this.#busy.delete(uid));
    this.#busy.set(uid, work);
  }

  async #work(pod: KubernetesObject): Promise<void> {
    const { prepare, goalOf, pods } = this.#options;
    const { signal } = this.#abort;
    await prepare?.(pod, signal);
    const fresh = pods.get(uidOf(pod));
    const goal = fresh && goalOf(fresh);
    const exchanged = goal && (await exchange(this.#options, fresh, goal, signal));
    if (exchanged === "gone") this.#left.add(uidOf(pod));
  }

  #end(failure: PullError): void {
    this.#failure ??= failure;
    this.#abort.abort(failure);
  }
}

const collator = new Intl.Collator("en", { numeric: true });

/** What is not in service first, then the last ones first, as a StatefulSet's own updates have it. */
export function inOrder(one: KubernetesObject, other: KubernetesObject): number {
  const readiness = Number(isInService(one)) - Number(isInService(other));
  return readiness || collator.compare(other.metadata.name, one.metadata.name);
}
