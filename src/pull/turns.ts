// Whose turn it is: the limits of this node, of an image and of a host on blob requests, and those on unpacking.
//
// What somebody waits for goes before what is fetched ahead of need, which has counts of its own, so that nobody who is
// awaited waits for it. Whoever waits here has it noted what for, by the configuration's key where there is one.

import type { Demand } from "../demand.ts";
import { throwIfAborted } from "../errors.ts";
import { Bandwidth } from "../registry/bandwidth.ts";
import type { RequestPermit, RequestPermits, Yielding } from "../registry/registry.ts";
import { type BlobTrace, Waits, waitedFor } from "../trace.ts";
import { type Limit, type Permit, Permits, type QueueEvents } from "./permits.ts";
import { type Claim, Precedence } from "./precedence.ts";
import type { PullLimits } from "./pull.ts";
import { Tuning } from "./tuning.ts";

/** What is ahead of need comes behind whatever is awaited. */
export const aheadUrgency = 1e6;

/** References name hosts, and anybody may make those up. */
const tuningsMax = 256;

/** What the limits come to. Their keys are those of the configuration; what is waited for may also be a word of {@link waitedFor}. */
export interface LimitEvents extends QueueEvents {
  /** So much of it is in use: of one that counts for each image by itself, by the one that uses most. */
  used(key: string, count: number): void;
  /** So many requests are open to a host (host:port), and so many may be. */
  host(host: string, open: number, most: number): void;
}

export interface TurnEvents {
  /** Absent: nobody wants to know. */
  readonly limits?: LimitEvents | undefined;
  readonly inFlight: (what: "downloads" | "unpacks", count: number) => void;
  /** Unpacking that nobody waits for is to pause, or to go on. */
  readonly pause: (isPaused: boolean) => void;
}

/** Who asks for a turn. */
export interface Asking {
  /** Name under which the limits per image are counted. */
  readonly image: string;
  /** Of the layer in its image, 0 at the bottom: lower layers are more urgent. */
  readonly index: number;
  readonly demand: Demand;
}

interface TunedHost {
  /** For those that are counted apart, and for all others (""). */
  readonly limitOf: (apart: string) => Limit;
  /** Undefined where the number is given. */
  readonly tuning?: Tuning;
}

export class Turns {
  readonly #limits: PullLimits;
  readonly #events: TurnEvents;
  readonly #permits: Permits;
  readonly #precedence: Precedence;
  /** Of what is fetched ahead of need, beside that of all. */
  readonly #aheadBandwidth: Bandwidth | undefined;
  /** By host, the one asked last at the end. */
  readonly #tunings = new Map<string, Tuning>();

  constructor(limits: PullLimits, events: TurnEvents) {
    this.#limits = limits;
    this.#events = events;
    this.#permits = new Permits(events.limits);
    const { bytesPerSecond } = limits.ahead;
    this.#aheadBandwidth = bytesPerSecond === undefined ? undefined : new Bandwidth(bytesPerSecond);
    this.#precedence = new Precedence(limits.cores, {
      given: () => this.#permits.review(),
      cores: events.pause,
    });
  }

  /** See {@link Precedence}. */
  claim(what: Claim, demand: Demand): Disposable {
    return this.#precedence.claim(what, demand);
  }

  /** Looks at those who wait again, where one of them has come to be awaited. */
  review(): void {
    this.#permits.review();
  }

  /** Whether a worker is all that somebody else waits for. */
  isWorkerWanted(demand: Demand): boolean {
    return this.#permits.isWanted(demand.isAwaited ? "unpacks" : "unpacks ahead");
  }

  /** For the requests of a blob. */
  requests(asking: Asking, trace: BlobTrace): RequestPermits {
    return {
      acquire: async (host, signal) => await this.#request(asking, host, trace, signal),
      paused: (host, ms) => {
        trace.hosts.of(host).pausedMs += ms;
      },
    };
  }

  /** For a layer to be unpacked. */
  async worker(asking: Asking, waits: Waits, signal: AbortSignal): Promise<Disposable> {
    const { unpacksMax, unpacksPerImageMax, ahead, areUnpacksTuned } = this.#limits;
    const { image, demand } = asking;
    const key = areUnpacksTuned ? waitedFor.cores : "unpack.max_concurrent";
    // The others' threads are their own, so that none of them waits for what has to keep back.
    const counted: Limit[] = demand.isAwaited
      ? [
          { name: "unpacks", key, max: unpacksMax },
          { name: `unpacks of ${image}`, key: "unpack.max_concurrent_per_image", max: unpacksPerImageMax },
        ]
      : [this.#aheadLimit({ name: "unpacks ahead", key, max: ahead.unpacksMax }, demand)];
    return await this.#permit("unpacks", counted, asking, waits, signal);
  }

  async #request(
    asking: Asking,
    host: string,
    trace: BlobTrace,
    signal: AbortSignal,
  ): Promise<RequestPermit> {
    const { demand } = asking;
    const { limitOf, tuning } = this.#tuningOf(host);
    // Counted apart: whoever keeps back may hold what it has, and nobody who is awaited waits for it.
    const apart = demand.isAwaited ? "" : " ahead";
    const ofHost = limitOf(apart);
    const limits = [...this.#requestLimits(asking, apart), ofHost];
    const permit = await this.#permit("downloads", limits, asking, trace.waits, signal);
    const told = (): void => this.#events.limits?.host(host, this.#openTo(host), ofHost.max);
    told();
    const request = demand.isAwaited ? undefined : this.#precedence.request(demand);
    const noted = trace.request(host);
    // Between the parts of its body, which are too many to be told one by one.
    const waits = new Waits(trace.waits);
    return {
      // The host's and the image's own limits still count it.
      slow: () => permit.lend(`downloads${apart}`),
      answered: ({ from, timeMs, redirectedMs, isServed }) => {
        if (isServed) tuning?.answered(timeMs);
        noted.answered(timeMs, from, from === host ? 0 : redirectedMs);
      },
      received: (bytes) => {
        noted.received(bytes);
        if (tuning?.received(bytes)) this.#permits.review();
      },
      throttled: (ms) => waits.add("download.bandwidth_limit", ms),
      troubled: () => tuning?.troubled(),
      failed: (code) => noted.failed(code),
      ...(request && { yielding: this.#yielding(request.signal, demand, waits) }),
      [Symbol.dispose]: () => {
        noted[Symbol.dispose]();
        request?.[Symbol.dispose]();
        permit[Symbol.dispose]();
        told();
        for (const [key, ms] of waits.byWhat) this.#events.limits?.waited(key, ms / 1000);
      },
    };
  }

  #openTo(host: string): number {
    return ["", " ahead"].reduce(
      (sum, apart) => sum + this.#permits.count(`downloads${apart} from ${host}`),
      0,
    );
  }

  /** Besides the host's own. */
  #requestLimits({ image, demand }: Asking, apart: string): readonly Limit[] {
    const { downloadsMax, downloadsPerImageMax } = this.#limits;
    const all: Limit = { name: `downloads${apart}`, key: "download.max_concurrent", max: downloadsMax };
    const ofImage: Limit = {
      name: `downloads${apart} of ${image}`,
      key: "download.max_concurrent_per_image",
      max: downloadsPerImageMax,
    };
    return [demand.isAwaited ? all : this.#aheadLimit(all, demand), ofImage];
  }

  #yielding(revoked: AbortSignal, demand: Demand, waits: Waits): Yielding {
    return {
      revoked,
      goOn: async (bytes, isRange, signal) => {
        if (demand.isAwaited) return;
        const began = performance.now();
        await this.#pay(bytes, revoked, demand, signal);
        const paid = performance.now();
        waits.add("prewarm.bandwidth_limit", paid - began);
        if (isRange) return;
        await this.#precedence.untilGiven(demand, signal);
        waits.add(waitedFor.others, performance.now() - paid);
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

  #aheadLimit({ name, key, max }: Limit, demand: Demand): Limit {
    const precedence = this.#precedence;
    return {
      name,
      get key() {
        return precedence.isTaken ? waitedFor.others : (key ?? name);
      },
      get max() {
        return precedence.limitOf(demand, max);
      },
    };
  }

  /** How many requests a host gets; whatever was found out is kept, until many other hosts were asked since. */
  #tuningOf(host: string): TunedHost {
    const { hosts, downloadsPerHostMax } = this.#limits;
    const nameOf = (apart: string): string => `downloads${apart} from ${host}`;
    const own = hosts.get(host);
    const max = own ?? downloadsPerHostMax;
    if (max !== "auto") {
      const key = own === undefined ? "download.max_concurrent_per_host" : hostKey(host);
      return { limitOf: (apart) => ({ name: nameOf(apart), key, max }) };
    }
    const isWanted = (): boolean => ["", " ahead"].some((apart) => this.#permits.isWanted(nameOf(apart)));
    const tuning = this.#tunings.get(host) ?? new Tuning(isWanted);
    this.#tunings.delete(host);
    this.#tunings.set(host, tuning);
    const oldest = this.#tunings.keys().next();
    if (this.#tunings.size > tuningsMax && !oldest.done) this.#tunings.delete(oldest.value);
    const limitOf = (apart: string): Limit => ({
      name: nameOf(apart),
      key: waitedFor.host,
      get max() {
        return tuning.limit;
      },
    });
    return { limitOf, tuning };
  }

  #reportUse(what: "downloads" | "unpacks"): void {
    const { limits } = this.#events;
    if (!limits) return;
    for (const [key, pattern] of usesOf[what])
      limits.used(
        key,
        this.#permits.most((name) => pattern.test(name)),
      );
  }

  async #permit(
    what: "downloads" | "unpacks",
    limits: readonly Limit[],
    { index, demand }: Asking,
    waits: Waits,
    signal: AbortSignal,
  ): Promise<Permit> {
    const permit = await this.#permits.acquire(limits, urgencyOf(index, demand), signal, waits);
    const report = (): void => {
      const [awaited, ahead] = [this.#permits.count(what), this.#permits.count(`${what} ahead`)];
      this.#events.inFlight(what, awaited + ahead);
      this.#reportUse(what);
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
}

/** Each limit counts what is awaited and what is ahead of need apart; the image comes last in a name. */
const usesOf = {
  downloads: [
    ["download.max_concurrent", /^downloads(?: ahead)?$/],
    ["download.max_concurrent_per_image", /^downloads(?: ahead)? of /],
  ],
  unpacks: [
    ["unpack.max_concurrent", /^unpacks(?: ahead)?$/],
    ["unpack.max_concurrent_per_image", /^unpacks of /],
  ],
} as const;

/** As it is now, and as it will be once it is awaited. */
export function urgencyOf(index: number, demand: Demand): { readonly value: number } {
  return {
    get value() {
      return demand.isAwaited ? index : aheadUrgency + index;
    },
  };
}

function hostKey(host: string): string {
  return `registry.host.${JSON.stringify(host)}.max_concurrent`;
}
