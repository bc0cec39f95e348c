// The work of this node that pulls share: one download per digest, one unpack per chainID, and the limits on both.

import { join } from "node:path";
import { Demand } from "../demand.ts";
import { PullError } from "../errors.ts";
import type { LayerEngine } from "../layer/layer.ts";
import type { Digest } from "../oci/digest.ts";
import type { Repository } from "../registry/registry.ts";
import { BlobTrace, LayerTrace } from "../trace.ts";
import { Blob, type BlobOptions } from "./blob.ts";
import type { Keep } from "./journal.ts";
import { Layer, type LayerOptions } from "./layer.ts";
import type { LeaseShare } from "./lease.ts";
import type { PlannedLayer } from "./plan.ts";
import type { PullEvents, PullLimits } from "./pull.ts";
import { orAnew, type Share, Sharing } from "./sharing.ts";
import type { Site } from "./site.ts";
import type { Room } from "./space.ts";
import { aheadUrgency, Turns, urgencyOf } from "./turns.ts";

/** What an image brings along when it asks for one of its layers. */
export interface LayerRequest {
  readonly layer: PlannedLayer;
  /** 0 is the bottom layer. Lower layers are more urgent, since the chain is committed bottom up. */
  readonly index: number;
  readonly parent: LayerOptions["parent"];
  /** Name under which the limits per image are counted. */
  readonly image: string;
  readonly repository: Repository;
  /** Of the image: whether somebody waits for it. */
  readonly demand: Demand;
  readonly lease: LeaseShare;
  readonly site: Site;
  /** How the blob is to be kept; undefined when it is not. */
  readonly keep: Keep | undefined;
  readonly room: Room;
  readonly pace: LayerOptions["pace"];
}

/** Something that pulls share, while it goes on. */
interface Underway<Trace> {
  /** Awaited as soon as one of those who share it is. */
  readonly demand: Demand;
  readonly trace: Trace;
}

export class Work {
  readonly #engine: LayerEngine;
  readonly #limits: PullLimits;
  readonly #events: PullEvents;
  readonly #turns: Turns;
  readonly #layersUnderway = new Map<string, Underway<LayerTrace>>();
  readonly #blobsUnderway = new Map<string, Underway<BlobTrace>>();
  readonly #layers = new Sharing<Layer>();
  readonly #blobs = new Sharing<Blob>();
  /** Numbers the paths in staging, so that two attempts at the same thing never meet. */
  #attempts = 0;

  constructor(engine: LayerEngine, limits: PullLimits, events: PullEvents) {
    this.#engine = engine;
    this.#limits = limits;
    this.#events = events;
    this.#turns = new Turns(limits, {
      inFlight: (what, count) => events.inFlight(what, count),
      pause: (isPaused) => engine.pause(isPaused),
      limits: events.limits,
    });
  }

  /** An image asks a registry, or has its records made, until this is disposed of; see {@link Precedence}. */
  asking(demand: Demand): Disposable {
    return this.#turns.claim("asking", demand);
  }

  /** Joins or starts the work that ends in this layer's committed snapshot. */
  layer(request: LayerRequest): Share<Layer> {
    const { chainID } = request.layer;
    const underway = this.#layersUnderway.get(chainID);
    const isOthers = request.demand.isAwaited && underway?.demand.isAwaited === false;
    follow(request.demand, underway);
    const share = (): Share<Layer> =>
      this.#layers.join(chainID, async (signal) => {
        const demand = this.#demandFor(request.demand);
        const { digest, size } = request.layer.descriptor;
        const trace = new LayerTrace(chainID, request.index, new BlobTrace(digest, size));
        const begun = { demand, trace };
        this.#layersUnderway.set(chainID, begun);
        try {
          return await this.#makeLayer(request, begun, signal);
        } finally {
          leave(this.#layersUnderway, chainID, begun);
        }
      });
    return isOthers ? orAnew(share) : share();
  }

  /** Of a layer that is being made. */
  traceOf(chainID: Digest): LayerTrace | undefined {
    return this.#layersUnderway.get(chainID)?.trace;
  }

  #layerOptions(request: LayerRequest, { demand, trace }: Underway<LayerTrace>): LayerOptions {
    const { layer, parent, site, room, image, index } = request;
    return {
      ...layer,
      parent,
      engine: this.#engine,
      demand,
      selinux: site.selinux,
      limits: this.#limits.layer,
      lease: request.lease.share(),
      blob: () => this.#blob(request, { demand, trace }),
      keep: request.keep,
      offer: (release) => (room === "tight" ? atOnce(release) : site.spools.offer(release)),
      settle: async (upperdir) => {
        if (this.#limits.durable || site.facts.syncsLayers) await this.#engine.sync(upperdir);
      },
      worker: (until) => this.#turns.worker({ image, index, demand }, trace.waits, until),
      isWorkerWanted: () => this.#turns.isWorkerWanted(demand),
      trace,
      pace: request.pace,
      staging: this.#path(site.instance.staging),
      unpacked: (unpacked) => {
        this.#events.stage("unpack", unpacked.elapsedMs / 1000);
        this.#events.unpacked(unpacked.bytes);
      },
      committed: (seconds) => this.#events.stage("commit", seconds),
    };
  }

  /** Whether somebody makes this layer now, or has made it and holds it still. */
  isUnderWay(chainID: Digest): boolean {
    return this.#layers.has(chainID);
  }

  /** Of something that is begun now, for whoever wants it first. */
  #demandFor(wanted: Demand): Demand {
    const demand = new Demand(wanted.isAwaited);
    demand.follow(() => this.#turns.review());
    wanted.follow(() => demand.raise());
    return demand;
  }

  /** For as long as nobody waits for it, it is given up when somebody else needs its spool's room. */
  async #makeLayer(request: LayerRequest, begun: Underway<LayerTrace>, signal: AbortSignal): Promise<Layer> {
    const { demand } = begun;
    const options = this.#layerOptions(request, begun);
    using _claim = this.#turns.claim("layers", demand);
    if (demand.isAwaited) return await Layer.make(options, signal);
    const given = new AbortController();
    using offer = request.site.spools.offer(() => {
      this.#layers.retire(request.layer.chainID);
      given.abort(new PullError("unavailable", "gave way to a pull that is waited for", { temporary: true }));
    }, aheadUrgency);
    using _raised = demand.follow(() => offer[Symbol.dispose]());
    return await Layer.make(options, AbortSignal.any([signal, given.signal]));
  }

  #blob(request: LayerRequest, layer: Underway<LayerTrace>): Share<Blob> {
    const { digest, size } = request.layer.descriptor;
    follow(layer.demand, this.#blobsUnderway.get(digest));
    const share = this.#blobs.join(digest, async (signal) => {
      const demand = this.#demandFor(layer.demand);
      const begun = { demand, trace: new BlobTrace(digest, size) };
      this.#blobsUnderway.set(digest, begun);
      using _raised = demand.follow(() => request.site.spools.review());
      const claim = this.#turns.claim("downloads", demand);
      const end = (): void => {
        claim[Symbol.dispose]();
        leave(this.#blobsUnderway, digest, begun);
      };
      try {
        const blob = await Blob.start(this.#blobOptions(request, begun), signal);
        void blob.settled.finally(end);
        return blob;
      } catch (error) {
        end();
        throw error;
      }
    });
    layer.trace.blob = this.#blobsUnderway.get(digest)?.trace ?? layer.trace.blob;
    return share;
  }

  #blobOptions(request: LayerRequest, { demand, trace }: Underway<BlobTrace>): BlobOptions {
    const { image, index } = request;
    return {
      descriptor: request.layer.descriptor,
      repository: request.repository,
      permits: this.#turns.requests({ image, index, demand }, trace),
      lease: request.lease.share(),
      spools: request.site.spools,
      urgency: urgencyOf(index, demand),
      warn: (error) => this.#events.warn(error),
      downloaded: (seconds) => this.#events.stage("download", seconds),
      trace,
    };
  }

  #path(folder: string): string {
    this.#attempts += 1;
    return join(folder, String(this.#attempts));
  }
}

/** For a spool whose room is needed in any case. */
function atOnce(release: () => void): Disposable {
  release();
  return { [Symbol.dispose]: () => {} };
}

/** What is under way is awaited as soon as this is. */
function follow(wanted: Demand, underway: Underway<unknown> | undefined): void {
  if (underway) wanted.follow(() => underway.demand.raise());
}

/** What comes after it under the same key stays. */
function leave<Trace>(all: Map<string, Underway<Trace>>, key: string, one: Underway<Trace>): void {
  if (all.get(key) === one) all.delete(key);
}
