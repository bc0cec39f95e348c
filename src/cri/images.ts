// PullImage: what is accelerated, what is delegated to containerd, and what the caller is told.
//
// An accelerated pull brings everything into place, and records with it where the pull room makes them. Otherwise the
// caller's own call is made to containerd while all is held: containerd finds it, applies its own policy and writes its
// own records, and its answer is ours. Whatever goes wrong on our side is followed by the very same call, so the caller never sees an error that containerd would
// not have given (DESIGN 6). This file never reads a registry and never stores anything.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { PullError } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import type { Digest } from "../oci/digest.ts";
import { parseReference } from "../oci/reference.ts";
import {
  type AuthConfig,
  type PullImageRequest,
  PullImageRequestSchema,
  PullImageResponseSchema,
} from "../proto/gen/cri_pb.js";
import type { Observed, Pulled } from "../pull/pull.ts";
import type { Credentials } from "../registry/registry.ts";
import type { PullTrace } from "../trace.ts";
import { type Answer, ask, type Forward, type Incoming } from "./forward.ts";

/** Why a pull was left to containerd: a word for metrics and, where there is more to say, a sentence for people. */
export interface Delegation {
  readonly reason: string;
  readonly detail: string;
}

export interface PullHandlerOptions {
  readonly forward: Forward;
  /** Why no pull may be accelerated now (pass-through), or why this one may not; undefined when it may. */
  readonly ineligible: (request: PullImageRequest) => Delegation | undefined;
  readonly pull: (
    reference: string,
    credentials: Credentials | undefined,
    observed: Required<Observed>,
    signal: AbortSignal,
  ) => Promise<Pulled>;
  /** Called when a pull that somebody waits for is left to containerd; disposed of when containerd has answered. */
  readonly delegating: () => Disposable;
  /** How containerd begins to say that a name cannot be resolved. */
  readonly unresolved: (name: string) => string;
  /** `fallback.enabled`: failures of ours are delegated, not returned. */
  readonly fallback: boolean;
  /** Asked for notes when a call comes in, with its metadata; they are handed back when its answer is known. */
  readonly begin: (metadata: Metadata) => PullTrace;
  readonly done: (outcome: PullOutcome, trace: PullTrace) => void;
  readonly registered: (seconds: number) => void;
}

export interface PullOutcome {
  readonly reference: string;
  readonly path: "accelerated" | "delegated";
  readonly result: "ok" | "refused" | "cancelled" | "error";
  readonly seconds: number;
  readonly delegation?: Delegation;
  /** Whose records an accelerated pull ended with: those of an earlier pull, Hawser's, or those of containerd's PullImage. */
  readonly records?: "earlier" | "hawser" | "containerd";
  /** The message of the error that the caller was given. */
  readonly error?: string;
}

export type PullHandler = (incoming: Incoming, signal: AbortSignal) => Promise<Answer>;

/** The handler rejects with a ServiceError: containerd's own in nearly every case. */
export function createPullHandler(options: PullHandlerOptions): PullHandler {
  return async (incoming, signal) => {
    const attempt = new Attempt(options, incoming, signal);
    return await attempt.run();
  };
}

class Attempt {
  readonly #options: PullHandlerOptions;
  readonly #incoming: Incoming;
  readonly #signal: AbortSignal;
  readonly #trace: PullTrace;
  #reference = "";
  #isAwaited = true;
  #delegation: Delegation | undefined;
  #records: PullOutcome["records"];

  constructor(options: PullHandlerOptions, incoming: Incoming, signal: AbortSignal) {
    this.#options = options;
    this.#incoming = incoming;
    this.#trace = options.begin(incoming.metadata);
    this.#signal = AbortSignal.any([signal, this.#trace.cancelled.signal]);
  }

  async run(): Promise<Answer> {
    try {
      const answer = await this.#answer();
      this.#done("ok");
      return answer;
    } catch (error) {
      const failure = this.#isCancelledHere ? cancelledHere() : (error as ServiceError);
      const cancelled = this.#signal.aborted || failure.code === status.CANCELLED;
      this.#done(cancelled ? "cancelled" : failure instanceof Refusal ? "refused" : "error", failure.details);
      throw failure;
    }
  }

  async #answer(): Promise<Answer> {
    const request = decode(this.#incoming.request);
    if (request === undefined)
      return await this.#delegate({ reason: "undecodable", detail: "not a PullImageRequest" });
    this.#reference = request.image?.image ?? "";
    this.#trace.reference = this.#reference;
    this.#isAwaited = !isExpected(request);
    const ineligible = this.#options.ineligible(request);
    if (ineligible) return await this.#delegate(ineligible);
    await using pulled = await this.#pull(request);
    if (pulled.failure) return await this.#failed(pulled.failure);
    const answer = pulled.registered ? answerOf(pulled.registered.id) : await this.#register();
    this.#records = pulled.registered?.by ?? "containerd";
    failpoint("registered");
    return answer;
  }

  async #register(): Promise<Answer> {
    const began = performance.now();
    const answer = await this.#ask();
    this.#options.registered((performance.now() - began) / 1000);
    return answer;
  }

  /** Whatever goes wrong here, containerd can still be asked. */
  async #pull(request: PullImageRequest): Promise<Pulled> {
    try {
      const shown = credentials(request.auth);
      const observed = { isAwaited: this.#isAwaited, trace: this.#trace };
      return await this.#options.pull(this.#reference, shown, observed, this.#signal);
    } catch (error) {
      return { failure: PullError.from(error), [Symbol.asyncDispose]: async () => {} };
    }
  }

  async #failed(failure: PullError): Promise<Answer> {
    if (this.#signal.aborted) throw new Refusal(status.CANCELLED, "context canceled");
    if (failure.code === "refused" && failure.credentialsSent) {
      const unresolved = this.#options.unresolved(parseReference(this.#reference).name);
      throw new Refusal(status.UNKNOWN, `${unresolved}: ${failure.message}`);
    }
    if (!this.#options.fallback) throw new Refusal(codeOf(failure), failure.message);
    return await this.#delegate({ reason: failure.code, detail: failure.message });
  }

  async #delegate(delegation: Delegation): Promise<Answer> {
    this.#delegation = delegation;
    this.#trace.delegation = delegation;
    using _delegating = this.#isAwaited ? this.#options.delegating() : undefined;
    return await this.#ask();
  }

  /** By an operator. */
  get #isCancelledHere(): boolean {
    return this.#trace.cancelled.signal.aborted;
  }

  async #ask(): Promise<Answer> {
    const { forward } = this.#options;
    return await this.#trace.spans.of("containerd", () => ask(this.#incoming, forward, this.#signal));
  }

  #done(result: PullOutcome["result"], error?: string): void {
    const seconds = (performance.now() - this.#trace.startMs) / 1000;
    const outcome: PullOutcome = {
      reference: this.#reference,
      path: this.#delegation ? "delegated" : "accelerated",
      result,
      seconds,
      ...(this.#delegation && { delegation: this.#delegation }),
      ...(this.#records && { records: this.#records }),
      ...(error !== undefined && { error }),
    };
    this.#options.done(outcome, this.#trace);
  }
}

/**
 * Whether OpenKruise's daemon asks, all of whose pulls are ahead of need, and which marks them by an annotation of a sandbox
 * that is none (pkg/daemon/criruntime/imageruntime); a pod's own may have any.
 */
function isExpected({ sandboxConfig }: PullImageRequest): boolean {
  if (sandboxConfig === undefined || sandboxConfig.metadata) return false;
  return sandboxConfig.annotations["apps.kruise.io/pulling-image-by"] !== undefined;
}

/** An answer of ours that is an error. */
class Refusal extends Error implements ServiceError {
  readonly code: status;
  readonly details: string;
  readonly metadata = new Metadata();

  constructor(code: status, details: string) {
    super(details);
    this.code = code;
    this.details = details;
  }
}

/** What a caller is told when an operator has ended its pull. */
export function cancelledHere(): ServiceError {
  return new Refusal(status.CANCELLED, "cancelled by an operator of this node (hawser cancel)");
}

function answerOf(id: Digest): Answer {
  const response = create(PullImageResponseSchema, { imageRef: id });
  return {
    bytes: Buffer.from(toBinary(PullImageResponseSchema, response)),
    header: undefined,
    trailer: undefined,
  };
}

function decode(bytes: Buffer): PullImageRequest | undefined {
  try {
    return fromBinary(PullImageRequestSchema, bytes);
  } catch {
    return undefined;
  }
}

function credentials(auth: AuthConfig | undefined): Credentials | undefined {
  if (auth === undefined) return undefined;
  const { username, password, serverAddress, identityToken } = auth;
  return { username, password, auth: auth.auth, serverAddress, identityToken };
}

function codeOf(failure: PullError): status {
  switch (failure.code) {
    case "invalid":
      return status.INVALID_ARGUMENT;
    case "not_found":
      return status.NOT_FOUND;
    case "unavailable":
      return status.UNAVAILABLE;
    case "slow":
      return status.DEADLINE_EXCEEDED;
    case "corrupt":
      return status.DATA_LOSS;
    case "unsupported":
      return status.UNIMPLEMENTED;
    case "exhausted":
      return status.RESOURCE_EXHAUSTED;
    case "cancelled":
      return status.CANCELLED;
    case "refused":
    case "exists":
    case "conflict":
    case "internal":
      return status.UNKNOWN;
  }
}
