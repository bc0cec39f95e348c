// What the pool and its workers say to each other: values that survive being posted. Errors would lose their class.

import type { ErrorCode } from "../errors.ts";
import type { LayerJob, UnpackedLayer } from "./layer.ts";

export interface Task {
  readonly engine: "native" | "portable";
  readonly job: LayerJob;
  /** One 32-bit integer, from `phases`. */
  readonly phase: SharedArrayBuffer;
}

/** The pool cancels at any time; a worker begins only what is still waiting. */
export const phases = { waiting: 0, running: 1, cancelled: 2 } as const;

export type Outcome =
  | { readonly kind: "unpacked"; readonly layer: UnpackedLayer }
  | { readonly kind: "failed"; readonly code: ErrorCode; readonly message: string };
