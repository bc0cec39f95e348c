// Pre-warming: images are fetched before anybody asks for them, and held until they are wanted no more.
//
// Whoever knows what will be wanted says so here; this fetches it through the pull engine, behind every pull that somebody
// waits for. What has come is held by a lease and has no record: containerd does not list it, so kubelet asks for it as for
// any other image, the registry is asked for that pod's right to it, and only then is it there, at once. Nothing here
// takes away what a record, a container or another lease holds.

import type { Hold, Holdable, Holds } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Digest } from "../oci/digest.ts";
import { type Clock, realClock } from "./clock.ts";
import { nameOf, namesOf } from "./names.ts";
import { type Condition, type Entry, type Failure, Queue, type Source, type Want } from "./queue.ts";

/** What was fetched, protected until it is disposed of. */
export interface Fetched extends AsyncDisposable {
  readonly failure: PullError | undefined;
  /** What is to be held; nothing where a record holds it already. */
  readonly held?: Holdable | undefined;
  /** Where nothing is: what the record's name stands for, if that is known. */
  readonly target?: Digest | undefined;
  /** It was listed. */
  readonly registered?: object | undefined;
}

/** What a fetch needs to know besides the image's name. */
export interface Wanted {
  /** The node has had it before. */
  readonly isKnown: boolean;
  readonly sources: readonly Source[];
}

export interface PrewarmOptions {
  readonly holds: Holds;
  /** Fetches an image. Never rejects. */
  readonly fetch: (name: string, wanted: Wanted, signal: AbortSignal) => Promise<Fetched>;
  /** Whether containerd lists it: somebody has pulled it, and may use it. */
  readonly isListed: (name: string) => Promise<boolean>;
  readonly limits: PrewarmLimits;
  /** Whether the disk has less left than is to be left free. */
  readonly isFull: () => Promise<boolean>;
  readonly events: PrewarmEvents;
  readonly clock?: Clock;
}

/** By what was given. */
export type Refused = ReadonlyMap<string, PullError>;

export interface PrewarmLimits {
  readonly concurrentMax: number;
  readonly refreshMs: number;
  readonly keepMs: number;
}

export interface PrewarmEvents {
  /** An image was fetched, or was still the same when it was looked at again (`isNew` false), or neither. */
  done(name: string, outcome: { readonly isNew: boolean; readonly seconds: number } | Failure): void;
  /** A warm image is held no more, for one of these reasons. */
  dropped(name: string, why: "unwanted" | "listed" | "disk"): void;
  changed(entries: readonly Entry[]): void;
}

/** Pauses between attempts that may succeed without anybody changing anything. */
const backOffMs = { first: 5_000, most: 600_000 } as const;
/** The disk is looked at so often while there is something here that takes or could give room. */
const diskEveryMs = 15_000;
/** Images at once, where somebody is about to ask for them. */
const urgentMax = 16;

export class Prewarm {
  readonly #options: PrewarmOptions;
  readonly #clock: Clock;
  readonly #queue = new Queue();
  readonly #running = new Map<string, { readonly abort: AbortController; readonly over: Promise<void> }>();
  #timer: Disposable | undefined;
  #diskTimer: Disposable | undefined;
  #isLookDue = false;
  #isOpen = false;
  #isClosed = false;
  #isFull = false;

  constructor(options: PrewarmOptions) {
    this.#options = options;
    this.#clock = options.clock ?? realClock;
  }

  get entries(): readonly Entry[] {
    return this.#queue.entries;
  }

  get known(): Pick<Queue, "get" | "attempts"> {
    return this.#queue;
  }

  /** Finds what is held from an earlier time, and begins. Throws when containerd does not say; can then be tried again. */
  async open(): Promise<void> {
    if (this.#isOpen) return;
    const { holds } = this.#options;
    for (const hold of await holds.list()) {
      const now = this.#clock.now();
      // Another of the same name was made in the middle of a renewal.
      const isFirst = this.#queue.get(hold.name)?.condition.kind !== "warm";
      if (isFirst) this.#adopt(hold, now);
      else await holds.release(hold);
    }
    this.#isOpen = true;
    this.#look();
    for (const entry of this.#queue.entries) if (entry.sources.size === 0) void this.#dropListed(entry);
  }

  /** Has an image fetched and kept for this source. Throws `invalid` for what is no reference, `exhausted` for too many. */
  want(reference: string, source: Source, want: Want): void {
    const name = nameOf(reference);
    if (!this.#queue.want(name, source, want, this.#clock.now()))
      throw new PullError("exhausted", "no more images can be wanted on this node");
    this.#look();
  }

  unwant(reference: string, source: Source): void {
    const name = nameOf(reference);
    this.#queue.unwant(name, source, this.#clock.now());
    const entry = this.#queue.get(name);
    if (entry?.sources.size === 0) {
      this.#running.get(name)?.abort.abort();
      void this.#dropListed(entry);
    }
    this.#look();
  }

  /** Of what somebody has come to use, nothing need be held. */
  async #dropListed({ name }: Entry): Promise<void> {
    const isListed = await this.#options.isListed(name).catch(() => false);
    const entry = this.#queue.get(name);
    const isIdle =
      entry?.condition.kind === "warm" && entry.busySinceMs === undefined && entry.sources.size === 0;
    if (isListed && isIdle && !this.#isClosed) this.#run(entry, () => this.#drop(entry, "listed"));
  }

  /** Has one that failed, or is to be looked at later, tried now; where that goes on already, once more if it is to be anew. */
  hasten(reference: string, isAnew = false): void {
    const [name, now] = [nameOf(reference), this.#clock.now()];
    if (isAnew) this.#queue.renew(name, now);
    else this.#queue.hasten(name, now);
    this.#look();
  }

  /** Has exactly these wanted by a source. What is refused is left out, and returned with why. */
  replace(source: Source, references: readonly string[], want: Want): Refused {
    const wanted = new Set(namesOf(references));
    // First, since it makes room.
    for (const { name, sources } of this.#queue.entries)
      if (sources.has(source) && !wanted.has(name)) this.unwant(name, source);
    const refused = new Map<string, PullError>();
    for (const reference of references) {
      try {
        this.want(reference, source, want);
      } catch (error) {
        refused.set(reference, PullError.from(error));
      }
    }
    return refused;
  }

  /** Ends what goes on; what is warm stays, for the next process or until it ends by itself. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#timer?.[Symbol.dispose]();
    this.#diskTimer?.[Symbol.dispose]();
    for (const { abort } of this.#running.values()) abort.abort();
    await Promise.all(Array.from(this.#running.values(), ({ over }) => over));
  }

  #adopt(hold: Hold, nowMs: number): void {
    const wanted = this.#queue.get(hold.name);
    const condition: Condition = { kind: "warm", dueMs: nowMs, sinceMs: nowMs, hold };
    if (wanted) this.#queue.end(hold.name, condition);
    else this.#queue.found(hold, nowMs, nowMs);
  }

  /** Once for all that is said in this turn. */
  #look(): void {
    if (this.#isLookDue) return;
    this.#isLookDue = true;
    setImmediate(() => {
      this.#isLookDue = false;
      this.#lookNow();
    });
  }

  /** Begins what is due, lets go what is stale, and comes back when more is. */
  #lookNow(): void {
    if (!this.#isOpen || this.#isClosed) return;
    const { limits, events } = this.#options;
    const now = this.#clock.now();
    for (const entry of this.#queue.stale(limits.keepMs, now))
      this.#run(entry, () => this.#drop(entry, "unwanted"));
    for (const entry of this.#queue.late(now)) this.#giveUp(entry);
    for (const { name } of this.#queue.past(limits.keepMs, now)) this.#queue.forget(name);
    if (!this.#isFull)
      for (const entry of this.#queue.due(now))
        if (this.#hasPlace(entry)) this.#run(entry, async (signal) => await this.#warm(entry, signal));
    this.#timer?.[Symbol.dispose]();
    // What is due by now waits for a place, and so for the end of what runs, or for the disk.
    const next = this.#queue.nextMs(limits.keepMs, now);
    this.#timer = next === undefined ? undefined : this.#clock.at(next, () => this.#look());
    this.#watchDisk();
    events.changed(this.#queue.entries);
  }

  /** The images of a pod do not wait for those of a list. */
  #hasPlace({ isUrgent }: Entry): boolean {
    const { concurrentMax } = this.#options.limits;
    return this.#running.size < (isUrgent ? Math.max(concurrentMax, urgentMax) : concurrentMax);
  }

  #run({ name }: Entry, work: (signal: AbortSignal) => Promise<void>): void {
    const abort = new AbortController();
    this.#queue.begin(name, this.#clock.now());
    const over = work(abort.signal)
      .catch((error: unknown) => this.#failed(name, PullError.from(error)))
      .finally(() => {
        this.#running.delete(name);
        this.#look();
      });
    this.#running.set(name, { abort, over });
  }

  async #warm({ name, condition, sources }: Entry, signal: AbortSignal): Promise<void> {
    const { holds, fetch, limits, events } = this.#options;
    const began = performance.now();
    const former = condition.kind === "warm" ? condition.hold : undefined;
    // Whatever the registry says, or does not: what is here is not to go meanwhile.
    const kept = former && (await holds.renew(former, this.#lifeMs));
    if (kept && condition.kind === "warm") this.#queue.update(name, { ...condition, hold: kept });
    // Its hold has ended meanwhile: whatever comes of this, it is not warm any more.
    else if (former) this.#queue.update(name, { kind: "wanted", dueMs: this.#clock.now() });
    const wanted = { isKnown: kept !== undefined, sources: [...sources.keys()] };
    await using fetched = await fetch(name, wanted, signal);
    const { failure, held } = fetched;
    if (failure) throw failure;
    const isFirst = condition.kind !== "warm" && fetched.registered !== undefined;
    const isNew = held === undefined ? isFirst : kept?.target !== held.target;
    const hold = held && (await holds.make(name, held, this.#lifeMs));
    if (kept) await holds.release(kept);
    const now = this.#clock.now();
    const sinceMs = condition.kind === "warm" && !isNew ? condition.sinceMs : now;
    const dueMs = now + this.#jitter(limits.refreshMs);
    this.#queue.end(name, { kind: "warm", dueMs, sinceMs, hold, listed: fetched.target });
    events.done(name, { isNew, seconds: (performance.now() - began) / 1000 });
  }

  #failed(name: string, error: PullError): void {
    const entry = this.#queue.get(name);
    if (entry === undefined) return;
    const { condition, trouble } = entry;
    const now = this.#clock.now();
    if (error.code === "cancelled" || this.#isClosed) {
      this.#queue.breakOff(name);
      return;
    }
    const before = condition.kind === "failed" ? condition.failure.times : (trouble?.times ?? 0);
    const { code, message } = error;
    const isTemporary = error.temporary || code === "unavailable" || code === "slow" || entry.isUrgent;
    const failure = { code, message, isTemporary, times: before + 1 };
    const dueMs = now + this.#jitter(this.#pauseMs(failure));
    if (condition.kind === "warm") this.#queue.end(name, { ...condition, dueMs }, failure);
    else this.#queue.end(name, { kind: "failed", dueMs, failure });
    this.#options.events.done(name, failure);
  }

  /** Until somebody asks for it anew. */
  #giveUp({ name, condition }: Entry): void {
    const before = condition.kind === "failed" ? condition.failure : undefined;
    const failure: Failure = {
      code: "slow",
      message: before ? `not here by its deadline: ${before.message}` : "not here by its deadline",
      isTemporary: false,
      times: before?.times ?? 0,
    };
    this.#queue.update(name, { kind: "failed", dueMs: Number.POSITIVE_INFINITY, failure });
    this.#running.get(name)?.abort.abort();
    this.#options.events.done(name, failure);
  }

  async #drop({ name, condition }: Entry, why: "unwanted" | "listed" | "disk"): Promise<void> {
    const { holds, limits, events } = this.#options;
    const now = this.#clock.now();
    if (condition.kind === "warm" && condition.hold) await holds.release(condition.hold);
    // Somebody may have come to want it meanwhile.
    const dueMs = why === "disk" ? now + this.#jitter(limits.refreshMs) : now;
    this.#queue.end(name, { kind: "wanted", dueMs });
    events.dropped(name, why);
  }

  /** What is to be tried again without a change of anybody's soon is, and everything else with the next refresh. */
  #pauseMs({ isTemporary, times }: Failure): number {
    const { refreshMs } = this.#options.limits;
    if (!isTemporary) return refreshMs;
    return Math.min(backOffMs.most, refreshMs, backOffMs.first * 2 ** Math.min(times - 1, 20));
  }

  /** Not all nodes of a fleet at once. */
  #jitter(ms: number): number {
    return ms * (0.8 + 0.4 * this.#clock.random());
  }

  /** Longer than it takes to be looked at again, even where that fails a few times. */
  get #lifeMs(): number {
    const { keepMs, refreshMs } = this.#options.limits;
    return keepMs + 3 * refreshMs;
  }

  #watchDisk(): void {
    const isOfInterest = this.#isFull || this.#queue.entries.length > 0;
    if (!isOfInterest || this.#diskTimer) return;
    this.#diskTimer = this.#clock.at(this.#clock.now() + diskEveryMs, () => {
      void this.#checkDisk().finally(() => {
        this.#diskTimer = undefined;
        this.#look();
      });
    });
  }

  /** Where the disk runs full, nothing is fetched any more, and what is warm is let go, one a time, unwanted ones first. */
  async #checkDisk(): Promise<void> {
    this.#isFull = await this.#options.isFull().catch(() => false);
    if (!this.#isFull || this.#isClosed) return;
    for (const { abort } of this.#running.values()) abort.abort();
    const warm = this.#queue.entries.filter(
      ({ condition, busySinceMs }) =>
        condition.kind === "warm" && condition.hold !== undefined && busySinceMs === undefined,
    );
    const [first] = warm.sort((one, other) => worth(one) - worth(other));
    if (first) this.#run(first, () => this.#drop(first, "disk"));
  }
}

/** Of a warm image: what nobody wants goes first, and then what has been here longest. */
function worth({ condition, sources }: Entry): number {
  const sinceMs = condition.kind === "warm" ? condition.sinceMs : 0;
  return sources.size === 0 ? sinceMs - 2 ** 52 : sinceMs;
}
