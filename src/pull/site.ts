// The site: what is known of the containerd that is connected now, and whether pulls may be accelerated on it.
//
// On each connection the facts are read, our directories made beside containerd's and labelled like them, the self-test
// run, and the leases and spools of dead instances seen to; only then is the site open. Until then, and whenever anything
// speaks against it, it is closed with a reason and every pull goes through to containerd. The rest of what the dead left
// is swept behind that.

import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Containerd, ContainerdFacts } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Digest } from "../oci/digest.ts";
import type { Selinux } from "../selinux.ts";
import { createInstance, type Instance } from "./instance.ts";
import { Recovery } from "./recovery.ts";
import { Spools, type SpoolsOptions } from "./spools.ts";

/** Where pulls work. */
export interface Site {
  readonly facts: ContainerdFacts;
  readonly instance: Instance;
  readonly spools: Spools;
  readonly selinux: Selinux;
  /** Takes over what instances left that died since: a predecessor's spools are wanted by the pulls that it lost. */
  claim(): Promise<void>;
}

interface Prepared extends Site {
  readonly recovery: Recovery;
}

/** Why pulls go through: a word for metrics, and a sentence for people. */
interface Closed {
  readonly kind: "closed";
  readonly reason: "containerd" | "unfit" | "selinux" | "self-test" | "stopping" | "starting";
  readonly detail: string;
  /** It does not change while containerd runs. */
  readonly isLasting?: boolean;
}

export type SiteState = { readonly kind: "open"; readonly site: Site } | Closed;

export interface SiteOptions {
  readonly containerd: Containerd;
  readonly selinux: Selinux;
  /** Proves on small layers that what a pull does works here; throws the reason why not. */
  readonly selfTest: (site: Site, signal: AbortSignal) => Promise<void>;
  /** Called on each change of state. */
  readonly changed: (state: SiteState) => void;
  /** Called when a sweep found something, or failed. */
  readonly swept: (outcome: number | PullError) => void;
  /** Called when a blob that a dead instance was to keep has been kept, or could not be. */
  readonly adopted: (digest: Digest, failure: PullError | undefined) => void;
  readonly spools: Omit<SpoolsOptions, "folder" | "deferred">;
  /** See {@link RecoveryOptions.inherits}. */
  readonly inherits?: boolean;
}

/** What failed is tried again after this long, doubling up to the maximum, while containerd is connected. */
const retryMs = { first: 1_000, max: 60_000 };
/** Whoever has died since is looked for so often, where no pull does that. */
const lookEveryMs = 600_000;

export class SiteKeeper implements AsyncDisposable {
  readonly #options: SiteOptions;
  readonly #watch: Disposable;
  readonly #stop = new AbortController();
  readonly #look: NodeJS.Timeout;
  #state: SiteState = { kind: "closed", reason: "starting", detail: "containerd has not been reached yet" };
  #site: Prepared | undefined;
  /** Aborted on each change of the connection. */
  #connection = new AbortController();
  /** Preparations run one after another, each on the connection that it was begun for. */
  #preparing: Promise<void> = Promise.resolve();
  /** Sweeps and adoptions of what dead instances left. */
  #recovering: Promise<void> = Promise.resolve();

  constructor(options: SiteOptions) {
    this.#options = options;
    this.#watch = options.containerd.watch((connected) => this.#connectionChanged(connected));
    this.#look = setInterval(() => void this.#site?.claim(), lookEveryMs).unref();
  }

  get state(): SiteState {
    return this.#state;
  }

  /** Closes the site for good and removes what is ours; pulls that use it must have ended. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#watch[Symbol.dispose]();
    clearInterval(this.#look);
    this.#stop.abort();
    this.#connection.abort();
    this.#set({ kind: "closed", reason: "stopping", detail: "Hawser is stopping" });
    await this.#preparing;
    await this.#recovering;
    await this.#leave();
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
        this.#recoverSoon(signal);
        return;
      }
      if (state.isLasting) return;
      await sleep(waitMs, undefined, { signal }).catch(() => {});
    }
  }

  async #prepare(signal: AbortSignal): Promise<SiteState> {
    const { containerd, selfTest } = this.#options;
    // Of a former connection; it has been told to stop.
    await this.#recovering;
    const facts = await containerd.facts(signal).catch((error: unknown) => PullError.from(error));
    // Its socket may answer before its plugins do.
    if (facts instanceof PullError) return unknown(facts);
    if (facts.unfit !== undefined)
      return { kind: "closed", reason: "unfit", detail: facts.unfit, isLasting: true };
    const site = await this.#siteFor(facts);
    const mislabelled = label(site);
    if (mislabelled) return mislabelled;
    await selfTest(site, signal);
    // What cannot be had back now is no reason to leave pulls to containerd; it is tried again once the site is open.
    await site.recovery.claim().catch((error: unknown) => this.#options.swept(PullError.from(error)));
    return { kind: "open", site };
  }

  /** The same instance for as long as containerd's roots are the same, across reconnections. */
  async #siteFor(facts: ContainerdFacts): Promise<Prepared> {
    const present = this.#site;
    const same =
      present?.facts.contentRoot === facts.contentRoot &&
      present.facts.snapshotterRoot === facts.snapshotterRoot;
    if (present && same) {
      this.#site = { ...present, facts };
      return this.#site;
    }
    await this.#leave();
    const instance = await createInstance(facts);
    try {
      const deferred = (): void => this.#recoverSoon(this.#connection.signal);
      const spools = await Spools.open({ ...this.#options.spools, folder: instance.spool, deferred });
      const { containerd, selinux, adopted, inherits } = this.#options;
      const recovery = new Recovery({ containerd, instance, spools, inherits, adopted });
      const claim = (): Promise<void> => this.#claim(recovery);
      this.#site = { facts, instance, spools, selinux, recovery, claim };
      return this.#site;
    } catch (error) {
      await instance[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** A failure costs nothing but bytes that are fetched once more. */
  async #claim(recovery: Recovery): Promise<void> {
    const isLeft = await recovery.claimSeen().catch(() => true);
    if (isLeft) this.#recoverSoon(this.#connection.signal);
  }

  async #leave(): Promise<void> {
    const site = this.#site;
    this.#site = undefined;
    await site?.spools[Symbol.asyncDispose]();
    await site?.instance[Symbol.asyncDispose]();
  }

  #recoverSoon(signal: AbortSignal): void {
    this.#recovering = this.#recovering.then(() => this.#recover(signal));
  }

  async #recover(signal: AbortSignal): Promise<void> {
    const over = (): boolean => signal.aborted;
    for (let waitMs = retryMs.first; !over(); waitMs = Math.min(2 * waitMs, retryMs.max)) {
      try {
        const dead = await this.#site?.recovery.finish(signal);
        if (dead) this.#options.swept(dead);
        return;
      } catch (error) {
        if (!over()) this.#options.swept(PullError.from(error));
      }
      await sleep(waitMs, undefined, { signal }).catch(() => {});
    }
  }
}

/** The facts could not be read. */
function unknown({ code, message }: PullError): Closed {
  return { kind: "closed", reason: code === "unsupported" ? "unfit" : "containerd", detail: message };
}

/** Trees go into containerd's snapshots, and spools into its content store, where its own files begin as ingests. */
function label({ facts, instance, selinux }: Site): Closed | undefined {
  try {
    selinux.adopt(instance.staging, join(facts.snapshotterRoot, "snapshots"));
    selinux.adopt(instance.spool, join(facts.contentRoot, "ingest"));
    return undefined;
  } catch (error) {
    return { kind: "closed", reason: "selinux", detail: PullError.from(error).message };
  }
}

function failed(error: PullError): Closed {
  const reason = error.code === "unavailable" ? "containerd" : "self-test";
  return { kind: "closed", reason, detail: error.message };
}
