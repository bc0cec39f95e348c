// The site: what is known of the containerd that is connected now, and whether pulls may be accelerated on it.
//
// On each connection the facts are read, our directories made beside containerd's, and the self-test run; only then is
// the site open. Until then, and whenever anything speaks against it, it is closed with a reason and every pull goes
// through to containerd. What dead instances left is swept in the background once the site is open.

import { setTimeout as sleep } from "node:timers/promises";
import type { Containerd, ContainerdFacts } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import { createInstance, type Instance } from "./instance.ts";

/** Where pulls work. */
export interface Site {
  readonly facts: ContainerdFacts;
  readonly instance: Instance;
}

/** Why pulls go through: a word for metrics, and a sentence for people. */
interface Closed {
  readonly kind: "closed";
  readonly reason: "containerd" | "unfit" | "self-test" | "stopping" | "starting";
  readonly detail: string;
}

export type SiteState = { readonly kind: "open"; readonly site: Site } | Closed;

export interface SiteOptions {
  readonly containerd: Containerd;
  /** Proves on small layers that what a pull does works here; throws the reason why not. */
  readonly selfTest: (site: Site, signal: AbortSignal) => Promise<void>;
  /** Called on each change of state. */
  readonly changed: (state: SiteState) => void;
  /** Called when a sweep found something, or failed. */
  readonly swept: (outcome: number | PullError) => void;
}

/** A failed preparation is tried again after this long, doubling up to the maximum, while containerd is connected. */
const retryMs = { first: 1_000, max: 60_000 };

export class SiteKeeper implements AsyncDisposable {
  readonly #options: SiteOptions;
  readonly #watch: Disposable;
  readonly #stop = new AbortController();
  #state: SiteState = { kind: "closed", reason: "starting", detail: "containerd has not been reached yet" };
  #instance: { readonly instance: Instance; readonly facts: ContainerdFacts } | undefined;
  /** Aborted on each change of the connection. */
  #connection = new AbortController();
  /** Preparations run one after another, each on the connection that it was begun for. */
  #preparing: Promise<void> = Promise.resolve();

  constructor(options: SiteOptions) {
    this.#options = options;
    this.#watch = options.containerd.watch((connected) => this.#connectionChanged(connected));
  }

  get state(): SiteState {
    return this.#state;
  }

  /** Closes the site for good and removes what is ours; pulls that use it must have ended. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#watch[Symbol.dispose]();
    this.#stop.abort();
    this.#connection.abort();
    this.#set({ kind: "closed", reason: "stopping", detail: "Hawser is stopping" });
    await this.#preparing;
    await this.#instance?.instance[Symbol.asyncDispose]();
  }

  #set(state: SiteState): void {
    this.#state = state;
    this.#options.changed(state);
  }

  #connectionChanged(connected: boolean): void {
    this.#connection.abort();
    this.#connection = new AbortController();
    if (connected) {
      const signal = AbortSignal.any([this.#connection.signal, this.#stop.signal]);
      this.#preparing = this.#preparing.then(() => this.#prepareUntilDone(signal));
    } else {
      this.#set({ kind: "closed", reason: "containerd", detail: "containerd does not answer" });
    }
  }

  async #prepareUntilDone(signal: AbortSignal): Promise<void> {
    const over = (): boolean => signal.aborted;
    for (let waitMs = retryMs.first; !over(); waitMs = Math.min(2 * waitMs, retryMs.max)) {
      const state = await this.#prepare(signal).catch((error: unknown) => failed(PullError.from(error)));
      if (over()) return;
      this.#set(state);
      if (state.kind === "open") {
        void this.#sweep(state.site);
        return;
      }
      // What the facts say against us does not change while containerd runs; anything else may pass.
      if (state.reason === "unfit") return;
      await sleep(waitMs, undefined, { signal }).catch(() => {});
    }
  }

  async #prepare(signal: AbortSignal): Promise<SiteState> {
    const { containerd, selfTest } = this.#options;
    const facts = await containerd.facts(signal);
    if (facts.unfit !== undefined) return { kind: "closed", reason: "unfit", detail: facts.unfit };
    const site = { facts, instance: await this.#instanceFor(facts) };
    await selfTest(site, signal);
    return { kind: "open", site };
  }

  /** The same instance for as long as containerd's roots are the same, across reconnections. */
  async #instanceFor(facts: ContainerdFacts): Promise<Instance> {
    const present = this.#instance;
    const same =
      present?.facts.contentRoot === facts.contentRoot &&
      present.facts.snapshotterRoot === facts.snapshotterRoot;
    if (present && same) return present.instance;
    await present?.instance[Symbol.asyncDispose]();
    this.#instance = undefined;
    const instance = await createInstance(facts);
    this.#instance = { instance, facts };
    return instance;
  }

  async #sweep(site: Site): Promise<void> {
    try {
      const dead = await site.instance.sweep(this.#options.containerd);
      if (dead > 0) this.#options.swept(dead);
    } catch (error) {
      this.#options.swept(PullError.from(error));
    }
  }
}

function failed(error: PullError): Closed {
  const reason = error.code === "unavailable" ? "containerd" : "self-test";
  return { kind: "closed", reason, detail: error.message };
}
