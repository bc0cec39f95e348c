// Permits: one queue in which a waiter counts against several limits at once (node, image, host).
//
// A permit is granted when every one of its limits has room; among those that could be granted, the most urgent goes
// first and then the one that waited longest. A waiter whose limit is full never holds up another.

import { abortError, throwIfAborted } from "../errors.ts";
import { Waits } from "../trace.ts";
import { enqueue, reorder, type Urgency } from "./urgency.ts";

/** A name, under which permits are counted, and the most of them that may be out at once, which may change. */
export interface Limit {
  readonly name: string;
  /** What whoever waits for it is noted to have waited for; its name, where nothing else is said. */
  readonly key?: string;
  readonly max: number;
}

/** What those who wait come to, by what they are noted to wait for. */
export interface QueueEvents {
  /** One of them has waited for so long, and does not any more. */
  waited(key: string, seconds: number): void;
  /** So many of them wait now. */
  queued(key: string, count: number): void;
}

/** What was granted, until it is disposed of. */
export interface Permit extends Disposable {
  /** Gives up the count under one of its names ahead of the rest, for good. */
  lend(name: string): void;
}

interface Waiter {
  readonly limits: readonly Limit[];
  readonly urgency: Urgency;
  readonly grant: (permit: Permit) => void;
  readonly waits: Waits;
  /** The first of its limits that is full, since when. */
  full: { readonly key: string; readonly sinceMs: number } | undefined;
}

export class Permits {
  readonly #out = new Map<string, number>();
  /** Ordered by urgency, then by arrival. */
  readonly #waiters: Waiter[] = [];
  readonly #queued = new Map<string, number>();
  readonly #events: QueueEvents | undefined;

  constructor(events?: QueueEvents) {
    this.#events = events;
  }

  /** Most permits that are out under any one of these names. */
  most(isMeant: (name: string) => boolean): number {
    return [...this.#out].reduce((most, [name, count]) => (isMeant(name) ? Math.max(most, count) : most), 0);
  }

  /** Permits that are out under this name. */
  count(name: string): number {
    return this.#out.get(name) ?? 0;
  }

  /** Whether anybody waits for this name, and for nothing else. */
  isWanted(name: string): boolean {
    return this.#waiters.some(({ limits }) =>
      limits.every((limit) => limit.name === name || this.count(limit.name) < limit.max),
    );
  }

  /** Waits for a permit; rejects with `cancelled` (or the signal's PullError) when the signal is aborted first. */
  async acquire(
    limits: readonly Limit[],
    urgency: Urgency,
    signal: AbortSignal,
    waits = new Waits(),
  ): Promise<Permit> {
    throwIfAborted(signal);
    return await new Promise<Permit>((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
        this.#note(waiter, undefined);
        reject(abortError(signal));
      };
      const grant = (permit: Permit): void => {
        signal.removeEventListener("abort", onAbort);
        resolve(permit);
      };
      const waiter: Waiter = { limits, urgency, grant, waits, full: undefined };
      signal.addEventListener("abort", onAbort, { once: true });
      enqueue(this.#waiters, waiter);
      this.#grantWhatFits();
    });
  }

  /** Looks at the waiters again where an urgency has changed, or the most of a limit has grown. */
  review(): void {
    reorder(this.#waiters);
    this.#grantWhatFits();
  }

  #grantWhatFits(): void {
    for (let index = 0; index < this.#waiters.length; ) {
      const waiter = this.#waiters[index];
      if (waiter === undefined) return;
      const full = waiter.limits.find((limit) => this.count(limit.name) >= limit.max);
      this.#note(waiter, full && (full.key ?? full.name));
      if (full === undefined) {
        this.#waiters.splice(index, 1);
        waiter.grant(this.#take(waiter.limits));
      } else {
        index += 1;
      }
    }
  }

  #take(limits: readonly Limit[]): Permit {
    const held = new Set(limits.map(({ name }) => name));
    for (const name of held) this.#out.set(name, this.count(name) + 1);
    const giveBack = (names: Iterable<string>): void => {
      for (const name of names) {
        if (!held.delete(name)) continue;
        const left = this.count(name) - 1;
        if (left === 0) this.#out.delete(name);
        else this.#out.set(name, left);
      }
      this.#grantWhatFits();
    };
    return {
      lend: (name) => giveBack([name]),
      [Symbol.dispose]: () => giveBack([...held]),
    };
  }

  /** Counts what was waited for until now, and remembers what is waited for from now on. */
  #note(waiter: Waiter, key: string | undefined): void {
    if (waiter.full?.key === key) return;
    const now = performance.now();
    if (waiter.full) {
      const waitedMs = now - waiter.full.sinceMs;
      waiter.waits.add(waiter.full.key, waitedMs);
      this.#count(waiter.full.key, -1);
      this.#events?.waited(waiter.full.key, waitedMs / 1000);
    }
    if (key !== undefined) this.#count(key, 1);
    waiter.full = key === undefined ? undefined : { key, sinceMs: now };
  }

  #count(key: string, change: number): void {
    const count = (this.#queued.get(key) ?? 0) + change;
    if (count === 0) this.#queued.delete(key);
    else this.#queued.set(key, count);
    this.#events?.queued(key, count);
  }
}
