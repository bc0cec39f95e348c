// What runs in a worker thread: one layer a task, or one lane of it, from its spool into its staging directory.

import { setPriority } from "node:os";
import { parentPort, threadId } from "node:worker_threads";
import { PullError } from "../errors.ts";
import { loadNative } from "../native.ts";
import type { LayerJob } from "./layer.ts";
import {
  type Done,
  type Idling,
  idlingCells,
  type Loaded,
  type Outcome,
  type Part,
  type Task,
} from "./task.ts";
import { applyLayer, inflateLayer, unpackNative } from "./unpack.ts";

/** Below the main thread, which answers kubelet: Linux applies a nice value to the calling thread alone. */
const niceness = 5;

// Behind require(), which loads this; no later, since the thread then sleeps until there is a task.
queueMicrotask(() => parentPort?.postMessage({ loaded: threadId } satisfies Loaded, []));

const native = loadNative();
if (native.kind === "loaded") native.binding.ownUmask();
setPriority(0, niceness);

export default async function unpack(task: Task): Promise<Outcome> {
  try {
    return await run(task);
  } catch (error) {
    const { code, message } = PullError.from(error);
    return { kind: "failed", code, message };
  } finally {
    if (task.idling) stopIdling(task.idling);
  }
}

async function run({ part, job, cancelled, idling }: Task): Promise<Outcome> {
  if (idling) idle(idling);
  const cell = new Int32Array(cancelled);
  let pausedMs = 0;
  const isCancelled = (): boolean => {
    const isOver = (): boolean => Atomics.load(cell, 0) !== 0;
    if (idling) pausedMs += waitWhilePaused(idling, isOver);
    return isOver();
  };
  if (isCancelled()) throw new PullError("cancelled", "cancelled");
  const done = await unpacked(part, job, isCancelled);
  return { ...done, pausedMs };
}

async function unpacked(part: Part, job: LayerJob, isCancelled: () => boolean): Promise<Done> {
  if (part.kind === "portable") {
    // Its libraries are of no use to other workers.
    const { unpackPortable } = await import("./portable.ts");
    return { kind: "unpacked", layer: await unpackPortable(job, isCancelled) };
  }
  if (native.kind === "missing") throw new PullError("unsupported", native.reason);
  const { binding } = native;
  switch (part.kind) {
    case "native":
      return { kind: "unpacked", layer: unpackNative(job, binding, isCancelled) };
    case "inflate":
      return { kind: "inflated", layer: inflateLayer(job, part.ring, binding, isCancelled) };
    case "apply":
      return { kind: "applied", layer: applyLayer(job, part.ring, binding, isCancelled) };
  }
}

const askMs = 100;

/** Returns for how many milliseconds that was. */
function waitWhilePaused({ own, paused }: Idling, isOver: () => boolean): number {
  const [cell, cells] = [new Int32Array(paused), new Int32Array(own)];
  const isAwaited = (): boolean => Atomics.load(cells, idlingCells.awaited) !== 0;
  if (Atomics.load(cell, 0) === 0) return 0;
  const began = performance.now();
  while (Atomics.load(cell, 0) !== 0 && !isAwaited() && !isOver()) Atomics.wait(cell, 0, 1, askMs);
  return performance.now() - began;
}

/** A thread that gets nothing while others are busy could not even end, and its process neither. */
function stopIdling({ own }: Idling): void {
  Atomics.store(new Int32Array(own), idlingCells.thread, 0);
  if (native.kind === "loaded") native.binding.setIdle(native.binding.threadID(), 0);
}

/** Takes only what others leave of the cores, unless the layer has come to be awaited: whichever side is later sees the other. */
function idle(idling: Idling): void {
  if (native.kind === "missing") return;
  const { binding } = native;
  const cells = new Int32Array(idling.own);
  const thread = binding.threadID();
  Atomics.store(cells, idlingCells.thread, thread);
  binding.setIdle(thread, 1);
  if (Atomics.load(cells, idlingCells.awaited) !== 0) binding.setIdle(thread, 0);
}
