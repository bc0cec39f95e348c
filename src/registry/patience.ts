// How long to wait before another attempt, and what a server says about that.

import { setTimeout as sleep } from "node:timers/promises";
import { PullError, throwIfAborted } from "../errors.ts";

/** Time and chance, which tests replace. */
export interface Timing {
  /** Milliseconds since the epoch. */
  now(): number;
  /** At least 0 and below 1. */
  random(): number;
  /** Rejects with the signal's PullError when that is aborted. */
  wait(timeMs: number, signal: AbortSignal): Promise<void>;
}

export const realTiming: Timing = {
  now: () => Date.now(),
  random: () => Math.random(),
  wait: async (timeMs, signal) => {
    await sleep(timeMs, undefined, { signal }).catch(() => {});
    throwIfAborted(signal);
  },
};

/** An answer of a server that is no success. */
export class StatusError extends PullError {
  readonly status: number;
  /** How long the server asked to be left alone; 0 when it did not. */
  readonly retryAfterMs: number;
  /** Who has answered so (host:port). */
  readonly host: string;

  constructor(error: PullError, status: number, askedMs: number, host: string) {
    super(error.code, error.message, {
      temporary: isTemporary(status),
      credentialsSent: error.credentialsSent,
    });
    this.status = status;
    this.retryAfterMs = askedMs;
    this.host = host;
  }
}

/** Whoever asks for more patience than this is given up. */
const retryAfterMsMax = 30_000;
const firstPauseMs = 100;
const longestPauseMs = 5_000;

function isTemporary(status: number): boolean {
  return status === 408 || status === 429 || status >= 500;
}

/** Seconds or a date (RFC 9110, 10.2.3), in milliseconds from now; 0 for anything else. */
export function retryAfterMs(header: string | undefined, now: number): number {
  const text = header ?? "";
  if (/^\d+$/.test(text)) return Number(text) * 1000;
  const date = Date.parse(text);
  return Number.isNaN(date) ? 0 : Math.max(0, date - now);
}

/**
 * Waits before attempt number `attempt` + 1: exponentially longer, with jitter, and at least as long as the server
 * asked for. Throws the failure instead when it is not temporary or the server asks for too much.
 */
export async function backOff(
  failure: PullError,
  attempt: number,
  timing: Timing,
  signal: AbortSignal,
  patienceMs: number = retryAfterMsMax,
): Promise<void> {
  const askedMs = failure instanceof StatusError ? failure.retryAfterMs : 0;
  if (!failure.temporary || askedMs > Math.min(patienceMs, retryAfterMsMax)) throw failure;
  const pauseMs = Math.min(longestPauseMs, firstPauseMs * 2 ** attempt) * (0.5 + timing.random() / 2);
  await timing.wait(Math.max(askedMs, pauseMs), signal);
}
