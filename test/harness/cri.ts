// A CRI client for tests: images and, as far as a test runs a container, pods. Messages are made by hand from field
// numbers where src/proto has no use for them.

import { create, type DescMessage, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { BinaryReader, BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { Client, credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import {
  PullImageRequestSchema,
  PullImageResponseSchema,
  StatusResponseSchema,
} from "../../src/proto/gen/cri_pb.js";

export interface Login {
  readonly username: string;
  readonly password: string;
}

/** Fields of CRI's AuthConfig. */
export type Auth = Partial<Login> & {
  readonly identityToken?: string;
  readonly auth?: string;
  readonly serverAddress?: string;
};

/** An answer, or the code and message that a caller sees. */
export type Reply<Value> = { readonly value: Value } | { readonly code: number; readonly message: string };

/** Any message as field number -> values; nested messages stay bytes. */
export type Fields = Map<number, (Uint8Array | bigint)[]>;

export class CriClient implements Disposable {
  readonly #client: Client;

  constructor(socket: string) {
    this.#client = new Client(`unix:${socket}`, credentials.createInsecure(), {
      "grpc.default_authority": "localhost",
      "grpc.max_receive_message_length": 16 * 1024 * 1024,
      // Servers under test start and restart all the time.
      "grpc.initial_reconnect_backoff_ms": 20,
      "grpc.max_reconnect_backoff_ms": 200,
    });
  }

  [Symbol.dispose](): void {
    this.#client.close();
  }

  /** A call in bytes. */
  async raw(
    path: string,
    request: Uint8Array,
    signal?: AbortSignal,
    metadata = new Metadata(),
  ): Promise<Buffer> {
    return await new Promise((resolve, reject) => {
      const identity = (bytes: Buffer): Buffer => bytes;
      const call = this.#client.makeUnaryRequest(
        path,
        identity,
        identity,
        Buffer.from(request),
        metadata,
        {},
        (error: ServiceError | null, answer?: Buffer) => {
          signal?.removeEventListener("abort", cancel);
          if (error) reject(error);
          else resolve(answer ?? Buffer.alloc(0));
        },
      );
      const cancel = (): void => call.cancel();
      signal?.addEventListener("abort", cancel, { once: true });
    });
  }

  /** Every message of an answer, in bytes, of any service of containerd's in the namespace of CRI. */
  async containerd(path: string, request: Uint8Array = new Uint8Array()): Promise<Buffer[]> {
    const identity = (bytes: Buffer): Buffer => bytes;
    const metadata = new Metadata();
    metadata.set("containerd-namespace", "k8s.io");
    const full = `/containerd.services.${path}`;
    const call = this.#client.makeServerStreamRequest(
      full,
      identity,
      identity,
      Buffer.from(request),
      metadata,
      {},
    );
    const messages: Buffer[] = [];
    for await (const one of call) messages.push(one as Buffer);
    return messages;
  }

  async image<Request extends DescMessage>(
    method: string,
    schema: Request,
    request: MessageInitShape<Request>,
  ) {
    return await this.raw(`/runtime.v1.ImageService/${method}`, toBinary(schema, create(schema, request)));
  }

  /** The image id, or the code and message of the error. */
  async pull(
    reference: string,
    auth?: Auth,
    options: { version?: string; signal?: AbortSignal } = {},
  ): Promise<Reply<string>> {
    const request = create(PullImageRequestSchema, { image: { image: reference }, ...(auth && { auth }) });
    try {
      const path = `/${options.version ?? "runtime.v1"}.ImageService/PullImage`;
      const bytes = await this.raw(path, toBinary(PullImageRequestSchema, request), options.signal);
      return { value: fromBinary(PullImageResponseSchema, bytes).imageRef };
    } catch (error) {
      const { code, details } = error as ServiceError;
      return { code, message: details };
    }
  }

  /** The id; throws what the pull answered otherwise. */
  async mustPull(reference: string, auth?: Auth): Promise<string> {
    const reply = await this.pull(reference, auth);
    if ("value" in reply) return reply.value;
    throw new Error(`pull of ${reference}: code ${reply.code}: ${reply.message}`);
  }

  /** The ImageStatusResponse, verbose. */
  async imageStatus(reference: string): Promise<Buffer> {
    return await this.raw(
      "/runtime.v1.ImageService/ImageStatus",
      message([1, message([1, reference])], [2, 1]),
    );
  }

  async listImages(): Promise<Buffer> {
    return await this.raw("/runtime.v1.ImageService/ListImages", new Uint8Array());
  }

  async removeImage(reference: string): Promise<void> {
    await this.raw("/runtime.v1.ImageService/RemoveImage", message([1, message([1, reference])]));
  }

  /** The info["config"] of RuntimeService.Status. */
  async runtimeConfig(): Promise<string> {
    const bytes = await this.raw("/runtime.v1.RuntimeService/Status", message([1, 1]));
    return fromBinary(StatusResponseSchema, bytes).info["config"] ?? "";
  }

  async runtime(method: string, request: Uint8Array): Promise<Fields> {
    return fields(await this.raw(`/runtime.v1.RuntimeService/${method}`, request));
  }
}

/** Encodes fields: strings, bytes and nested messages as length-delimited, numbers as varints. */
export function message(
  ...entries: readonly (readonly [number, string | Uint8Array | number])[]
): Uint8Array {
  const writer = new BinaryWriter();
  for (const [field, value] of entries) {
    if (typeof value === "number") writer.tag(field, WireType.Varint).int64(value);
    else if (typeof value === "string") writer.tag(field, WireType.LengthDelimited).string(value);
    else writer.tag(field, WireType.LengthDelimited).bytes(value);
  }
  return writer.finish();
}

export function fields(bytes: Uint8Array): Fields {
  const reader = new BinaryReader(bytes);
  const found: Fields = new Map();
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    const value =
      type === WireType.Varint
        ? BigInt(reader.int64())
        : type === WireType.LengthDelimited
          ? reader.bytes()
          : undefined;
    if (value === undefined) reader.skip(type);
    else found.set(field, [...(found.get(field) ?? []), value]);
  }
  return found;
}

export function textOf(found: Fields, field: number): string {
  const [value] = found.get(field) ?? [];
  return value instanceof Uint8Array ? Buffer.from(value).toString() : "";
}
