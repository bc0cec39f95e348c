// One gRPC channel to containerd's socket: typed calls for our own use, raw calls for what is forwarded.
//
// Messages go out and come in as protobuf through the schemas of proto/; forwarded calls are bytes on both sides, so
// that a field or a method that is newer than Hawser passes through untouched. Status codes become PullErrors here.

import {
  create,
  type DescMessage,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import {
  type CallOptions,
  type Client,
  type ClientDuplexStream,
  type ClientReadableStream,
  connectivityState,
  Metadata,
  type ServiceError,
  status,
} from "@grpc/grpc-js";
import { type ErrorCode, PullError, throwIfAborted } from "../errors.ts";
import { clientOf } from "../grpc.ts";

export interface ChannelOptions {
  /** Path of containerd's socket. */
  readonly address: string;
  /** Containerd's namespace for our own calls. */
  readonly namespace: string;
}

/** A method's path and the two messages that it exchanges. */
export interface Method<Request extends DescMessage, Response extends DescMessage> {
  readonly path: string;
  readonly request: Request;
  readonly response: Response;
}

/** How far a call of ours is bounded: containerd answers metadata calls in milliseconds unless its disk is stuck. */
const callDeadlineMs = 60_000;

const identity = (bytes: Buffer): Buffer => bytes;

export class Channel {
  readonly #client: Client;
  readonly #namespace: string;
  /** Our own calls that are under way. */
  readonly #calls = new Set<{ cancel(): void }>();
  #isClosed = false;

  constructor(options: ChannelOptions) {
    this.#namespace = options.namespace;
    this.#client = clientOf(options.address, {
      // A forwarded answer may be as large as its reader allows; the limit is the caller's, not ours.
      "grpc.max_receive_message_length": -1,
      "grpc.max_send_message_length": -1,
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 1_000,
    });
  }

  /** One call in our namespace, under a lease if one is given. Throws PullError. */
  async call<Request extends DescMessage, Response extends DescMessage>(
    method: Method<Request, Response>,
    request: MessageInitShape<Request>,
    options: { readonly lease?: string; readonly namespace?: string; readonly signal?: AbortSignal } = {},
  ): Promise<MessageShape<Response>> {
    if (options.signal) throwIfAborted(options.signal);
    this.#throwIfClosed();
    return await new Promise((resolve, reject) => {
      const call = this.#client.makeUnaryRequest(
        method.path,
        (message: MessageShape<Request>) => Buffer.from(toBinary(method.request, message)),
        (bytes: Buffer) => fromBinary(method.response, bytes),
        create(method.request, request),
        this.#metadata(options),
        { deadline: Date.now() + callDeadlineMs },
        (error: ServiceError | null, response?: MessageShape<Response>) => {
          options.signal?.removeEventListener("abort", cancel);
          this.#calls.delete(call);
          if (error) reject(fromStatus(error, method.path));
          else if (response === undefined) reject(new PullError("internal", `${method.path} gave no answer`));
          else resolve(response);
        },
      );
      this.#calls.add(call);
      const cancel = (): void => call.cancel();
      options.signal?.addEventListener("abort", cancel, { once: true });
    });
  }

  /** A call with streams both ways in our namespace; the caller reads, writes and ends it, within the limit. */
  stream<Request extends DescMessage, Response extends DescMessage>(
    method: Method<Request, Response>,
    options: { readonly lease?: string; readonly limitMs: number },
  ): ClientDuplexStream<MessageInitShape<Request>, MessageShape<Response>> {
    this.#throwIfClosed();
    const call = this.#client.makeBidiStreamRequest(
      method.path,
      (message: MessageInitShape<Request>) =>
        Buffer.from(toBinary(method.request, create(method.request, message))),
      (bytes: Buffer) => fromBinary(method.response, bytes),
      this.#metadata(options),
      { deadline: Date.now() + options.limitMs },
    );
    this.#calls.add(call);
    call.once("status", () => this.#calls.delete(call));
    return call;
  }

  /**
   * A foreign call with one request and any number of answers, all of them bytes. A unary call is the same on the
   * wire, so this serves both.
   */
  raw(path: string, request: Buffer, metadata: Metadata, options: CallOptions): ClientReadableStream<Buffer> {
    return this.#client.makeServerStreamRequest(path, identity, identity, request, metadata, options);
  }

  /** Calls back with each change between connected and not, once the first attempt to connect has ended; keeps the channel connected. */
  watch(listener: (connected: boolean) => void): Disposable {
    const channel = this.#client.getChannel();
    let stopped = false;
    let told: boolean | undefined;
    const next = (): void => {
      if (stopped) return;
      const state = channel.getConnectivityState(true);
      if (state === connectivityState.SHUTDOWN) return;
      const connected = state === connectivityState.READY;
      // On its way to the first connection nothing is known yet, and there is nothing to tell.
      const isKnown = connected || told !== undefined || state === connectivityState.TRANSIENT_FAILURE;
      if (isKnown && connected !== told) {
        told = connected;
        listener(connected);
      }
      channel.watchConnectivityState(state, Number.POSITIVE_INFINITY, next);
    };
    next();
    return {
      [Symbol.dispose]: () => {
        stopped = true;
      },
    };
  }

  /** Cancels our own calls, and whatever is still asked for: a containerd that hangs holds nobody up. */
  close(): void {
    this.#isClosed = true;
    for (const call of this.#calls) call.cancel();
    this.#client.close();
  }

  #throwIfClosed(): void {
    if (this.#isClosed) throw new PullError("cancelled", "the connection to containerd is closed");
  }

  #metadata(options: { readonly lease?: string; readonly namespace?: string }): Metadata {
    const metadata = new Metadata();
    metadata.set("containerd-namespace", options.namespace ?? this.#namespace);
    if (options.lease !== undefined) metadata.set("containerd-lease", options.lease);
    return metadata;
  }
}

/** The answer, or undefined where containerd says that there is no such thing. */
export async function unlessMissing<Answer>(call: Promise<Answer>): Promise<Answer | undefined> {
  try {
    return await call;
  } catch (error) {
    if (error instanceof PullError && error.code === "not_found") return undefined;
    throw error;
  }
}

/** How Go words ENOSPC and EDQUOT; containerd passes them on with a status that says nothing. */
const fullDisk = /no space left on device|disk quota exceeded/;

/** Total: every status that containerd gives, in our words. The message is containerd's own. */
export function fromStatus(error: ServiceError, path: string): PullError {
  const method = path.slice(path.lastIndexOf("/") + 1);
  const message = `containerd's ${method}: ${error.details}`;
  return new PullError(fullDisk.test(error.details) ? "exhausted" : codeOf(error.code), message, {
    cause: error,
    temporary: error.code === status.UNAVAILABLE,
  });
}

function codeOf(code: status): ErrorCode {
  switch (code) {
    case status.NOT_FOUND:
      return "not_found";
    case status.ALREADY_EXISTS:
      return "exists";
    case status.UNAVAILABLE:
      return "unavailable";
    case status.INVALID_ARGUMENT:
    case status.OUT_OF_RANGE:
      return "invalid";
    case status.CANCELLED:
      return "cancelled";
    case status.DEADLINE_EXCEEDED:
      return "slow";
    case status.RESOURCE_EXHAUSTED:
      return "exhausted";
    case status.UNIMPLEMENTED:
      return "unsupported";
    default:
      return "internal";
  }
}
