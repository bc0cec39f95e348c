// Permits: one queue in which a waiter counts against several limits at once (node, image, host).
//
// A permit is granted when every one of its limits has room; among those that could be granted, the most urgent goes
// first and then the one that waited longest. A waiter whose limit is full never holds up another.

import { abortError, throwIfAborted } from "../errors.ts";
import { enqueue, reorder, type Urgency } from "./urgency.ts";

/** A limit is a name, under which permits are counted, and the most of them that may be out at once, which may change. */
export interface Limit {
  readonly name: string;
  readonly max: number;
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
}

export class Permits {
  readonly #out = new Map<string, number>();
  /** Ordered by urgency, then by arrival. */
  readonly #waiters: Waiter[] = [];

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
  async acquire(limits: readonly Limit[], urgency: Urgency, signal: AbortSignal): Promise<Permit> {
    throwIfAborted(signal);
    return await new Promise<Permit>((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
        reject(abortError(signal));
      };
      const grant = (permit: Permit): void => {
        signal.removeEventListener("abort", onAbort);
        resolve(permit);
      };
      const waiter: Waiter = { limits, urgency, grant };
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
      if (waiter.limits.every((limit) => this.count(limit.name) < limit.max)) {
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
}
