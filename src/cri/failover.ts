// PullImage in the front: the caller's bytes go to the process that pulls, and to containerd when that cannot answer.
//
// The pulling process marks every error that it means to be the caller's answer. An error without the mark says only
// that the connection to it broke: it was killed, or it is being replaced. Then the same bytes go to its successor, or
// to containerd, so that the death of a process of ours costs a caller time and nothing else. No byte is parsed here.

import { Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { type Answer, ask, type Forward, type Incoming } from "./forward.ts";
import type { PullHandler } from "./images.ts";

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
  /** Told of each call that the pulling process did not answer, once it has been answered otherwise. */
  readonly delegated: (call: Delegated) => void;
}

/** How a call was answered that the pulling process did not answer. */
export interface Delegated {
  readonly incoming: Incoming;
  readonly reason: string;
  readonly error: ServiceError | undefined;
  readonly seconds: number;
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
    const began = performance.now();
    let lost: Forward | undefined;
    for (;;) {
      const route = await options.route(lost);
      if (route.kind === "containerd")
        return await delegate(options, incoming, signal, lost === undefined ? route.reason : "lost", began);
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
  options: FailoverOptions,
  incoming: Incoming,
  signal: AbortSignal,
  reason: string,
  began: number,
): Promise<Answer> {
  const seconds = (): number => (performance.now() - began) / 1000;
  try {
    const answer = await ask(incoming, options.containerd, signal);
    options.delegated({ incoming, reason, error: undefined, seconds: seconds() });
    return answer;
  } catch (error) {
    options.delegated({ incoming, reason, error: error as ServiceError, seconds: seconds() });
    throw error;
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
