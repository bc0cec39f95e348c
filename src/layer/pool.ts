// The layer room put together: a pool of worker threads that unpack, behind the face of layer.ts.
//
// Workers are started at once and kept, so that no pull waits for one to come up. A worker is never terminated in the
// middle of a layer: it is asked through shared memory to stop, and does so between two chunks.

import { Piscina } from "piscina";
import { PullError, throwIfAborted } from "../errors.ts";
import { loadNative } from "../native.ts";
import { inheritNative, inheritPortable } from "./inherit.ts";
import type { ImplicitDirectory, LayerEngine, LayerJob, UnpackedLayer } from "./layer.ts";
import type { Outcome, Task } from "./worker.ts";

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

  constructor(options: EngineOptions) {
    this.name = options.engine;
    this.#inherit = inheritPortable;
    if (options.engine === "native") {
      const native = loadNative();
      if (native.kind === "missing") throw new PullError("unsupported", native.reason);
      this.#inherit = (upper, lowers, directories) =>
        inheritNative(native.binding, upper, lowers, directories);
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
    const cancel = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
    const onAbort = (): void => {
      Atomics.store(new Int32Array(cancel), 0, 1);
    };
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      const outcome = await this.#pool.run({ engine: this.name, job, cancel });
      if (outcome.kind === "unpacked") return outcome.layer;
      throwIfAborted(signal);
      throw new PullError(outcome.code, outcome.message);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  async inherit(
    upper: string,
    lowers: readonly string[],
    directories: readonly ImplicitDirectory[],
  ): Promise<void> {
    await this.#inherit(upper, lowers, directories);
  }

  async close(): Promise<void> {
    await this.#pool.close();
  }
}
