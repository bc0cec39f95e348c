// What awaited pulls are at, and who has to keep back meanwhile: requests and unpacking of pulls ahead of need.
//
// A pull that somebody waits for has the network to itself while it asks or downloads, and while its unpacking keeps all
// cores busy; in that case unpacking ahead of need pauses as well, and else the kernel finds out what is left of the cores
// (see layer/pool.ts). Requests that are under way when it comes are broken off, since a connection that is only not read
// from goes on filling for a while; and nothing goes on before it has been over for a moment, since it may only be on its
// way from one step to the next, or from one image of a pod to another.

import type { Demand } from "../demand.ts";
import { abortError, throwIfAborted } from "../errors.ts";

/** `asking` is what else keeps a pull from its answer: questions to the registry, and registration. */
export type Claim = "asking" | "downloads" | "layers";

/** How long nobody takes precedence any more before others go on. */
const lingerMs = 250;

export interface PrecedenceEvents {
  /** Those who kept back may go on. */
  readonly given: () => void;
  /** What is awaited keeps all cores busy, or no longer. */
  readonly cores: (areTaken: boolean) => void;
}

export class Precedence {
  readonly #cores: number;
  readonly #events: PrecedenceEvents;
  readonly #claims: Record<Claim, number> = { asking: 0, downloads: 0, layers: 0 };
  readonly #requests = new Set<AbortController>();
  readonly #waiting = new Set<() => void>();
  #isTaken = false;
  #arePaused = false;
  #lingering: NodeJS.Timeout | undefined;

  constructor(cores: number, events: PrecedenceEvents) {
    this.#cores = cores;
    this.#events = events;
  }

  /** Whether pulls ahead of need have to keep back. */
  get isTaken(): boolean {
    return this.#isTaken;
  }

  /** Somebody is at this until it is disposed of, which counts as soon as it is awaited. */
  claim(what: Claim, demand: Demand): Disposable {
    let counted = 0;
    const following = demand.follow(() => {
      counted = 1;
      this.#claims[what] += 1;
      this.#take();
    });
    return {
      [Symbol.dispose]: () => {
        following[Symbol.dispose]();
        this.#claims[what] -= counted;
        if (counted > 0) this.#linger();
        counted = 0;
      },
    };
  }

  /** How many of these may be at something now: all of what is awaited. */
  limitOf(demand: Demand, max: number): number {
    if (demand.isAwaited) return Number.POSITIVE_INFINITY;
    return this.isTaken ? 0 : max;
  }

  /** A request, until it is disposed of; the signal is aborted when it is to be broken off for somebody else's. */
  request(demand: Demand): { readonly signal: AbortSignal } & Disposable {
    const abort = new AbortController();
    if (this.limitOf(demand, 1) === 0) abort.abort();
    else this.#requests.add(abort);
    const leave = (): void => void this.#requests.delete(abort);
    const following = demand.follow(leave);
    return {
      signal: abort.signal,
      [Symbol.dispose]: () => {
        following[Symbol.dispose]();
        leave();
      },
    };
  }

  /** Waits until this need not keep back. */
  async untilGiven(demand: Demand, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal);
    if (this.limitOf(demand, 1) > 0) return;
    await new Promise<void>((resolve, reject) => {
      const end = (): void => {
        this.#waiting.delete(end);
        signal.removeEventListener("abort", leave);
        following[Symbol.dispose]();
        resolve();
      };
      const leave = (): void => {
        this.#waiting.delete(end);
        following[Symbol.dispose]();
        reject(abortError(signal));
      };
      this.#waiting.add(end);
      signal.addEventListener("abort", leave, { once: true });
      const following = demand.follow(end);
    });
  }

  /** A layer that is unpacked takes two threads. */
  get #areCoresBusy(): boolean {
    return 2 * this.#claims.layers >= this.#cores;
  }

  get #isBusy(): boolean {
    return this.#claims.asking > 0 || this.#claims.downloads > 0 || this.#areCoresBusy;
  }

  #take(): void {
    if (this.#areCoresBusy && !this.#arePaused) {
      this.#arePaused = true;
      this.#events.cores(true);
    }
    if (!this.#isBusy || this.#isTaken) return;
    this.#isTaken = true;
    // Whoever has come to be awaited by the same word has left by then.
    queueMicrotask(() => this.#breakOff());
  }

  #breakOff(): void {
    if (!this.#isTaken) return;
    const requests = [...this.#requests];
    this.#requests.clear();
    for (const request of requests) request.abort();
  }

  /** What is over by now may begin again in a moment. */
  #linger(): void {
    const isOver = (this.#isTaken && !this.#isBusy) || (this.#arePaused && !this.#areCoresBusy);
    if (!isOver) return;
    clearTimeout(this.#lingering);
    this.#lingering = setTimeout(() => this.#giveWay(), lingerMs).unref();
  }

  #giveWay(): void {
    if (this.#arePaused && !this.#areCoresBusy) {
      this.#arePaused = false;
      this.#events.cores(false);
    }
    if (!this.#isTaken || this.#isBusy) return;
    this.#isTaken = false;
    for (const end of this.#waiting) end();
    this.#events.given();
  }
}
