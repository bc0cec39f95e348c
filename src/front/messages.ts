// What front and puller tell each other over the pipe between them; calls travel by their own socket.
//
// The pipe is also the proof of life both ways: a puller whose pipe closes ends, since whoever started it is gone.

import type { ErrorCode } from "../errors.ts";
import type { PullRecord } from "../history/record.ts";
import type { PullSummary } from "../history/summary.ts";
import type { MetricValues } from "../metrics.ts";
import type { PrewarmRequest, PrewarmStatus } from "../prewarm/prewarming.ts";

export type ToPuller =
  | { readonly kind: "ping" }
  /** Asks for the metrics of now. */
  | { readonly kind: "metrics"; readonly id: number }
  /** Asks for the pulls that go on or have ended just now, or has one of them end. */
  | { readonly kind: "pulls"; readonly id: number }
  /** Asks for one of these, whole, by its id or its trace's. */
  | { readonly kind: "pull"; readonly id: number; readonly pull: string }
  | { readonly kind: "cancel"; readonly id: number; readonly pull: string }
  /** Asks about images that are fetched ahead of need, or for a change of them. */
  | { readonly kind: "prewarm"; readonly id: number; readonly request: PrewarmRequest }
  /** Asks it to take no new calls, to end within this time, and to go. */
  | { readonly kind: "drain"; readonly timeoutMs: number };

export type FromPuller =
  /** Its socket answers. */
  | { readonly kind: "listening" }
  /** Whether pulls are accelerated, on each change; a reason when they are not. */
  | { readonly kind: "site"; readonly closed?: { readonly reason: string; readonly detail: string } }
  | { readonly kind: "pong" }
  | { readonly kind: "metrics"; readonly id: number; readonly metrics: readonly MetricValues[] }
  | { readonly kind: "pulls"; readonly id: number; readonly pulls: readonly PullSummary[] }
  | { readonly kind: "pull"; readonly id: number; readonly pull: PullRecord | undefined }
  /** False where no such pull goes on. */
  | { readonly kind: "cancel"; readonly id: number; readonly isCancelled: boolean }
  | { readonly kind: "prewarm"; readonly id: number; readonly answer: PrewarmAnswer };

/** Of those that are asked for by a number: what comes back under it. */
export type Answer<Kind extends FromPuller["kind"]> = Extract<
  FromPuller,
  { readonly kind: Kind; readonly id: number }
>;

export type PrewarmAnswer =
  | { readonly kind: "status"; readonly status: PrewarmStatus }
  | { readonly kind: "error"; readonly code: ErrorCode; readonly message: string };
