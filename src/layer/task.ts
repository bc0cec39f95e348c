// What the pool and its workers say to each other: values that survive being posted. Errors would lose their class.

import type { ErrorCode } from "../errors.ts";
import type { LayerJob } from "./layer.ts";
import type { Ring } from "./ring.ts";
import type { AppliedLayer, InflatedLayer, WholeLayer } from "./unpack.ts";

/** What a worker does of a layer: everything, or one of two lanes beside another worker. */
export type Part =
  | { readonly kind: "native" | "portable" }
  | { readonly kind: "inflate" | "apply"; readonly ring: Ring };

/** What a worker says once, by its thread's number, behind all that loading it does. */
export interface Loaded {
  readonly loaded: number;
}

export interface Task {
  readonly part: Part;
  readonly job: LayerJob;
  /** One 32-bit integer, which is not 0 once the layer is not wanted any more. */
  readonly cancelled: SharedArrayBuffer;
  /** Where nobody waits for the layer. */
  readonly idling: Idling | undefined;
}

export interface Idling {
  /** Two 32-bit integers: the worker's thread once it has begun, and what is not 0 once somebody waits for the layer. */
  readonly own: SharedArrayBuffer;
  /** One for all such layers, which is not 0 while they are to pause. */
  readonly paused: SharedArrayBuffer;
}

export const idlingCells = { thread: 0, awaited: 1 } as const;

export function makeIdling(paused: SharedArrayBuffer): Idling {
  return { own: new SharedArrayBuffer(2 * Int32Array.BYTES_PER_ELEMENT), paused };
}

export type Done =
  | { readonly kind: "unpacked"; readonly layer: WholeLayer }
  | { readonly kind: "inflated"; readonly layer: InflatedLayer }
  | { readonly kind: "applied"; readonly layer: AppliedLayer };

/** With the milliseconds that the worker had to pause for others. */
export type Outcome = (Done & { readonly pausedMs: number }) | Failed;

export interface Failed {
  readonly kind: "failed";
  readonly code: ErrorCode;
  readonly message: string;
}
