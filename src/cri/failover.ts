// PullImage in the front: the caller's bytes go to the process that pulls, and to containerd when that cannot answer.
//
// The pulling process marks every error that it means to be the caller's answer. An error without the mark says only
// that the connection to it broke: it was killed, or it is being replaced. Then the same bytes go to its successor, or
// to containerd, so that the death of a process of ours costs a caller time and nothing else. No byte is parsed here.

import { Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { type Answer, ask, type Forward, type Incoming } from "./forward.ts";
import { cancelledHere, type PullHandler } from "./images.ts";

/** On the trailer of an error that is an answer. */
const mark = "hawser-answer";

/** Who a pull can be asked of now. */
export type Route =
  | { readonly kind: "puller"; readonly forward: Forward }
  /** With a word for metrics. */
  | { readonly kind: "containerd"; readonly reason: string };

export interface FailoverOptions {
  /** Asked anew for each attempt; the argument is whom the last one lost. May take its time after a loss. */
  readonly route: (lost: Forward | undefined) => Promise<Route>;
  readonly containerd: Forward;
  /** `fallback.enabled`: without it a caller is told that its pull was lost. */
  readonly fallback: boolean;
  /** Told of each call that goes to containerd instead; the signal it gives back is aborted to end it, and its end is told. */
  readonly bypass: (call: Bypassed) => {
    readonly signal: AbortSignal;
    readonly end: (error: ServiceError | undefined) => void;
  };
}

/** A call that the pulling process does not answer. */
export interface Bypassed {
  readonly incoming: Incoming;
  /** With a word for metrics. */
  readonly reason: string;
  /** When it came in (performance.now()). */
  readonly beganMs: number;
  /** A pulling process had begun it. */
  readonly isLost: boolean;
}

/** For the pulling process: has its errors carry the mark. */
export function markAnswers(handler: PullHandler): PullHandler {
  return async (incoming, signal) => {
    try {
      return await handler(incoming, signal);
    } catch (error) {
      const failure = error as ServiceError;
      const metadata = failure.metadata.clone();
      metadata.set(mark, "1");
      throw Object.assign(new Error(failure.message), {
        code: failure.code,
        details: failure.details,
        metadata,
      });
    }
  };
}

/** For the front. The handler rejects with the ServiceError that the caller is to have. */
export function createFailover(options: FailoverOptions): PullHandler {
  return async (incoming, signal) => {
    const beganMs = performance.now();
    let lost: Forward | undefined;
    for (;;) {
      const route = await options.route(lost);
      if (route.kind === "containerd") {
        const [isLost, reason] = [lost !== undefined, lost === undefined ? route.reason : "lost"];
        return await delegate(options, { incoming, reason, beganMs, isLost }, signal);
      }
      try {
        return await ask(incoming, route.forward, signal);
      } catch (error) {
        const failure = error as ServiceError;
        if (signal.aborted || isPast(incoming.deadline)) throw failure;
        if (failure.metadata.get(mark).length > 0) throw unmarked(failure);
        if (!options.fallback) throw told(failure);
        lost = route.forward;
      }
    }
  };
}

async function delegate(
  { containerd, bypass }: FailoverOptions,
  call: Bypassed,
  signal: AbortSignal,
): Promise<Answer> {
  const { signal: cancelled, end } = bypass(call);
  try {
    const answer = await ask(call.incoming, containerd, AbortSignal.any([signal, cancelled]));
    end(undefined);
    return answer;
  } catch (error) {
    const failure = cancelled.aborted ? cancelledHere() : (error as ServiceError);
    end(failure);
    throw failure;
  }
}

function isPast(deadline: Date | number): boolean {
  return Number(deadline) <= Date.now();
}

function unmarked(failure: ServiceError): ServiceError {
  failure.metadata.remove(mark);
  return failure;
}

function told(failure: ServiceError): ServiceError {
  const details = `the process that pulls went away (${failure.details})`;
  return Object.assign(new Error(details), { code: status.UNAVAILABLE, details, metadata: new Metadata() });
}
