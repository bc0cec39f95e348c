// A containerd that says what a test tells it to: a gRPC server on a unix socket, scripted method by method.
//
// Messages are bytes here unless a schema is given. The one that really keeps something is memory/containerd.ts, which
// stands on this server.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, type DescMessage, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import {
  Metadata,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceError,
  type status,
} from "@grpc/grpc-js";
import type { Method } from "../../src/containerd/channel.ts";

const identity = (bytes: Buffer): Buffer => bytes;

export type UnaryHandler = (
  call: ServerUnaryCall<Buffer, Buffer>,
  callback: (error: Partial<ServiceError> | null, answer?: Buffer, trailer?: Metadata) => void,
) => void;

/** A status instead of an answer. */
export class Status extends Error implements ServiceError {
  readonly code: status;
  readonly details: string;
  readonly metadata = new Metadata();

  constructor(code: status, details: string) {
    super(details);
    this.code = code;
    this.details = details;
  }
}

export class FakeContainerd implements AsyncDisposable {
  /** A folder for the test's own files; gone with the fake. */
  readonly folder: string;
  readonly address: string;
  readonly #register: ((server: Server) => void)[] = [];
  #server: Server | undefined;

  private constructor(folder: string) {
    this.folder = folder;
    this.address = join(folder, "containerd.sock");
  }

  /** It listens only once {@link listen} was called, after its methods were given. */
  static async create(parent: string = tmpdir()): Promise<FakeContainerd> {
    return new FakeContainerd(await mkdtemp(join(parent, "containerd-")));
  }

  /** A method in bytes. */
  unary(path: string, handler: UnaryHandler): void {
    this.#register.push((server) => server.register(path, handler, identity, identity, "unary"));
  }

  /** A method with many answers, in bytes. */
  stream(path: string, handler: (call: ServerWritableStream<Buffer, Buffer>) => void): void {
    this.#register.push((server) => server.register(path, handler, identity, identity, "serverStream"));
  }

  /** A method with many messages both ways, in bytes. */
  duplex(path: string, handler: (call: ServerDuplexStream<Buffer, Buffer>) => void): void {
    this.#register.push((server) => server.register(path, handler, identity, identity, "bidi"));
  }

  /** A method that always gives this answer. */
  answers<Request extends DescMessage, Response extends DescMessage>(
    method: Method<Request, Response>,
    answer: MessageInitShape<Response>,
  ): void {
    const bytes = Buffer.from(toBinary(method.response, create(method.response, answer)));
    this.unary(method.path, (_call, callback) => callback(null, bytes));
  }

  /** Also after {@link cut}. */
  async listen(): Promise<void> {
    const server = new Server({ "grpc.max_receive_message_length": -1 });
    for (const register of this.#register) register(server);
    this.#server = server;
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`unix:${this.address}`, ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      );
    });
  }

  /** Cuts every connection, as the end of containerd does. */
  cut(): void {
    this.#server?.forceShutdown();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    await rm(this.folder, { recursive: true, force: true });
  }
}
