// The quota of spool space: what blobs on their way may occupy together, and the queue of those that must wait.
//
// A blob's whole size is reserved before its first request, so that whoever has begun can end. The queue goes by
// urgency and then by arrival, and nobody overtakes: a large blob at its head is not starved by small ones behind it.
// Whoever holds a reservation that it could do without offers it; offers are taken up only while somebody waits.

import { abortError, throwIfAborted } from "../errors.ts";
import { enqueue, reorder, type Urgency, valueOf } from "./urgency.ts";

interface Waiter {
  readonly bytes: number;
  readonly urgency: Urgency;
  readonly grant: () => void;
}

interface Offer {
  readonly release: () => void;
  /** Only to somebody more urgent than this. */
  readonly urgency: number;
}

/** What its queue comes to. */
export interface QuotaEvents {
  /** Somebody had to wait for so long, and does not any more. */
  waited(seconds: number): void;
  /** So many wait now. */
  queued(count: number): void;
}

export class Quota {
  readonly #bytesMax: number;
  readonly #events: QuotaEvents | undefined;
  #reservedBytes = 0;
  readonly #waiters: Waiter[] = [];
  readonly #offers = new Set<Offer>();

  constructor(bytesMax: number, events?: QuotaEvents) {
    this.#bytesMax = bytesMax;
    this.#events = events;
  }

  get reservedBytes(): number {
    return this.#reservedBytes;
  }

  /** Whether so many bytes can be had without a wait. */
  hasRoom(bytes: number): boolean {
    return this.#waiters.length === 0 && this.#reservedBytes + bytes <= this.#bytesMax;
  }

  /** Waits for room; the caller sees to it that the bytes are not more than the maximum. */
  async reserve(bytes: number, urgency: Urgency, signal: AbortSignal): Promise<Disposable> {
    throwIfAborted(signal);
    return await new Promise<Disposable>((resolve, reject) => {
      let sinceMs: number | undefined;
      const left = (): void => {
        if (sinceMs === undefined) return;
        this.#events?.queued(this.#waiters.length);
        this.#events?.waited((performance.now() - sinceMs) / 1000);
      };
      const onAbort = (): void => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
        left();
        reject(abortError(signal));
        this.#grantWhatFits();
      };
      const grant = (): void => {
        signal.removeEventListener("abort", onAbort);
        this.#reservedBytes += bytes;
        left();
        resolve(this.#reservation(bytes));
      };
      const waiter: Waiter = { bytes, urgency, grant };
      signal.addEventListener("abort", onAbort, { once: true });
      enqueue(this.#waiters, waiter);
      this.#grantWhatFits();
      if (!this.#waiters.includes(waiter)) return;
      sinceMs = performance.now();
      this.#events?.queued(this.#waiters.length);
    });
  }

  /**
   * Calls `release` once somebody who is more urgent waits for space, or at once if somebody does. Disposing withdraws
   * the offer.
   */
  offer(release: () => void, urgency: number = Number.POSITIVE_INFINITY): Disposable {
    const offer = { release, urgency };
    this.#offers.add(offer);
    this.#takeUpOffers();
    return { [Symbol.dispose]: () => void this.#offers.delete(offer) };
  }

  /** Looks at the waiters again where an urgency has changed. */
  review(): void {
    reorder(this.#waiters);
    this.#grantWhatFits();
  }

  #reservation(bytes: number): Disposable {
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        this.#reservedBytes -= bytes;
        this.#grantWhatFits();
      },
    };
  }

  #grantWhatFits(): void {
    for (let first = this.#waiters[0]; first; first = this.#waiters[0]) {
      if (this.#reservedBytes + first.bytes > this.#bytesMax) {
        this.#takeUpOffers();
        return;
      }
      this.#waiters.shift();
      first.grant();
    }
  }

  #takeUpOffers(): void {
    const [first] = this.#waiters;
    if (first === undefined) return;
    const taken = [...this.#offers].filter(({ urgency }) => valueOf(first.urgency) < urgency);
    for (const offer of taken) this.#offers.delete(offer);
    for (const { release } of taken) release();
  }
}
