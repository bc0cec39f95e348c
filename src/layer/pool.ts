// The layer room put together: a pool of worker threads that unpack, behind the face of layer.ts.
//
// Workers are started at once and kept, so that no pull waits for one to come up. A worker is never terminated in the
// middle of a layer: it is asked through shared memory to stop, and does so between two entries.

import { Piscina } from "piscina";
import { abortError, PullError, throwIfAborted } from "../errors.ts";
import { loadNative } from "../native.ts";
import { inheritNative, inheritPortable } from "./inherit.ts";
import type { ImplicitDirectories, LayerEngine, LayerJob, UnpackedLayer } from "./layer.ts";
import { type Outcome, phases, type Task } from "./task.ts";

export interface EngineOptions {
  readonly engine: "native" | "portable";
  /** Layers that may be unpacked at once. */
  readonly threads: number;
  /** The built worker.js; a worker cannot be TypeScript. */
  readonly workerFile: URL;
}

/** Throws `unsupported` when the native engine is asked for and its addon cannot be loaded. */
export function createEngine(options: EngineOptions): LayerEngine {
  return new WorkerEngine(options);
}

class WorkerEngine implements LayerEngine {
  readonly name: "native" | "portable";
  readonly #pool: Piscina<Task, Outcome>;
  readonly #inherit: LayerEngine["inherit"];
  readonly #running = new Set<Promise<Outcome>>();
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
    this.#pool = new Piscina({
      filename: options.workerFile.href,
      minThreads: options.threads,
      maxThreads: options.threads,
      concurrentTasksPerWorker: 1,
    });
  }

  async unpack(job: LayerJob, signal: AbortSignal): Promise<UnpackedLayer> {
    throwIfAborted(signal);
    if (this.#isClosed) throw new PullError("cancelled", "the layer engine is closed");
    const task = { engine: this.name, job, phase: new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT) };
    const run = this.#run(task);
    this.#running.add(run);
    run.finally(() => this.#running.delete(run)).catch(() => {});
    const outcome = await whileWaiting(run, task.phase, signal);
    if (outcome.kind === "unpacked") return outcome.layer;
    throwIfAborted(signal);
    throw new PullError(outcome.code, outcome.message);
  }

  async #run(task: Task): Promise<Outcome> {
    try {
      return await this.#pool.run(task);
    } catch (error) {
      // The worker itself failed.
      throw PullError.from(error);
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
  }
}

/**
 * A task's outcome. When the signal is aborted a task that runs is asked to stop and still waited for, since it writes
 * until then; one that has not begun will not, and is left at once.
 */
async function whileWaiting(
  run: Promise<Outcome>,
  phase: SharedArrayBuffer,
  signal: AbortSignal,
): Promise<Outcome> {
  const cell = new Int32Array(phase);
  return await new Promise<Outcome>((resolve, reject) => {
    const onAbort = (): void => {
      if (Atomics.exchange(cell, 0, phases.cancelled) === phases.waiting) reject(abortError(signal));
    };
    signal.addEventListener("abort", onAbort, { once: true });
    run.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
