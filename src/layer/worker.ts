// What runs in a worker thread: one layer a task. Outcomes are plain values, since errors lose their class on the way.

import { setPriority } from "node:os";
import { type ErrorCode, PullError } from "../errors.ts";
import { loadNative } from "../native.ts";
import type { LayerJob, UnpackedLayer } from "./layer.ts";
import { unpackPortable } from "./portable.ts";
import { unpackNative } from "./unpack.ts";

export interface Task {
  readonly engine: "native" | "portable";
  readonly job: LayerJob;
  /** One 32-bit integer: not 0 once the task is to stop. */
  readonly cancel: SharedArrayBuffer;
}

export type Outcome =
  | { readonly kind: "unpacked"; readonly layer: UnpackedLayer }
  | { readonly kind: "failed"; readonly code: ErrorCode; readonly message: string };

/** Below the main thread, which answers kubelet: Linux applies a nice value to the calling thread alone. */
const niceness = 5;

const native = loadNative();
if (native.kind === "loaded") native.binding.ownUmask();
setPriority(0, niceness);

export default async function unpack({ engine, job, cancel }: Task): Promise<Outcome> {
  const flag = new Int32Array(cancel);
  const isCancelled = (): boolean => Atomics.load(flag, 0) !== 0;
  try {
    if (engine === "portable") return { kind: "unpacked", layer: await unpackPortable(job, isCancelled) };
    if (native.kind === "missing") return { kind: "failed", code: "unsupported", message: native.reason };
    return { kind: "unpacked", layer: unpackNative(job, native.binding, isCancelled) };
  } catch (error) {
    const { code, message } = PullError.from(error);
    return { kind: "failed", code, message };
  }
}
