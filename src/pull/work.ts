// The work of this node that pulls share: one download per digest, one unpack per chainID, and the limits on both.

import { join } from "node:path";
import type { LayerEngine } from "../layer/layer.ts";
import type { Digest } from "../oci/digest.ts";
import type { Repository, RequestPermits } from "../registry/registry.ts";
import { Blob } from "./blob.ts";
import type { Keep } from "./journal.ts";
import { Layer, type LayerOptions } from "./layer.ts";
import type { LeaseShare } from "./lease.ts";
import { type Limit, type Permit, Permits } from "./permits.ts";
import type { PlannedLayer } from "./plan.ts";
import type { PullEvents, PullLimits } from "./pull.ts";
import { type Share, Sharing } from "./sharing.ts";
import type { Site } from "./site.ts";
import type { Room } from "./space.ts";
import { Tuning } from "./tuning.ts";

/** What an image brings along when it asks for one of its layers. */
export interface LayerRequest {
  readonly layer: PlannedLayer;
  /** 0 is the bottom layer. Lower layers are more urgent, since the chain is committed bottom up. */
  readonly index: number;
  readonly parent: LayerOptions["parent"];
  /** Name under which the limits per image are counted. */
  readonly image: string;
  readonly repository: Repository;
  readonly lease: LeaseShare;
  readonly site: Site;
  /** How the blob is to be kept; undefined when it is not. */
  readonly keep: Keep | undefined;
  readonly room: Room;
  readonly pace: LayerOptions["pace"];
}

/** References name hosts, and anybody may make those up. */
const tuningsMax = 256;

interface TunedHost {
  readonly limit: Limit;
  /** Undefined where the number is given. */
  readonly tuning?: Tuning;
}

export class Work {
  readonly #engine: LayerEngine;
  readonly #limits: PullLimits;
  readonly #events: PullEvents;
  readonly #permits = new Permits();
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
  }

  /** Joins or starts the work that ends in this layer's committed snapshot. */
  layer(request: LayerRequest): Share<Layer> {
    const { layer, parent, site, room } = request;
    return this.#layers.join(layer.chainID, (signal) =>
      Layer.make(
        {
          ...layer,
          parent,
          engine: this.#engine,
          selinux: site.selinux,
          limits: this.#limits.layer,
          lease: request.lease.share(),
          blob: () => this.#blob(request),
          keep: request.keep,
          offer: (release) => (room === "tight" ? atOnce(release) : site.spools.offer(release)),
          settle: async (upperdir) => {
            if (this.#limits.durable || site.facts.syncsLayers) await this.#engine.sync(upperdir);
          },
          worker: (until) => this.#worker(request, until),
          isWorkerWanted: () => this.#permits.isWanted("unpacks"),
          pace: request.pace,
          staging: this.#path(site.instance.staging),
          unpacked: (unpacked) => {
            this.#events.stage("unpack", unpacked.elapsedMs / 1000);
            this.#events.unpacked(unpacked.bytes);
          },
          committed: (seconds) => this.#events.stage("commit", seconds),
        },
        signal,
      ),
    );
  }

  /** Whether somebody makes this layer now, or has made it and holds it still. */
  isUnderWay(chainID: Digest): boolean {
    return this.#layers.has(chainID);
  }

  #blob(request: LayerRequest): Share<Blob> {
    const { descriptor } = request.layer;
    return this.#blobs.join(descriptor.digest, (signal) =>
      Blob.start(
        {
          descriptor,
          repository: request.repository,
          permits: this.#requests(request),
          lease: request.lease.share(),
          spools: request.site.spools,
          urgency: request.index,
          warn: (error) => this.#events.warn(error),
          downloaded: (seconds) => this.#events.stage("download", seconds),
        },
        signal,
      ),
    );
  }

  #requests({ image, index }: LayerRequest): RequestPermits {
    const limits = this.#limits;
    return {
      acquire: async (host, signal) => {
        const tuning = this.#tuningOf(host);
        const counted: Limit[] = [
          { name: "downloads", max: limits.downloadsMax },
          { name: `downloads of ${image}`, max: limits.downloadsPerImageMax },
          tuning.limit,
        ];
        const permit = await this.#permit("downloads", counted, index, signal);
        return {
          // The host's and the image's own limits still count it.
          slow: () => permit.lend("downloads"),
          answered: (timeMs) => tuning.tuning?.answered(timeMs),
          received: (bytes) => {
            if (tuning.tuning?.received(bytes)) this.#permits.grantWhatFits();
          },
          troubled: () => tuning.tuning?.troubled(),
          [Symbol.dispose]: () => permit[Symbol.dispose](),
        };
      },
    };
  }

  /** How many requests a host gets; whatever was found out is kept, until many other hosts were asked since. */
  #tuningOf(host: string): TunedHost {
    const { hosts, downloadsPerHostMax } = this.#limits;
    const name = `downloads from ${host}`;
    const max = hosts.get(host) ?? downloadsPerHostMax;
    if (max !== "auto") return { limit: { name, max } };
    const tuning = this.#tunings.get(host) ?? new Tuning(() => this.#permits.isWanted(name));
    this.#tunings.delete(host);
    this.#tunings.set(host, tuning);
    const oldest = this.#tunings.keys().next();
    if (this.#tunings.size > tuningsMax && !oldest.done) this.#tunings.delete(oldest.value);
    const limit = {
      name,
      get max() {
        return tuning.limit;
      },
    };
    return { limit, tuning };
  }

  async #worker({ image, index }: LayerRequest, signal: AbortSignal): Promise<Disposable> {
    const counted: Limit[] = [
      { name: "unpacks", max: this.#limits.unpacksMax },
      { name: `unpacks of ${image}`, max: this.#limits.unpacksPerImageMax },
    ];
    return await this.#permit("unpacks", counted, index, signal);
  }

  async #permit(
    what: "downloads" | "unpacks",
    limits: readonly Limit[],
    urgency: number,
    signal: AbortSignal,
  ): Promise<Permit> {
    const permit = await this.#permits.acquire(limits, urgency, signal);
    const report = (): void => this.#events.inFlight(what, this.#permits.count(what));
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
