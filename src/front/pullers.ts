// The puller that serves, and those before and after it: started again when they end, replaced without a gap.
//
// At most one serves and one is starting; any number of former ones may still be ending what they were at. A puller
// that ends unasked is started again, at once the first time and with growing pauses while it keeps ending.

import { setTimeout as sleep } from "node:timers/promises";
import type { Forward } from "../cri/forward.ts";
import type { MetricValues } from "../metrics.ts";
import { Puller, type PullerOptions } from "./puller.ts";

export interface PullersOptions {
  readonly start: (number: number) => Omit<PullerOptions, "changed">;
  /** Told of each change of any puller's state. */
  readonly changed: (puller: Puller) => void;
}

/** Pauses before a puller is started again; one that lived for long enough has the first once more. */
const pauseMs = { first: 100, max: 10_000, healthyAfter: 30_000 };
/** What a puller that leaves still has to clear up, it clears up within this time or never. */
const letGoMsMax = 10_000;

export class Pullers {
  readonly #options: PullersOptions;
  readonly #all = new Set<Puller>();
  #serving: Puller | undefined;
  #starting: Puller | undefined;
  #replacement: ((outcome: "serving" | "ended") => void) | undefined;
  #count = 0;
  #pauseMs = pauseMs.first;
  #timer: NodeJS.Timeout | undefined;
  #isStopped = false;
  #settle = (): void => {};
  readonly #first = new Promise<void>((resolve) => {
    this.#settle = resolve;
  });

  constructor(options: PullersOptions) {
    this.#options = options;
  }

  /** Starts the first one. */
  start(): void {
    this.#start();
  }

  /** The one to ask now, if there is one. */
  get serving(): Puller | undefined {
    return this.#serving;
  }

  /** Every process that is there, the newest last. */
  get all(): readonly Puller[] {
    return [...this.#all];
  }

  /**
   * Starts another one and has it take over once it serves; the former has so long to end what it is at. Says false,
   * and changes nothing, when the new one ends before it serves.
   */
  async replace(drainMs: number): Promise<boolean> {
    if (this.#starting) return false;
    const outcome = await new Promise<"serving" | "ended">((resolve) => {
      const former = this.#serving;
      this.#replacement = (how) => {
        this.#replacement = undefined;
        resolve(how);
        if (how === "serving") void former?.drain(drainMs);
      };
      this.#start();
    });
    return outcome === "serving";
  }

  /** Waits until the first one serves or has ended, at most this long. */
  async settled(timeoutMs: number): Promise<void> {
    await Promise.race([this.#first, sleep(timeoutMs, undefined, { ref: false })]);
  }

  /**
   * For whoever lost a call by this one: waits until the process is gone if it was asked to leave, so that whoever is
   * asked next goes on with what it had fetched. Waits for a bounded time only.
   */
  async letGo(lost: Forward): Promise<void> {
    const puller = this.all.find(({ forward }) => forward === lost);
    if (!puller?.isLeaving) return;
    await Promise.race([puller.over, sleep(letGoMsMax, undefined, { ref: false })]);
  }

  /** Of each process, the newest first. */
  async metrics(): Promise<readonly (readonly MetricValues[])[]> {
    return await Promise.all(this.all.toReversed().map(async (puller) => await puller.metrics()));
  }

  /** Ends all of them for good, and starts none any more. */
  async drain(timeoutMs: number): Promise<void> {
    this.#isStopped = true;
    clearTimeout(this.#timer);
    this.#serving = undefined;
    await Promise.all(this.all.map(async (puller) => await puller.drain(timeoutMs)));
  }

  #start(): void {
    clearTimeout(this.#timer);
    this.#count += 1;
    const changed = (puller: Puller): void => this.#changed(puller);
    this.#starting = new Puller({ ...this.#options.start(this.#count), changed });
    this.#all.add(this.#starting);
  }

  #changed(puller: Puller): void {
    const { kind } = puller.state;
    this.#settle();
    if (kind === "serving" && puller === this.#starting && !this.#isStopped) {
      this.#serving = puller;
      this.#starting = undefined;
      this.#replacement?.("serving");
    }
    if (kind === "ended") this.#ended(puller);
    this.#options.changed(puller);
  }

  #ended(puller: Puller): void {
    this.#all.delete(puller);
    // Of a former one nobody is in need.
    if (puller !== this.#serving && puller !== this.#starting) return;
    if (puller === this.#serving) this.#serving = undefined;
    if (puller === this.#starting) {
      this.#starting = undefined;
      this.#replacement?.("ended");
    }
    // One that is starting serves next, or is in its turn started again.
    if (this.#serving || this.#starting || this.#isStopped) return;
    this.#startLater(performance.now() - puller.startedAt);
  }

  #startLater(livedMs: number): void {
    if (livedMs >= pauseMs.healthyAfter) this.#pauseMs = pauseMs.first;
    this.#timer = setTimeout(() => this.#start(), this.#pauseMs);
    this.#pauseMs = Math.min(2 * this.#pauseMs, pauseMs.max);
  }
}
