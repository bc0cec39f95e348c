// A pull without its details, as lists have it.

import { type PullRecord, progressOf, remainingSeconds } from "./record.ts";
import type { Verdict } from "./verdict.ts";

export interface PullSummary
  extends Pick<
    PullRecord,
    | "id"
    | "traceId"
    | "image"
    | "startedAt"
    | "seconds"
    | "state"
    | "outcome"
    | "delegation"
    | "isAhead"
    | "presentLayers"
  > {
  /** Of its layers that were not there, as they are in the registry. */
  readonly bytes: number;
  readonly doneBytes: number;
  readonly layers: number;
  /** Of one that goes on; until all bytes are there, where that can be told. */
  readonly bytesPerSecond?: number;
  readonly remainingSeconds?: number;
  /** Of one that goes on: so far. */
  readonly verdict?: Pick<Verdict, "cause" | "key" | "share" | "sentence">;
}

export function summaryOf(record: PullRecord): PullSummary {
  const { id, traceId, image, startedAt, seconds, state, outcome, delegation, isAhead, layers, verdict } =
    record;
  const { bytes, doneBytes, bytesPerSecond } = progressOf(record);
  const remaining = remainingSeconds({ bytes, doneBytes, bytesPerSecond });
  return {
    id,
    traceId,
    image,
    startedAt,
    seconds,
    state,
    ...(outcome && { outcome }),
    ...(delegation && { delegation }),
    isAhead,
    presentLayers: record.presentLayers,
    bytes,
    doneBytes,
    layers: layers.length,
    ...(state === "running" && { bytesPerSecond }),
    ...(state === "running" && remaining !== undefined && { remainingSeconds: remaining }),
    ...(verdict && {
      verdict: {
        cause: verdict.cause,
        ...(verdict.key !== undefined && { key: verdict.key }),
        share: verdict.share,
        sentence: verdict.sentence,
      },
    }),
  };
}
