// What operators are told of images that are fetched ahead of need: status, log and metrics.

import type { Log } from "../log.ts";
import type { Metrics } from "../metrics.ts";
import type { PrewarmEvents } from "./prewarm.ts";
import type { Entry } from "./queue.ts";

export interface ImageStatus {
  readonly name: string;
  readonly state: "wanted" | "fetching" | "warm" | "failed";
  readonly sources: readonly string[];
  /** Since when it is wanted, and since when it has been warm: seconds. */
  readonly ageSeconds: number;
  readonly warmSeconds?: number;
  readonly bytes?: number;
  readonly target?: string;
  /** Of the latest attempt. */
  readonly error?: string;
  readonly attempts?: number;
  /** It may be had a little later without anybody changing anything. */
  readonly temporary?: boolean;
  /** When something is done about it next; absent where nothing will be. */
  readonly nextSeconds?: number;
  /** It is given up if it is not here after so long. */
  readonly deadlineSeconds?: number;
}

export function statusOf(entry: Entry): ImageStatus {
  const { name, sources, addedMs, condition, busySinceMs, trouble, deadlineMs } = entry;
  const now = Date.now();
  const secondsSince = (timeMs: number): number => Math.round((now - timeMs) / 1000);
  const failure = condition.kind === "failed" ? condition.failure : trouble;
  const isWarm = condition.kind === "warm";
  return {
    name,
    state: busySinceMs !== undefined && !isWarm ? "fetching" : condition.kind,
    sources: [...sources.keys()],
    ageSeconds: secondsSince(addedMs),
    ...(isWarm && {
      warmSeconds: secondsSince(condition.sinceMs),
      ...(condition.hold && { bytes: condition.hold.bytes, target: condition.hold.target }),
    }),
    ...(failure && { error: failure.message, attempts: failure.times, temporary: failure.isTemporary }),
    ...(busySinceMs === undefined &&
      Number.isFinite(condition.dueMs) && { nextSeconds: Math.max(0, -secondsSince(condition.dueMs)) }),
    ...(Number.isFinite(deadlineMs) &&
      !isWarm && { deadlineSeconds: Math.max(0, -secondsSince(deadlineMs)) }),
  };
}

export function eventsFor(log: Log, metrics: Metrics): PrewarmEvents {
  return {
    done: (image, outcome) => {
      if ("code" in outcome) {
        metrics.prewarmFetches.inc({ result: "error" });
        log.warn({ image, code: outcome.code, error: outcome.message, attempts: outcome.times }, "prewarm");
        return;
      }
      metrics.prewarmFetches.inc({ result: outcome.isNew ? "fetched" : "unchanged" });
      const seconds = Number(outcome.seconds.toFixed(3));
      if (outcome.isNew) log.info({ image, seconds, result: "ok" }, "prewarm");
    },
    dropped: (image, why) => {
      log.info({ image, why }, "prewarm: an image is held no more");
    },
    changed: (entries) => {
      const states = { wanted: 0, fetching: 0, warm: 0, failed: 0 };
      for (const entry of entries) states[statusOf(entry).state] += 1;
      for (const [state, count] of Object.entries(states)) metrics.prewarmImages.set({ state }, count);
      const waiting = entries.filter(
        ({ condition, sources }) => sources.size > 0 && condition.kind !== "warm",
      );
      const oldestMs = waiting.reduce((least, { addedMs }) => Math.min(least, addedMs), Date.now());
      metrics.prewarmAge.since(waiting.length > 0 ? oldestMs : undefined);
    },
  };
}
