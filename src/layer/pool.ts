// The layer room put together: a pool of worker threads that unpack, behind the face of layer.ts.
//
// Workers are started at once and kept, so that no pull waits for one to come up. A layer holds a slot, and for each slot
// there are two workers, which a large layer takes both. Layers that nobody waits for have slots and workers of their own,
// which are started when they are needed and never serve anybody else. A worker is never terminated in the middle of a
// layer: it is asked through shared memory to stop, and does so between two entries.

import { once } from "node:events";
import { Piscina } from "piscina";
import { Demand } from "../demand.ts";
import { abortError, PullError, throwIfAborted } from "../errors.ts";
import { loadNative } from "../native.ts";
import { sharedNowMs, type ThreadUsage } from "../usage.ts";
import { inheritNative, inheritPortable } from "./inherit.ts";
import type { ImplicitDirectories, LayerEngine, LayerJob, UnpackedLayer } from "./layer.ts";
import { makeRing, type Ring } from "./ring.ts";
import {
  type Failed,
  type Idling,
  idlingCells,
  type Loaded,
  makeIdling,
  type Outcome,
  type Part,
  type Task,
} from "./task.ts";
import type { WholeLayer } from "./unpack.ts";

export interface EngineOptions {
  readonly engine: "native" | "portable";
  /** Layers that may be unpacked at once. */
  readonly threads: number;
  /** worker.ts as config/build.ts makes it; a worker cannot be TypeScript. */
  readonly workerFile: URL;
}

/** A blob below this is unpacked before a second worker would be of use. */
const twoLanesBytesMin = 1024 * 1024;
/**
 * Rings are kept for so long after the last layer. The memory of one is only given back once every thread that has seen it
 * has collected its garbage, which takes a while: rings that are let go between two layers pile up.
 */
const ringsKeptMs = 30_000;
/** Workers of layers that nobody waits for, after the last of these. */
const idleWorkersKeptMs = 30_000;
/** How long a worker that does not come to be loaded is waited for in the end. */
const loadMsMax = 5_000;

/** Layers at once, and the workers for them. */
interface Crew {
  readonly slots: Slots;
  readonly pool: Piscina<Task, Outcome>;
  /** Threads that are loaded to their end. */
  readonly loaded: ReadonlySet<number>;
}

/** Throws `unsupported` when the native engine is asked for and its addon cannot be loaded. */
export function createEngine(options: EngineOptions): LayerEngine {
  return new WorkerEngine(options);
}

class WorkerEngine implements LayerEngine {
  readonly name: "native" | "portable";
  readonly #options: EngineOptions;
  readonly #crew: Crew;
  /** See {@link Idling.paused}. */
  readonly #paused = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
  /** For layers that nobody waits for. */
  #idleCrew: Crew | undefined;
  readonly #inherit: LayerEngine["inherit"];
  readonly #running = new Set<Promise<unknown>>();
  /** Of layers that are done, for the next ones. */
  #rings: Ring[] = [];
  /** Lets them go. */
  #idle: NodeJS.Timeout | undefined;
  #isClosed = false;

  constructor(options: EngineOptions) {
    this.name = options.engine;
    this.#options = options;
    this.#inherit = inheritPortable;
    if (options.engine === "native") {
      const native = loadNative();
      if (native.kind === "missing") throw new PullError("unsupported", native.reason);
      this.#inherit = (upper, lowers, directories, signal) =>
        inheritNative(native.binding, upper, lowers, directories, signal);
    }
    this.#crew = makeCrew(options, true);
  }

  async unpack(job: LayerJob, signal: AbortSignal, demand = new Demand(true)): Promise<UnpackedLayer> {
    throwIfAborted(signal);
    const crew = demand.isAwaited ? this.#crew : (this.#idleCrew ??= makeCrew(this.#options, false));
    const { slots } = crew;
    // Nothing is awaited when there is a slot, so that the workers begin before the caller goes on.
    if (!slots.take()) await slots.wait(signal);
    if (this.#isEnding()) {
      slots.release();
      throw new PullError("cancelled", "the layer engine is closed");
    }
    const run = this.#unpack(job, crew, demand, signal).finally(() => slots.release());
    clearTimeout(this.#idle);
    this.#running.add(run);
    try {
      return await run;
    } finally {
      this.#running.delete(run);
      if (this.#running.size === 0) this.#idle = setTimeout(() => (this.#rings = []), ringsKeptMs).unref();
    }
  }

  async inherit(
    upper: string,
    lowers: readonly string[],
    directories: ImplicitDirectories,
    signal: AbortSignal,
  ): Promise<void> {
    await this.#inherit(upper, lowers, directories, signal);
  }

  async sync(directory: string): Promise<void> {
    const native = loadNative();
    if (native.kind === "missing") throw new PullError("unsupported", native.reason);
    const result = await native.binding.syncFileSystem(directory);
    if (result < 0) throw new PullError("internal", `syncfs of ${directory} failed: errno ${-result}`);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    // The pool would wait for so long only, and then end its workers in the middle of a layer.
    await Promise.allSettled(this.#running);
    await Promise.all([this.#crew, ...(this.#idleCrew ? [this.#idleCrew] : [])].map(dismiss));
    // Set by the last of the layers that were waited for.
    clearTimeout(this.#idle);
  }

  pause(isPaused: boolean): void {
    const cell = new Int32Array(this.#paused);
    Atomics.store(cell, 0, isPaused ? 1 : 0);
    if (!isPaused) Atomics.notify(cell, 0);
  }

  /** Asked again after a wait. */
  #isEnding(): boolean {
    return this.#isClosed;
  }

  async #unpack(job: LayerJob, crew: Crew, demand: Demand, signal: AbortSignal): Promise<UnpackedLayer> {
    const began = sharedNowMs();
    const cancelled = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
    const ring = this.#ringFor(job);
    const idle = crew === this.#idleCrew;
    const tasks = partsOf(this.name, ring).map(
      (part): Task => ({ part, job, cancelled, idling: idle ? makeIdling(this.#paused) : undefined }),
    );
    const idlings = tasks.flatMap(({ idling }) => idling ?? []);
    using _raised = demand.follow(() => wake(idlings));
    const cancel = (): void => {
      Atomics.store(new Int32Array(cancelled), 0, 1);
      // On a busy machine it would not come to see that.
      wake(idlings);
    };
    signal.addEventListener("abort", cancel, { once: true });
    if (signal.aborted) cancel();
    try {
      const outcomes = await Promise.all(tasks.map((task) => this.#run(crew, task, cancel)));
      return layerOf(outcomes, began);
    } catch (error) {
      throwIfAborted(signal);
      throw error;
    } finally {
      signal.removeEventListener("abort", cancel);
      if (ring) this.#rings.push(ring);
    }
  }

  #ringFor({ descriptor }: LayerJob): Ring | undefined {
    const isOne = this.name === "portable" || descriptor.size < twoLanesBytesMin;
    return isOne ? undefined : makeRing(this.#rings.pop());
  }

  /** A worker that fails itself is a failed layer; whoever works beside it is told to stop. */
  async #run({ pool }: Crew, task: Task, cancel: () => void): Promise<Outcome> {
    try {
      const outcome = await pool.run(task);
      // The first lane may wait for bytes of a slow registry, and not notice that the second one has gone.
      if (task.part.kind === "apply" && outcome.kind === "failed") cancel();
      return outcome;
    } catch (error) {
      cancel();
      const { code, message } = PullError.from(error);
      return { kind: "failed", code, message };
    }
  }
}

function makeCrew({ engine, threads, workerFile }: EngineOptions, isKept: boolean): Crew {
  const workers = engine === "native" ? 2 * threads : threads;
  const pool = new Piscina<Task, Outcome>({
    filename: workerFile.href,
    minThreads: isKept ? workers : 0,
    maxThreads: workers,
    idleTimeout: isKept ? 0 : idleWorkersKeptMs,
    concurrentTasksPerWorker: 1,
  });
  const loaded = new Set<number>();
  pool.on("message", (message: Loaded) => void loaded.add(message.loaded));
  return { slots: new Slots(threads), pool, loaded };
}

/** Node dies of a thread that is ended while it still loads a module by require(): assertions of its ModuleWrap fail. */
async function dismiss({ pool, loaded }: Crew): Promise<void> {
  const patience = AbortSignal.timeout(loadMsMax);
  const isLoading = (): boolean => pool.threads.some(({ threadId }) => threadId > 0 && !loaded.has(threadId));
  while (isLoading() && !patience.aborted) await once(pool, "message", { signal: patience }).catch(() => {});
  await pool.close();
}

/** Somebody waits for the layer: its workers, where they have begun, take their share of the cores from now on. */
function wake(all: readonly Idling[]): void {
  const native = loadNative();
  for (const idling of all) {
    const cells = new Int32Array(idling.own);
    Atomics.store(cells, idlingCells.awaited, 1);
    Atomics.notify(new Int32Array(idling.paused), 0);
    const thread = Atomics.load(cells, idlingCells.thread);
    if (thread !== 0 && native.kind === "loaded") native.binding.setIdle(thread, 0);
  }
}

function partsOf(engine: "native" | "portable", ring: Ring | undefined): readonly Part[] {
  if (ring === undefined) return [{ kind: engine }];
  return [
    { kind: "apply", ring },
    { kind: "inflate", ring },
  ];
}

/** What the parts come to. Of two that failed one was only cut off by the other's failure. */
function layerOf(outcomes: readonly Outcome[], began: number): UnpackedLayer {
  const failures = outcomes.filter((outcome): outcome is Failed => outcome.kind === "failed");
  const failure = failures.find(({ code }) => code !== "cancelled") ?? failures[0];
  if (failure) throw new PullError(failure.code, failure.message);
  const { caughtUpAtMs = began, ...layer } = wholeOf(outcomes);
  // Two of them pause side by side.
  const pausedMs = Math.max(...outcomes.map((outcome) => (outcome.kind === "failed" ? 0 : outcome.pausedMs)));
  return { ...layer, elapsedMs: sharedNowMs() - began, caughtUpMs: caughtUpAtMs - began, pausedMs };
}

function wholeOf([first, second]: readonly Outcome[]): WholeLayer {
  if (first?.kind === "unpacked") return first.layer;
  if (first?.kind === "applied" && second?.kind === "inflated") {
    const usage = busierOf(first.layer.usage, second.layer.usage);
    return { ...first.layer, ...second.layer, usage };
  }
  throw new PullError("internal", "the workers did something else");
}

/** The lane that kept the other one waiting. */
function busierOf(one: ThreadUsage | undefined, other: ThreadUsage | undefined): ThreadUsage | undefined {
  if (!one || !other) return undefined;
  return one.onCoreMs + one.queuedMs > other.onCoreMs + other.queuedMs ? one : other;
}

/** So many at once; the others wait in the order in which they came. */
class Slots {
  #free: number;
  #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  /** False when there is none. */
  take(): boolean {
    if (this.#free === 0) return false;
    this.#free -= 1;
    return true;
  }

  /** Resolves with one taken; rejects as soon as the signal is aborted. */
  async wait(signal: AbortSignal): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const take = (): void => {
        signal.removeEventListener("abort", leave);
        resolve();
      };
      const leave = (): void => {
        this.#waiting = this.#waiting.filter((one) => one !== take);
        reject(abortError(signal));
      };
      this.#waiting.push(take);
      signal.addEventListener("abort", leave, { once: true });
    });
  }

  release(): void {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#free += 1;
  }
}
