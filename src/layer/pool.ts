// The layer room put together: a pool of worker threads that unpack, behind the face of layer.ts.
//
// Workers are started at once and kept, so that no pull waits for one to come up. A layer holds a slot, and for each slot
// there are two workers, which a large layer takes both. A worker is never terminated in the middle of a layer: it is asked
// through shared memory to stop, and does so between two entries.

import { Piscina } from "piscina";
import { abortError, PullError, throwIfAborted } from "../errors.ts";
import { loadNative } from "../native.ts";
import { inheritNative, inheritPortable } from "./inherit.ts";
import type { ImplicitDirectories, LayerEngine, LayerJob, UnpackedLayer } from "./layer.ts";
import { makeRing, type Ring } from "./ring.ts";
import type { Failed, Outcome, Part, Task } from "./task.ts";

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

/** Throws `unsupported` when the native engine is asked for and its addon cannot be loaded. */
export function createEngine(options: EngineOptions): LayerEngine {
  return new WorkerEngine(options);
}

class WorkerEngine implements LayerEngine {
  readonly name: "native" | "portable";
  readonly #pool: Piscina<Task, Outcome>;
  readonly #slots: Slots;
  readonly #inherit: LayerEngine["inherit"];
  readonly #running = new Set<Promise<unknown>>();
  /** Of layers that are done, for the next ones. */
  #rings: Ring[] = [];
  /** Lets them go. */
  #idle: NodeJS.Timeout | undefined;
  #isClosed = false;

  constructor(options: EngineOptions) {
    this.name = options.engine;
    this.#inherit = inheritPortable;
    if (options.engine === "native") {
      const native = loadNative();
      if (native.kind === "missing") throw new PullError("unsupported", native.reason);
      this.#inherit = (upper, lowers, directories, signal) =>
        inheritNative(native.binding, upper, lowers, directories, signal);
    }
    this.#slots = new Slots(options.threads);
    const workers = options.engine === "native" ? 2 * options.threads : options.threads;
    this.#pool = new Piscina({
      filename: options.workerFile.href,
      minThreads: workers,
      maxThreads: workers,
      concurrentTasksPerWorker: 1,
    });
  }

  async unpack(job: LayerJob, signal: AbortSignal): Promise<UnpackedLayer> {
    throwIfAborted(signal);
    // Nothing is awaited when there is a slot, so that the workers begin before the caller goes on.
    if (!this.#slots.take()) await this.#slots.wait(signal);
    if (this.#isEnding()) {
      this.#slots.release();
      throw new PullError("cancelled", "the layer engine is closed");
    }
    const run = this.#unpack(job, signal).finally(() => this.#slots.release());
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
    await this.#pool.close();
    // Set by the last of the layers that were waited for.
    clearTimeout(this.#idle);
  }

  /** Asked again after a wait. */
  #isEnding(): boolean {
    return this.#isClosed;
  }

  async #unpack(job: LayerJob, signal: AbortSignal): Promise<UnpackedLayer> {
    const began = performance.now();
    const cancelled = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
    const cancel = (): void => void Atomics.store(new Int32Array(cancelled), 0, 1);
    signal.addEventListener("abort", cancel, { once: true });
    if (signal.aborted) cancel();
    const ring = this.#ringFor(job);
    try {
      const tasks = partsOf(this.name, ring).map((part) => ({ part, job, cancelled }));
      const outcomes = await Promise.all(tasks.map((task) => this.#run(task, cancel)));
      return layerOf(outcomes, performance.now() - began);
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
  async #run(task: Task, cancel: () => void): Promise<Outcome> {
    try {
      const outcome = await this.#pool.run(task);
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

function partsOf(engine: "native" | "portable", ring: Ring | undefined): readonly Part[] {
  if (ring === undefined) return [{ kind: engine }];
  return [
    { kind: "apply", ring },
    { kind: "inflate", ring },
  ];
}

/** What the parts come to. Of two that failed one was only cut off by the other's failure. */
function layerOf(outcomes: readonly Outcome[], elapsedMs: number): UnpackedLayer {
  const failures = outcomes.filter((outcome): outcome is Failed => outcome.kind === "failed");
  const failure = failures.find(({ code }) => code !== "cancelled") ?? failures[0];
  if (failure) throw new PullError(failure.code, failure.message);
  const [first, second] = outcomes;
  if (first?.kind === "unpacked") return first.layer;
  if (first?.kind === "applied" && second?.kind === "inflated")
    return { ...first.layer, ...second.layer, elapsedMs };
  throw new PullError("internal", "the workers did something else");
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
