// A containerd that says what a test tells it to: a gRPC server on a unix socket, scripted method by method.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, type DescMessage, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import {
  type Metadata,
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceError,
} from "@grpc/grpc-js";
import type { Method } from "../../src/containerd/channel.ts";

const identity = (bytes: Buffer): Buffer => bytes;

export type UnaryHandler = (
  call: ServerUnaryCall<Buffer, Buffer>,
  callback: (error: Partial<ServiceError> | null, answer?: Buffer, trailer?: Metadata) => void,
) => void;

export class FakeContainerd implements AsyncDisposable {
  /** A folder for the test's own files; gone with the fake. */
  readonly folder: string;
  readonly address: string;
  readonly #server = new Server({ "grpc.max_receive_message_length": -1 });

  private constructor(folder: string) {
    this.folder = folder;
    this.address = join(folder, "containerd.sock");
  }

  /** It listens only once {@link listen} was called, after its methods were given. */
  static async create(): Promise<FakeContainerd> {
    return new FakeContainerd(await mkdtemp(join(tmpdir(), "containerd-")));
  }

  /** A method in bytes. */
  unary(path: string, handler: UnaryHandler): void {
    this.#server.register(path, handler, identity, identity, "unary");
  }

  /** A method with many answers, in bytes. */
  stream(path: string, handler: (call: ServerWritableStream<Buffer, Buffer>) => void): void {
    this.#server.register(path, handler, identity, identity, "serverStream");
  }

  /** A method that always gives this answer. */
  answers<Request extends DescMessage, Response extends DescMessage>(
    method: Method<Request, Response>,
    answer: MessageInitShape<Response>,
  ): void {
    const bytes = Buffer.from(toBinary(method.response, create(method.response, answer)));
    this.unary(method.path, (_call, callback) => callback(null, bytes));
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.bindAsync(`unix:${this.address}`, ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      );
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.forceShutdown();
    await rm(this.folder, { recursive: true, force: true });
  }
}
