// How the services of the fake containerd are put on its socket: typed messages in, typed answers or a Status out, and
// for each message the moment to answer otherwise.
//
// Every message of every call is a step, named by its method: "Snapshots/Prepare", and for a Write, which has many,
// "Content/Write STAT". A fault takes effect before a step is done, or after it: then it was done, and nobody was told.

import {
  create,
  type DescMessage,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { type Metadata as Headers, type ServerDuplexStream, status } from "@grpc/grpc-js";
import type { Method } from "../../../src/containerd/channel.ts";
import { type FakeContainerd, Status } from "../containerd.ts";
import type { Caller } from "./metadata.ts";

export interface Fault {
  readonly code: status;
  readonly moment: "before" | "after";
}

/** A call with many messages: each gets an answer, and `closed` is called when the call is over in whatever way. */
export interface Session<Request, Response> {
  name(request: Request): string;
  take(request: Request): { readonly answer: Response; readonly isLast: boolean };
  closed(): void;
}

export class Serving {
  /** Asked at each step. */
  fault: (step: string) => Fault | undefined = () => undefined;
  /** All steps so far, in the order in which they came. */
  readonly steps: string[] = [];
  readonly #server: FakeContainerd;

  constructor(server: FakeContainerd) {
    this.#server = server;
  }

  unary<Request extends DescMessage, Response extends DescMessage>(
    { path, request, response }: Method<Request, Response>,
    answer: (request: MessageShape<Request>, caller: Caller) => MessageInitShape<Response>,
  ): void {
    this.bytes(path, (bytes, caller) =>
      toBinary(response, create(response, answer(fromBinary(request, bytes), caller))),
    );
  }

  /** One message in, one out, without a schema. */
  bytes(path: string, answer: (request: Buffer, caller: Caller) => Uint8Array): void {
    this.#server.unary(path, (call, callback) => {
      try {
        callback(
          null,
          Buffer.from(this.#step(stepOf(path), () => answer(call.request, callerOf(call.metadata, path)))),
        );
      } catch (error) {
        callback(statusOf(error));
      }
    });
  }

  /** One message in, one out when it is ready, without a schema. */
  later(path: string, answer: () => Promise<Uint8Array>): void {
    this.#server.unary(path, (_call, callback) => {
      answer().then(
        (bytes) => callback(null, Buffer.from(bytes)),
        (error: unknown) => callback(statusOf(error)),
      );
    });
  }

  /** One message in, any number out, without a schema. */
  list(path: string, answers: (caller: Caller) => readonly Uint8Array[]): void {
    this.#server.stream(path, (call) => {
      try {
        for (const answer of answers(callerOf(call.metadata, path))) call.write(Buffer.from(answer));
        call.end();
      } catch (error) {
        call.emit("error", statusOf(error));
      }
    });
  }

  duplex<Request extends DescMessage, Response extends DescMessage>(
    { path, request, response }: Method<Request, Response>,
    open: (caller: Caller) => Session<MessageShape<Request>, MessageInitShape<Response>>,
  ): void {
    this.#server.duplex(path, (call) => {
      const session = open(callerOf(call.metadata, path));
      const over = (): void => {
        session.closed();
        call.removeAllListeners("data");
      };
      call.on("cancelled", over);
      call.on("end", () => {
        over();
        call.end();
      });
      call.on("data", (bytes: Buffer) => {
        try {
          const message = fromBinary(request, bytes);
          const step = `${stepOf(path)} ${session.name(message)}`;
          const { answer, isLast } = this.#step(step, () => session.take(message));
          call.write(Buffer.from(toBinary(response, create(response, answer))));
          if (!isLast) return;
          over();
          call.end();
        } catch (error) {
          over();
          fail(call, statusOf(error));
        }
      });
    });
  }

  #step<Value>(name: string, act: () => Value): Value {
    this.steps.push(name);
    const fault = this.fault(name);
    if (fault?.moment === "before") throw injected(fault);
    const value = act();
    if (fault) throw injected(fault);
    return value;
  }
}

function fail(call: ServerDuplexStream<Buffer, Buffer>, error: Status): void {
  call.emit("error", error);
}

function injected({ code, moment }: Fault): Status {
  return new Status(code, `injected ${status[code]} ${moment} it was done`);
}

/** "/containerd.services.leases.v1.Leases/Create" is "Leases/Create". */
function stepOf(path: string): string {
  return path.slice(path.lastIndexOf(".") + 1);
}

function statusOf(error: unknown): Status {
  return error instanceof Status ? error : new Status(status.UNKNOWN, String(error));
}

/** Services that are not containerd's own, introspection among them, know no namespaces. */
const withoutNamespace = /^\/runtime\.v1\.|Introspection\/|Version\/|Namespaces\//;

function callerOf(headers: Headers, path: string): Caller {
  const [namespace] = headers.get("containerd-namespace");
  const [lease] = headers.get("containerd-lease");
  if (namespace === undefined && !withoutNamespace.test(path))
    throw new Status(status.FAILED_PRECONDITION, "namespace is required: failed precondition");
  return { namespace: String(namespace ?? ""), lease: lease === undefined ? undefined : String(lease) };
}
