// One image on its way: from a reference to committed snapshots and stored metadata, so that containerd's own
// PullImage of the same reference finds everything and fetches no layer.
//
// Resolve (always, with the caller's credentials: it is also the access check, KEP-2535), plan, then every missing
// layer side by side, and the records where they are ours to make. An image of which nothing is missing ends with the
// first of these. What was reached is held until the image is disposed of, whether the pull succeeded or not.

import type { Containerd, Holdable, Labels } from "../containerd/containerd.ts";
import type { Demand } from "../demand.ts";
import { PullError, throwIfAborted, whileNotAborted } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Reference } from "../oci/reference.ts";
import type { Repository, Resolved } from "../registry/registry.ts";
import type { ImageTrace, LayerTrace, Vitals } from "../trace.ts";
import { clearUp, finishBlobs, finishBroken, type Made, stopUnfinished } from "./aftermath.ts";
import { Holdings, holdableOf } from "./holdings.ts";
import { instanceLabel } from "./instance.ts";
import type { Keep } from "./journal.ts";
import type { Layer } from "./layer.ts";
import { type LeaseShare, shareLease } from "./lease.ts";
import { list, listingOf } from "./listing.ts";
import { countPresent, type Document, type Plan, type PlannedLayer, plan, readStored } from "./plan.ts";
import {
  isCurrent,
  isPresent,
  type Known,
  type KnownLayer,
  knownLayers,
  type Memory,
  readKnown,
} from "./presence.ts";
import type { Ahead, Given, PullEvents, Registered, Stage } from "./pull.ts";
import { isTaken, type Registration, register, registrationOf, sourceOf } from "./registration.ts";
import type { Share } from "./sharing.ts";
import type { Site } from "./site.ts";
import type { LayerRequest, Work } from "./work.ts";

export interface ImageOptions {
  readonly reference: Reference;
  /** Name under which the limits per image are counted. */
  readonly name: string;
  readonly site: Site;
  readonly containerd: Containerd;
  readonly repository: Repository;
  readonly work: Work;
  /** Whether somebody waits for it. */
  readonly demand: Demand;
  /** Of a pull ahead of need. */
  readonly ahead: Ahead | undefined;
  /** Of one whose bytes do not come from its registry. */
  readonly given?: Given | undefined;
  readonly keepLayers: boolean;
  /** Images that were pulled before; absent where registration is left to containerd's PullImage in any case. */
  readonly memory: Memory | undefined;
  readonly events: PullEvents;
  readonly trace: ImageTrace;
  readonly vitals: () => Vitals;
}

export class Image implements AsyncDisposable {
  /** Why not everything is in place; see Pulled.failure. */
  failure: PullError | undefined;
  /** See Pulled.registered. */
  registered: Registered | undefined;
  /** See Pulled.held. */
  held: Holdable | undefined;
  /** Begun when nobody waited for it. */
  readonly isAhead: boolean;
  readonly #options: ImageOptions;
  readonly #pace = { isSlow: false };
  #layers: readonly Share<Layer>[] = [];
  #lease: Promise<LeaseShare> | undefined;
  #asking: Disposable | undefined;
  /** What the name stood for before. */
  #former: Descriptor | undefined;
  /** Layers that were not there when the pull began. */
  #missing: readonly PlannedLayer[] = [];

  private constructor(options: ImageOptions) {
    this.#options = options;
    this.isAhead = options.ahead !== undefined;
  }

  /** Never rejects; the outcome is in {@link failure}. */
  static async pull(options: ImageOptions, signal: AbortSignal): Promise<Image> {
    const image = new Image(options);
    try {
      await image.#run(signal);
    } catch (error) {
      image.failure = PullError.from(error);
      // What cannot be cleared up is swept later; the failure that is told is the pull's.
      await image.#stop(image.failure).catch(() => {});
      // What is waited for is now containerd's own attempt, while the image is held.
      image.#asking?.[Symbol.dispose]();
      image.#asking = options.work.asking(options.demand);
    }
    return image;
  }

  /** Gives everything back: kept layers are adopted, the rest is dropped, and the lease is deleted last. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#asking?.[Symbol.dispose]();
    if (this.failure) await finishBroken(this.#made, this.failure);
    await Promise.all(this.#layers.map((layer) => layer[Symbol.asyncDispose]()));
    await (await this.#lease?.catch(() => undefined))?.[Symbol.asyncDispose]();
  }

  async #run(signal: AbortSignal): Promise<void> {
    const resolved = await this.#timed("resolve", () => this.#resolve(signal));
    failpoint("resolved");
    if (this.registered) return;
    const [planned, lease] = await this.#timed("plan", () => this.#plan(resolved, signal));
    const { reference, site, memory, ahead, given, containerd, trace, vitals } = this.#options;
    const wanted = memory && registrationOf(reference, planned, site.facts);
    const registration = wanted && isTaken(planned) ? wanted : undefined;
    const names = given?.names ?? (ahead?.isListed === true ? "digest" : undefined);
    const listing = names && listingOf(reference, planned, site.facts, { names, source: this.#source() });
    const labels = registration?.labels ?? listing?.labels;
    trace.before = vitals();
    await this.#timed("layers", () => this.#fill(planned, labels, lease, signal));
    trace.after = vitals();
    await this.#timed("blobs", () => finishBlobs(this.#layers, this.#keep()));
    failpoint("complete");
    if (listing) {
      await list(listing, given ? "any" : this.#former, containerd.records, signal);
      this.registered = { id: listing.id, by: "hawser" };
    } else {
      this.held = holdableOf(planned, this.#options.keepLayers);
    }
    if (registration) await this.#register({ registration, layers: knownLayers(planned.layers) }, signal);
  }

  async #timed<T>(stage: Stage, work: () => Promise<T>): Promise<T> {
    const began = performance.now();
    const result = await this.#options.trace.spans.of(stage, work);
    this.#options.events.stage(stage, (performance.now() - began) / 1000);
    return result;
  }

  /** The registry is asked in any case, for the caller's right to the image; meanwhile containerd is asked what it has. */
  async #resolve(signal: AbortSignal): Promise<Resolved> {
    const { reference, containerd, repository, site, memory, ahead, trace } = this.#options;
    const remembered = memory?.of(reference, site.facts);
    const record = remembered?.registration.record ?? (await containerd.records.image(reference.name));
    this.#former = record?.target;
    if (record === undefined) {
      this.#ask();
      void this.#openLease().catch(() => {});
    }
    const [resolved, present] = await Promise.all([
      trace.spans.of("registry", () =>
        repository.resolve(record !== undefined || ahead?.isKnown === true, signal),
      ),
      record && this.#findPresent(remembered, record.target),
    ]);
    if (present && (await isCurrent(present, resolved.descriptor, containerd))) {
      memory?.keep(reference, site.facts, present);
      this.registered = { id: present.registration.id, by: "earlier" };
    } else {
      memory?.forget(reference);
      this.#ask();
    }
    return resolved;
  }

  /** Pulls ahead of need keep back from now on; an image that is likely to be there does not take anything from them. */
  #ask(): void {
    const { work, demand } = this.#options;
    this.#asking ??= work.asking(demand);
  }

  /** What this target stands for, if nothing of it is missing. */
  async #findPresent(remembered: Known | undefined, target: Descriptor): Promise<Known | undefined> {
    const { reference, containerd, site, work, keepLayers, memory } = this.#options;
    if (!memory) return undefined;
    const known = remembered ?? (await readKnown(reference, target, site.facts));
    const isOpen = ({ chainID, digest }: KnownLayer): boolean =>
      work.isUnderWay(chainID) || (keepLayers && site.spools.isParked(digest));
    return known && (await isPresent(known, containerd, isOpen)) ? known : undefined;
  }

  /** Once, and while the registry is asked where it is known by then that there will be work. */
  async #openLease(): Promise<LeaseShare> {
    const { site, containerd } = this.#options;
    this.#lease ??= site.claim().then(async () => {
      const lease = await containerd.lease({ [instanceLabel]: site.instance.id });
      failpoint("leased");
      return shareLease(lease);
    });
    return await this.#lease;
  }

  async #plan({ descriptor: target, body }: Resolved, signal: AbortSignal): Promise<[Plan, LeaseShare]> {
    const { site, repository, trace } = this.#options;
    const share = await this.#openLease();
    const planned = await plan(target, async (descriptor, bytesMax) => {
      if (descriptor === target && body) return { bytes: body, isStored: false };
      // Held after it was read: what matters is that it stays.
      const stored = await readStored(descriptor, site.facts.contentRoot);
      if (stored && (await share.lease.holdContent(descriptor))) return { bytes: stored, isStored: true };
      const fetched = trace.spans.of("registry", () => repository.fetch(descriptor, bytesMax, signal));
      return { bytes: await fetched, isStored: false };
    });
    return [planned, share];
  }

  /** A failure is no failure of the pull: containerd registers what is in place. */
  async #register(known: Known, signal: AbortSignal): Promise<void> {
    const { containerd, events, memory, reference, site } = this.#options;
    const { registration } = known;
    try {
      const began = performance.now();
      using _span = this.#options.trace.spans.begin("register");
      if (!(await register(registration, containerd.records, signal))) return;
      memory?.keep(reference, site.facts, known);
      events.stage("register", (performance.now() - began) / 1000);
      this.registered = { id: registration.id, by: "hawser" };
    } catch {
      throwIfAborted(signal);
    }
  }

  /**
   * Writes the metadata and makes the layers, side by side. When one of them fails the others are stopped and waited
   * for: what was begun behind a failure would go on without a lease, and nobody would ever give it back.
   */
  async #fill(
    planned: Plan,
    labels: Registration["labels"] | undefined,
    lease: LeaseShare,
    signal: AbortSignal,
  ): Promise<void> {
    const failed = new AbortController();
    const metadata = planned.documents.map((one) =>
      this.#put(one, labels?.get(one.descriptor.digest) ?? {}, lease),
    );
    failpoint("planned");
    const layers = this.#complete(planned, lease, AbortSignal.any([signal, failed.signal]));
    try {
      await Promise.all([...metadata, layers]);
    } catch (error) {
      failed.abort();
      await Promise.allSettled([...metadata, layers]);
      throw error;
    }
  }

  async #put(one: Document, labels: Labels, { lease }: LeaseShare): Promise<void> {
    if (one.isStored) await this.#options.containerd.records.labelContent(one.descriptor.digest, labels);
    else await lease.putContent(one.descriptor, one.bytes, labels);
  }

  async #complete({ layers }: Plan, lease: LeaseShare, signal: AbortSignal): Promise<void> {
    const { name, work, repository, site, demand, trace } = this.#options;
    const present = await countPresent(layers, lease.lease, signal);
    const holdings = new Holdings(this.#options, lease.lease);
    const unkept = await holdings.findUnkept(layers.slice(0, present));
    this.#missing = layers.slice(present);
    await holdings.borrow(this.#missing);
    const room = await holdings.fit(this.#missing);
    throwIfAborted(signal);
    const shares: Share<Layer>[] = [];
    const traces: LayerTrace[] = [];
    let parent: LayerRequest["parent"];
    for (const [index, layer] of layers.entries()) {
      let committed: Promise<unknown> = Promise.resolve();
      if (index >= present || unkept.has(layer)) {
        const keep = this.#keep();
        const share = work.layer({
          layer,
          index,
          parent,
          image: name,
          repository,
          demand,
          lease,
          site,
          keep,
          room,
          pace: this.#pace,
        });
        shares.push(share);
        const made = work.traceOf(layer.chainID);
        if (made) traces.push(made);
        committed = share.result;
      }
      parent = { chainID: layer.chainID, committed };
    }
    this.#layers = shares;
    trace.layers = traces;
    trace.presentLayers = layers.length - traces.length;
    // Its downloads count by themselves from now on.
    this.#asking?.[Symbol.dispose]();
    await whileNotAborted(Promise.all(shares.map((share) => share.result)), signal);
    // Until it is answered for, by whoever registers it.
    this.#asking = work.asking(demand);
  }

  /** As containerd labels what it fetched (reference 2.4); undefined when layers are not kept. */
  #keep(): Keep | undefined {
    if (!this.#options.keepLayers) return undefined;
    return { image: this.#options.reference.name, labels: this.#source() };
  }

  /** Of what comes from its registry. */
  #source(): Labels {
    const { given, reference } = this.#options;
    return given ? {} : sourceOf(reference);
  }

  async #stop(failure: PullError): Promise<void> {
    this.#layers = await stopUnfinished(this.#layers);
    await clearUp(this.#made, failure);
  }

  get #made(): Made {
    return { image: this.#options, layers: this.#layers, missing: this.#missing, keep: this.#keep() };
  }
}
