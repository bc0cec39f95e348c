// The face of the pull room: a reference goes in; what comes out is the promise that containerd has everything.
//
// Work is shared node-wide: one pull per reference and credential, one download per digest, one unpack per chainID.
// Everything that a pull makes is held by shares and leases that are given back when the last holder is done. This
// room never answers a CRI call, never changes an image record that is there, and never keeps a credential longer than
// its pull.

import { createHash } from "node:crypto";
import type { Containerd, ContainerdFacts, Holdable } from "../containerd/containerd.ts";
import { Demand } from "../demand.ts";
import { PullError, whileNotAborted } from "../errors.ts";
import type { LayerEngine, LayerLimits } from "../layer/layer.ts";
import type { Digest } from "../oci/digest.ts";
import { parseReference, type Reference } from "../oci/reference.ts";
import type { Credentials, Registry, Repository } from "../registry/registry.ts";
import { ImageTrace, type PullTrace, type Vitals } from "../trace.ts";
import { Image } from "./image.ts";
import type { Names } from "./listing.ts";
import { Memory } from "./presence.ts";
import { type Share, Sharing } from "./sharing.ts";
import type { Site } from "./site.ts";
import type { Volume } from "./space.ts";
import type { LimitEvents } from "./turns.ts";
import { Work } from "./work.ts";

/** Up to "register" they come one behind another, once a pull; the others belong to "layers", once a layer each. */
export type Stage = "resolve" | "plan" | "layers" | "blobs" | "register" | "download" | "unpack" | "commit";

/** What a pull tells of itself, for metrics and log. */
export interface PullEvents {
  stage(stage: Stage, seconds: number): void;
  unpacked(bytes: number): void;
  inFlight(what: "downloads" | "unpacks", count: number): void;
  /** Absent: nobody wants to know. */
  readonly limits?: LimitEvents;
  /** Something failed after the answer was given: kept layers that could not be adopted, a lease not deleted. */
  warn(error: PullError): void;
}

export interface PullLimits {
  readonly downloadsMax: number;
  readonly downloadsPerImageMax: number;
  /** "auto" finds out for each host, from how it answers. */
  readonly downloadsPerHostMax: number | "auto";
  /** Overrides of `downloadsPerHostMax`, by host:port. */
  readonly hosts: ReadonlyMap<string, number>;
  readonly unpacksMax: number;
  readonly unpacksPerImageMax: number;
  readonly layer: LayerLimits;
  /** Cores that unpacking may keep busy. */
  readonly cores: number;
  readonly ahead: AheadLimits;
  /** `unpacksMax` is what was found to be good for this machine, and no number that somebody has set. */
  readonly areUnpacksTuned: boolean;
  /** Layers are on disk before they are committed (`unpack.durability = "syncfs"`). */
  readonly durable: boolean;
}

/** Of pulls ahead of need, besides all others. */
interface AheadLimits {
  readonly unpacksMax: number;
  readonly bytesPerSecond: number | undefined;
}

export interface PullerOptions {
  readonly containerd: Containerd;
  readonly registry: Registry;
  readonly engine: LayerEngine;
  readonly limits: PullLimits;
  /** Whether layer blobs go into the content store: `content.keep_layers`, or what containerd does. */
  readonly keepLayers: (facts: ContainerdFacts) => boolean;
  /** Whether image records are made here, on such a containerd. */
  readonly registersDirectly: (facts: ContainerdFacts) => boolean;
  readonly events: PullEvents;
  /** What the machine has done until now. */
  readonly vitals: () => Vitals;
}

/** An image that containerd answers for, down to its records: by this pull, or since an earlier one. */
export interface Registered {
  /** What PullImage answers: the digest of the config. */
  readonly id: Digest;
  readonly by: "hawser" | "earlier";
}

/** What a pull is to heed that is made ahead of need. */
export interface Ahead {
  /** The node has had it before: what its name stands for now is asked by HEAD. */
  readonly isKnown: boolean;
  /** How many bytes of a volume must stay free. */
  readonly spare: Spare;
  /** It is to be listed, unless its name comes to stand for something else meanwhile: every pod of the node may then use it. */
  readonly isListed?: boolean;
}

/** An image whose bytes do not come from its registry. */
export interface Given {
  readonly repository: Repository;
  /** The records that it is to have. */
  readonly names: Names;
  readonly spare: Spare;
}

/** Of a pull that a CRI call asks for. */
export interface Observed {
  /** False where nobody waits for the image itself: then it comes behind all those for which somebody does. */
  readonly isAwaited?: boolean;
  /** Is told what image it comes to share. */
  readonly trace?: PullTrace | undefined;
}

export type Spare = (volume: Volume) => number;

/** A pull's result: while it is held, everything is protected from garbage collection. */
export interface Pulled extends AsyncDisposable {
  /**
   * Why not everything is in place, or undefined. What was finished before the failure stays protected as well, so
   * that containerd's own attempt, made while this is held, need not do it again.
   */
  readonly failure: PullError | undefined;
  /** Set when nothing is left to do; where it is not, containerd's PullImage has to follow. */
  readonly registered?: Registered | undefined;
  /** Set when all of it is in place and was not found so at once. */
  readonly held?: Holdable | undefined;
}

export interface Puller {
  /**
   * Fetches and unpacks all that is missing, so that containerd's own PullImage of the same reference with the same
   * credentials only has to look; or not even that, see {@link Pulled.registered}. Never rejects. Disposing returns at once; adoption of kept layers and the deletion
   * of the lease go on behind it. Aborting ends the caller's wait, and the work too when nobody else wants it.
   */
  pull(
    reference: string,
    site: Site,
    credentials: Credentials | undefined,
    signal: AbortSignal,
    more?: Observed,
  ): Promise<Pulled>;
  /**
   * The same for whoever only expects that it will be wanted: behind all that is waited for, whose pulls join what it has
   * begun and make it theirs; and without records unless {@link Ahead.isListed} says otherwise, since an image that is
   * listed is one that every pod of the node may use.
   */
  pullAhead(
    reference: string,
    site: Site,
    credentials: Credentials | undefined,
    ahead: Ahead,
    signal: AbortSignal,
    trace?: PullTrace,
  ): Promise<Pulled>;
  /** The same for an image that is given, which is then listed whatever its name has stood for. */
  load(reference: string, site: Site, given: Given, signal: AbortSignal): Promise<Pulled>;
  /** What is made ahead of need keeps back until this is disposed of, for a pull that somebody waits for and others make. */
  giveWay(): Disposable;
  /** Waits until every result was given back and what follows that has ended. */
  settle(): Promise<void>;
}

export function createPuller(options: PullerOptions): Puller {
  return new NodePuller(options);
}

class NodePuller implements Puller {
  readonly #options: PullerOptions;
  readonly #work: Work;
  readonly #images = new Sharing<Image>();
  /** Of images on their way, by the keys that they are shared under. */
  readonly #underway = new Map<string, { readonly demand: Demand; readonly trace: ImageTrace }>();
  readonly #memory = new Memory();
  /** Results that somebody holds, and what goes on after they were given back. */
  readonly #unsettled = new Set<Promise<void>>();
  #pulls = 0;

  constructor(options: PullerOptions) {
    this.#options = options;
    this.#work = new Work(options.engine, options.limits, options.events);
  }

  async pull(
    reference: string,
    site: Site,
    credentials: Credentials | undefined,
    signal: AbortSignal,
    { isAwaited = true, trace }: Observed = {},
  ): Promise<Pulled> {
    return await this.#pull({ text: reference, site, credentials, isAwaited, trace }, signal);
  }

  async pullAhead(
    reference: string,
    site: Site,
    credentials: Credentials | undefined,
    ahead: Ahead,
    signal: AbortSignal,
    trace?: PullTrace,
  ): Promise<Pulled> {
    return await this.#pull({ text: reference, site, credentials, isAwaited: false, ahead, trace }, signal);
  }

  async load(reference: string, site: Site, given: Given, signal: AbortSignal): Promise<Pulled> {
    return await this.#pull({ text: reference, site, isAwaited: true, given }, signal);
  }

  async #pull(wanted: Wanted, signal: AbortSignal): Promise<Pulled> {
    let share: Share<Image> | undefined;
    let failure: PullError | undefined;
    let registered: Registered | undefined;
    let held: Holdable | undefined;
    const release = this.#hold();
    try {
      const reference = parseReference(wanted.text);
      const key = this.#keyOf(reference, wanted);
      const isFirst = !this.#images.has(key);
      if (wanted.isAwaited) this.#underway.get(key)?.demand.raise();
      share = this.#join(key, reference, wanted);
      let image = await whileNotAborted(share.result, signal);
      if (image.failure && image.isAhead && wanted.ahead === undefined) {
        // It failed by what only those have to heed whom nobody waits for.
        share.retire();
        this.#later(share[Symbol.asyncDispose]());
        share = this.#join(key, reference, wanted);
        image = await whileNotAborted(share.result, signal);
      }
      ({ failure, registered, held } = image);
      // What the reference stands for was asked before this caller came: containerd asks once more, and for its right to it.
      if (!isFirst) registered = undefined;
    } catch (error) {
      failure = PullError.from(error);
    }
    return {
      failure,
      registered,
      held,
      [Symbol.asyncDispose]: async () => {
        if (share) this.#later(share[Symbol.asyncDispose]());
        release();
      },
    };
  }

  giveWay(): Disposable {
    return this.#work.asking(new Demand(true));
  }

  async settle(): Promise<void> {
    while (this.#unsettled.size > 0) await Promise.all(this.#unsettled);
  }

  /** Counts as unsettled until the returned function is called. */
  #hold(): () => void {
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    this.#unsettled.add(held);
    return () => {
      this.#unsettled.delete(held);
      release();
    };
  }

  /** What comes from elsewhere than its registry is nothing that others of the same name could share. */
  #keyOf(reference: Reference, { credentials, given }: Wanted): string {
    return given ? `${reference.name} ${this.#pulls}` : shareKey(reference, credentials);
  }

  #join(key: string, reference: Reference, wanted: Wanted): Share<Image> {
    const { isAwaited, trace } = wanted;
    if (trace) trace.isJoined = this.#images.has(key);
    const share = this.#images.join(key, async (signal) => {
      const begun = { demand: new Demand(isAwaited), trace: new ImageTrace() };
      this.#underway.set(key, begun);
      const image = await this.#image(reference, wanted, begun, signal);
      if (this.#underway.get(key) === begun) this.#underway.delete(key);
      return image;
    });
    if (trace) trace.image = this.#underway.get(key)?.trace;
    return share;
  }

  async #image(
    reference: Reference,
    { site, credentials, ahead, given }: Wanted,
    { demand, trace }: { readonly demand: Demand; readonly trace: ImageTrace },
    signal: AbortSignal,
  ): Promise<Image> {
    const { containerd, registry, keepLayers, registersDirectly, events, vitals } = this.#options;
    this.#pulls += 1;
    return await Image.pull(
      {
        reference,
        name: `pull ${this.#pulls}`,
        site,
        containerd,
        repository:
          given?.repository ??
          registry.repository(reference, credentials, (...failure) => trace.failed(...failure)),
        work: this.#work,
        demand,
        ahead,
        given,
        keepLayers: keepLayers(site.facts),
        memory: ahead || given || !registersDirectly(site.facts) ? undefined : this.#memory,
        events,
        trace,
        vitals,
      },
      signal,
    );
  }

  #later(work: PromiseLike<void>): void {
    const watched = async (): Promise<void> => {
      try {
        await work;
      } catch (error) {
        this.#options.events.warn(PullError.from(error));
      } finally {
        this.#unsettled.delete(promise);
      }
    };
    const promise = watched();
    this.#unsettled.add(promise);
  }
}

/** What is to be pulled, by whom, and how. */
interface Wanted {
  readonly text: string;
  readonly site: Site;
  readonly credentials?: Credentials | undefined;
  readonly isAwaited: boolean;
  readonly ahead?: Ahead;
  readonly given?: Given;
  readonly trace?: PullTrace | undefined;
}

/** Equal for equal references with equal credentials; the credentials are in it only as a hash. */
function shareKey(reference: Reference, credentials: Credentials | undefined): string {
  const given = Object.entries(credentials ?? {}).filter(([, value]) => value !== "");
  const secret = createHash("sha256").update(
    JSON.stringify(given.toSorted(([one], [other]) => one.localeCompare(other))),
  );
  return `${reference.name} ${secret.digest("hex")}`;
}
