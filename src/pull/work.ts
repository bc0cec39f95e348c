// The work of this node that pulls share: one download per digest, one unpack per chainID, and the limits on both.

import { join } from "node:path";
import { Demand } from "../demand.ts";
import { PullError, throwIfAborted } from "../errors.ts";
import type { LayerEngine } from "../layer/layer.ts";
import type { Digest } from "../oci/digest.ts";
import { Bandwidth } from "../registry/bandwidth.ts";
import type { Repository, RequestPermits, Yielding } from "../registry/registry.ts";
import { Blob, type BlobOptions } from "./blob.ts";
import type { Keep } from "./journal.ts";
import { Layer, type LayerOptions } from "./layer.ts";
import type { LeaseShare } from "./lease.ts";
import { type Limit, type Permit, Permits } from "./permits.ts";
import type { PlannedLayer } from "./plan.ts";
import { Precedence } from "./precedence.ts";
import type { PullEvents, PullLimits } from "./pull.ts";
import { orAnew, type Share, Sharing } from "./sharing.ts";
import type { Site } from "./site.ts";
import type { Room } from "./space.ts";
import { Tuning } from "./tuning.ts";
import type { Urgency } from "./urgency.ts";

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

/** What is ahead of need comes behind whatever is awaited. */
const aheadUrgency = 1e6;

/** References name hosts, and anybody may make those up. */
const tuningsMax = 256;

interface TunedHost {
  /** For those that are counted apart, and for all others (""). */
  readonly limitOf: (apart: string) => Limit;
  /** Undefined where the number is given. */
  readonly tuning?: Tuning;
}

export class Work {
  readonly #engine: LayerEngine;
  readonly #limits: PullLimits;
  readonly #events: PullEvents;
  readonly #permits = new Permits();
  readonly #precedence: Precedence;
  /** Of what is fetched ahead of need, beside that of all. */
  readonly #aheadBandwidth: Bandwidth | undefined;
  /** Of layers and blobs under way, by their keys: awaited as soon as one of those who share them is. */
  readonly #demands = new Map<string, Demand>();
  /** By host, the one asked last at the end. */
  readonly #tunings = new Map<string, Tuning>();
  readonly #layers = new Sharing<Layer>();
  readonly #blobs = new Sharing<Blob>();
  /** Numbers the paths in staging, so that two attempts at the same thing never meet. */
  #attempts = 0;

  constructor(engine: LayerEngine, limits: PullLimits, events: PullEvents) {
    this.#engine = engine;
    this.#limits = limits;
    this.#events = events;
    const { bytesPerSecond } = limits.ahead;
    this.#aheadBandwidth = bytesPerSecond === undefined ? undefined : new Bandwidth(bytesPerSecond);
    this.#precedence = new Precedence(limits.cores, {
      given: () => this.#permits.review(),
      cores: (areTaken) => this.#engine.pause(areTaken),
    });
  }

  /** An image asks a registry, or has its records made, until this is disposed of; see {@link Precedence}. */
  asking(demand: Demand): Disposable {
    return this.#precedence.claim("asking", demand);
  }

  /** Joins or starts the work that ends in this layer's committed snapshot. */
  layer(request: LayerRequest): Share<Layer> {
    const { chainID } = request.layer;
    const isOthers = request.demand.isAwaited && this.#demands.get(chainID)?.isAwaited === false;
    this.#join(chainID, request.demand);
    const share = (): Share<Layer> =>
      this.#layers.join(chainID, async (signal) => {
        const demand = this.#begin(chainID, request.demand);
        try {
          return await this.#makeLayer(request, demand, signal);
        } finally {
          this.#end(chainID, demand);
        }
      });
    return isOthers ? orAnew(share) : share();
  }

  #layerOptions(request: LayerRequest, demand: Demand): LayerOptions {
    const { layer, parent, site, room } = request;
    return {
      ...layer,
      parent,
      engine: this.#engine,
      demand,
      selinux: site.selinux,
      limits: this.#limits.layer,
      lease: request.lease.share(),
      blob: () => this.#blob(request, demand),
      keep: request.keep,
      offer: (release) => (room === "tight" ? atOnce(release) : site.spools.offer(release)),
      settle: async (upperdir) => {
        if (this.#limits.durable || site.facts.syncsLayers) await this.#engine.sync(upperdir);
      },
      worker: (until) => this.#worker(request, demand, until),
      isWorkerWanted: () => this.#permits.isWanted(demand.isAwaited ? "unpacks" : "unpacks ahead"),
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

  /** What is under way under this key is awaited as soon as this is. */
  #join(key: string, wanted: Demand): void {
    const demand = this.#demands.get(key);
    if (demand) wanted.follow(() => demand.raise());
  }

  #begin(key: string, wanted: Demand): Demand {
    const demand = new Demand(wanted.isAwaited);
    this.#demands.set(key, demand);
    demand.follow(() => this.#permits.review());
    wanted.follow(() => demand.raise());
    return demand;
  }

  #end(key: string, demand: Demand): void {
    if (this.#demands.get(key) === demand) this.#demands.delete(key);
  }

  /** For as long as nobody waits for it, it is given up when somebody else needs its spool's room. */
  async #makeLayer(request: LayerRequest, demand: Demand, signal: AbortSignal): Promise<Layer> {
    const options = this.#layerOptions(request, demand);
    using _claim = this.#precedence.claim("layers", demand);
    if (demand.isAwaited) return await Layer.make(options, signal);
    const given = new AbortController();
    using offer = request.site.spools.offer(() => {
      this.#layers.retire(request.layer.chainID);
      given.abort(new PullError("unavailable", "gave way to a pull that is waited for", { temporary: true }));
    }, aheadUrgency);
    using _raised = demand.follow(() => offer[Symbol.dispose]());
    return await Layer.make(options, AbortSignal.any([signal, given.signal]));
  }

  #blob(request: LayerRequest, wanted: Demand): Share<Blob> {
    const { digest } = request.layer.descriptor;
    this.#join(digest, wanted);
    return this.#blobs.join(digest, async (signal) => {
      const demand = this.#begin(digest, wanted);
      using _raised = demand.follow(() => request.site.spools.review());
      const claim = this.#precedence.claim("downloads", demand);
      const end = (): void => {
        claim[Symbol.dispose]();
        this.#end(digest, demand);
      };
      try {
        const blob = await Blob.start(this.#blobOptions(request, demand), signal);
        void blob.settled.finally(end);
        return blob;
      } catch (error) {
        end();
        throw error;
      }
    });
  }

  #blobOptions(request: LayerRequest, demand: Demand): BlobOptions {
    return {
      descriptor: request.layer.descriptor,
      repository: request.repository,
      permits: this.#requests(request, demand),
      lease: request.lease.share(),
      spools: request.site.spools,
      urgency: urgencyOf(request.index, demand),
      warn: (error) => this.#events.warn(error),
      downloaded: (seconds) => this.#events.stage("download", seconds),
    };
  }

  #requests({ image, index }: LayerRequest, demand: Demand): RequestPermits {
    const limits = this.#limits;
    return {
      acquire: async (host, signal) => {
        const tuning = this.#tuningOf(host);
        // Counted apart: whoever keeps back may hold what it has, and nobody who is awaited waits for it.
        const apart = demand.isAwaited ? "" : " ahead";
        const all = { name: "downloads", max: limits.downloadsMax };
        const counted: Limit[] = [
          demand.isAwaited ? all : this.#aheadLimit("downloads ahead", all.max, demand),
          { name: `downloads${apart} of ${image}`, max: limits.downloadsPerImageMax },
          tuning.limitOf(apart),
        ];
        const permit = await this.#permit("downloads", counted, urgencyOf(index, demand), signal);
        const request = demand.isAwaited ? undefined : this.#precedence.request(demand);
        return {
          // The host's and the image's own limits still count it.
          slow: () => permit.lend(`downloads${apart}`),
          answered: (timeMs) => tuning.tuning?.answered(timeMs),
          received: (bytes) => {
            if (tuning.tuning?.received(bytes)) this.#permits.review();
          },
          troubled: () => tuning.tuning?.troubled(),
          ...(request && { yielding: this.#yielding(request.signal, demand) }),
          [Symbol.dispose]: () => {
            request?.[Symbol.dispose]();
            permit[Symbol.dispose]();
          },
        };
      },
    };
  }

  #yielding(revoked: AbortSignal, demand: Demand): Yielding {
    return {
      revoked,
      goOn: async (bytes, isRange, signal) => {
        if (demand.isAwaited) return;
        await this.#pay(bytes, revoked, demand, signal);
        if (!isRange) await this.#precedence.untilGiven(demand, signal);
      },
    };
  }

  /** Neither what is awaited by now nor what is broken off waits on for its share. */
  async #pay(bytes: number, revoked: AbortSignal, demand: Demand, signal: AbortSignal): Promise<void> {
    if (this.#aheadBandwidth === undefined) return;
    const raised = new AbortController();
    using _following = demand.follow(() => raised.abort());
    try {
      await this.#aheadBandwidth.pay(bytes, AbortSignal.any([signal, revoked, raised.signal]));
    } catch {
      throwIfAborted(signal);
    }
  }

  #aheadLimit(name: string, most: number, demand: Demand): Limit {
    const precedence = this.#precedence;
    return {
      name,
      get max() {
        return precedence.limitOf(demand, most);
      },
    };
  }

  /** How many requests a host gets; whatever was found out is kept, until many other hosts were asked since. */
  #tuningOf(host: string): TunedHost {
    const { hosts, downloadsPerHostMax } = this.#limits;
    const nameOf = (apart: string): string => `downloads${apart} from ${host}`;
    const max = hosts.get(host) ?? downloadsPerHostMax;
    if (max !== "auto") return { limitOf: (apart) => ({ name: nameOf(apart), max }) };
    const isWanted = (): boolean => ["", " ahead"].some((apart) => this.#permits.isWanted(nameOf(apart)));
    const tuning = this.#tunings.get(host) ?? new Tuning(isWanted);
    this.#tunings.delete(host);
    this.#tunings.set(host, tuning);
    const oldest = this.#tunings.keys().next();
    if (this.#tunings.size > tuningsMax && !oldest.done) this.#tunings.delete(oldest.value);
    const limitOf = (apart: string): Limit => ({
      name: nameOf(apart),
      get max() {
        return tuning.limit;
      },
    });
    return { limitOf, tuning };
  }

  async #worker({ image, index }: LayerRequest, demand: Demand, signal: AbortSignal): Promise<Disposable> {
    const { unpacksMax, unpacksPerImageMax, ahead } = this.#limits;
    // The others' threads are their own, so that none of them waits for what has to keep back.
    const counted: Limit[] = demand.isAwaited
      ? [
          { name: "unpacks", max: unpacksMax },
          { name: `unpacks of ${image}`, max: unpacksPerImageMax },
        ]
      : [this.#aheadLimit("unpacks ahead", ahead.unpacksMax, demand)];
    return await this.#permit("unpacks", counted, urgencyOf(index, demand), signal);
  }

  async #permit(
    what: "downloads" | "unpacks",
    limits: readonly Limit[],
    urgency: Urgency,
    signal: AbortSignal,
  ): Promise<Permit> {
    const permit = await this.#permits.acquire(limits, urgency, signal);
    const report = (): void => {
      const count = this.#permits.count(what) + this.#permits.count(`${what} ahead`);
      this.#events.inFlight(what, count);
    };
    report();
    return {
      lend: (name) => {
        permit.lend(name);
        report();
      },
      [Symbol.dispose]: () => {
        permit[Symbol.dispose]();
        report();
      },
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

/** As it is now, and as it will be once it is awaited. */
function urgencyOf(index: number, demand: Demand): { readonly value: number } {
  return {
    get value() {
      return demand.isAwaited ? index : aheadUrgency + index;
    },
  };
}
