// The content store: small blobs are written over gRPC, layers are adopted as files.
//
// A Write stream holds an exclusive lock on its ref in containerd, so it is opened, used and ended without a pause.
// Refs are ours alone ("hawser-<digest>"): containerd's own pulls never wait for them.

import { chmod, link, mkdir, open } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import type { ClientDuplexStream, ServiceError } from "@grpc/grpc-js";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { hexOf } from "../oci/digest.ts";
import { type Channel, fromStatus } from "./channel.ts";
import type { Labels } from "./containerd.ts";
import { content, leases } from "./methods.ts";

type WriteRequest = MessageInitShape<typeof content.write.request>;
type WriteResponse = MessageShape<typeof content.write.response>;

const actions = { stat: 0, write: 1, commit: 2 } as const;

/** How much of a streamed blob goes into one message; containerd refuses messages over 16 MiB. */
const pieceBytes = 1024 * 1024;

/** True when the blob is in our namespace; the lease then holds it. */
export async function holdContent(channel: Channel, lease: string, descriptor: Descriptor): Promise<boolean> {
  const id = descriptor.digest;
  try {
    await channel.call(content.info, { digest: id });
  } catch (error) {
    if (error instanceof PullError && error.code === "not_found") return false;
    throw error;
  }
  await channel.call(leases.addResource, { id: lease, resource: { id, type: "content" } });
  return true;
}

/** Writes a blob that is in memory; success when it is there already. */
export async function putContent(
  channel: Channel,
  lease: string,
  descriptor: Descriptor,
  bytes: Uint8Array,
  labels: Labels,
): Promise<void> {
  await write(channel, lease, descriptor, labels, async (writer) => {
    await writer.send({ action: actions.write, offset: 0n, data: bytes });
    return bytes.length;
  });
}

/**
 * Makes a verified file a blob of the content store. The file is linked to where containerd keeps blobs; a Write that
 * expects this digest then finds it there and takes it over without reading it (content sharing, the default policy).
 * Where containerd does not, the bytes are streamed. The file itself is left alone.
 */
export async function adoptContent(
  channel: Channel,
  lease: string,
  contentRoot: string,
  descriptor: Descriptor,
  file: string,
  labels: Labels,
): Promise<void> {
  const blob = join(contentRoot, "blobs", "sha256", hexOf(descriptor.digest));
  if (!(await holdContent(channel, lease, descriptor))) {
    await mkdir(dirname(blob), { recursive: true });
    await chmod(file, 0o444);
    await link(file, blob).catch(ignore("EEXIST"));
  }
  await write(channel, lease, descriptor, labels, (writer) => stream(writer, file));
}

/** Adds labels to a blob that was there before; labels that it has are left as they are. */
async function addLabels(channel: Channel, descriptor: Descriptor, labels: Labels): Promise<void> {
  if (Object.keys(labels).length === 0) return;
  const { info } = await channel.call(content.info, { digest: descriptor.digest });
  const missing = Object.entries(labels).filter(([key]) => info?.labels[key] === undefined);
  if (missing.length === 0) return;
  const paths = missing.map(([key]) => `labels.${key}`);
  await channel.call(content.update, {
    info: { digest: descriptor.digest, labels: Object.fromEntries(missing) },
    updateMask: { paths },
  });
}

/** One Write from STAT to COMMIT; `fill` brings the bytes when containerd has none, and returns how many they were. */
async function write(
  channel: Channel,
  lease: string,
  descriptor: Descriptor,
  labels: Labels,
  fill: (writer: Writer) => Promise<number>,
): Promise<void> {
  const total = BigInt(descriptor.size);
  const ref = `hawser-${descriptor.digest}`;
  const writer = new Writer(channel.stream(content.write, { lease }));
  try {
    const stat = await writer.send({ action: actions.stat, ref, total, expected: descriptor.digest });
    const offset = stat.offset === total ? total : BigInt(await fill(writer));
    const commit = { action: actions.commit, ref, total, expected: descriptor.digest, offset, labels };
    await writer.send(commit);
  } catch (error) {
    if (!(error instanceof PullError && error.code === "exists")) throw error;
    await addLabels(channel, descriptor, labels);
  } finally {
    writer.end();
  }
}

async function stream(writer: Writer, file: string): Promise<number> {
  await using handle = await open(file);
  const buffer = Buffer.allocUnsafe(pieceBytes);
  let offset = 0;
  for (;;) {
    const { bytesRead } = await handle.read(buffer, 0, pieceBytes, offset);
    if (bytesRead === 0) return offset;
    await writer.send({ action: actions.write, offset: BigInt(offset), data: buffer.subarray(0, bytesRead) });
    offset += bytesRead;
  }
}

/** The client's end of a Write: each message is answered before the next is sent. */
class Writer {
  readonly #call: ClientDuplexStream<WriteRequest, WriteResponse>;
  #settle: { resolve(answer: WriteResponse): void; reject(error: PullError): void } | undefined;
  #failure: PullError | undefined;

  constructor(call: ClientDuplexStream<WriteRequest, WriteResponse>) {
    this.#call = call;
    call.on("data", (answer: WriteResponse) => this.#settle?.resolve(answer));
    call.on("error", (error: ServiceError) => this.#fail(fromStatus(error, content.write.path)));
    call.on("end", () =>
      this.#fail(new PullError("unavailable", "containerd ended a Write", { temporary: true })),
    );
  }

  async send(request: WriteRequest): Promise<WriteResponse> {
    if (this.#failure) throw this.#failure;
    return await new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
      this.#call.write(request);
    });
  }

  end(): void {
    this.#call.end();
  }

  #fail(error: PullError): void {
    this.#failure ??= error;
    this.#settle?.reject(error);
  }
}

function ignore(code: string): (error: NodeJS.ErrnoException) => void {
  return (error) => {
    if (error.code !== code) throw new PullError("internal", error.message, { cause: error });
  };
}
