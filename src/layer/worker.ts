// What runs in a worker thread: one layer a task, from its spool into its staging directory.

import { setPriority } from "node:os";
import { PullError } from "../errors.ts";
import { loadNative } from "../native.ts";
import { unpackPortable } from "./portable.ts";
import { type Outcome, phases, type Task } from "./task.ts";
import { unpackNative } from "./unpack.ts";

/** Below the main thread, which answers kubelet: Linux applies a nice value to the calling thread alone. */
const niceness = 5;

const native = loadNative();
if (native.kind === "loaded") native.binding.ownUmask();
setPriority(0, niceness);

export default async function unpack({ engine, job, phase }: Task): Promise<Outcome> {
  const cell = new Int32Array(phase);
  const isCancelled = (): boolean => Atomics.load(cell, 0) === phases.cancelled;
  Atomics.compareExchange(cell, 0, phases.waiting, phases.running);
  try {
    if (isCancelled()) throw new PullError("cancelled", "cancelled");
    if (engine === "portable") return { kind: "unpacked", layer: await unpackPortable(job, isCancelled) };
    if (native.kind === "missing") return { kind: "failed", code: "unsupported", message: native.reason };
    return { kind: "unpacked", layer: unpackNative(job, native.binding, isCancelled) };
  } catch (error) {
    const { code, message } = PullError.from(error);
    return { kind: "failed", code, message };
  }
}
