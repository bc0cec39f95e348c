// The content store: small blobs are written over gRPC, layers are adopted as files.
//
// A Write stream holds an exclusive lock on its ref in containerd, so every Write has a ref of its own: neither
// containerd's pulls nor two of ours that need the same blob ever wait for each other. No Write leaves an ingest behind.

import { randomUUID } from "node:crypto";
import { chmod, type FileHandle, link, mkdir, open, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import type { ClientDuplexStream, ServiceError } from "@grpc/grpc-js";
import { PullError } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { type Digest, hexOf } from "../oci/digest.ts";
import { type Channel, fromStatus } from "./channel.ts";
import type { Labels } from "./containerd.ts";
import { content, leases } from "./methods.ts";

type WriteRequest = MessageInitShape<typeof content.write.request>;
type WriteResponse = MessageShape<typeof content.write.response>;

const actions = { stat: 0, write: 1, commit: 2 } as const;

/** How much of a streamed blob goes into one message; containerd refuses messages over 16 MiB. */
const pieceBytes = 1024 * 1024;

/** A Write may take a minute, and longer for a blob whose bytes a slow disk has to take and sync. */
const writeLimit = { baseMs: 60_000, bytesPerMs: 10_000 } as const;

/** A blob that somebody else wrote may be collected before it is held; writing it is then tried again, so often. */
const attemptsMax = 3;

/** True when the blob is in our namespace; the lease then holds it. */
export async function holdContent(channel: Channel, lease: string, descriptor: Descriptor): Promise<boolean> {
  const id = descriptor.digest;
  try {
    await channel.call(content.info, { digest: id });
    await channel.call(leases.addResource, { id: lease, resource: { id, type: "content" } });
    // It may have been collected between the two calls; once the lease holds it, it cannot be.
    await channel.call(content.info, { digest: id });
    return true;
  } catch (error) {
    if (error instanceof PullError && error.code === "not_found") return false;
    throw error;
  }
}

/** Writes a blob that is in memory; success when it is there already. */
export async function putContent(
  channel: Channel,
  lease: string,
  descriptor: Descriptor,
  bytes: Uint8Array,
  labels: Labels,
): Promise<void> {
  await write(channel, lease, descriptor, labels, async (writer, commit) => {
    // One message for all: from offset 0, containerd takes the bytes even where it could take over what lies there.
    await writer.send({ ...commit, offset: 0n, data: bytes });
  });
}

/**
 * Makes a verified, durable file a blob of the content store. The file is linked to where containerd keeps blobs; a
 * Write that expects this digest then finds it there and takes it over without reading it (content sharing, the default
 * policy). Where containerd does not, or the file cannot be linked there, the bytes are streamed. The caller removes
 * the file's former name.
 */
export async function adoptContent(
  channel: Channel,
  lease: string,
  contentRoot: string,
  descriptor: Descriptor,
  file: string,
  labels: Labels,
): Promise<void> {
  // Opened first: the bytes can still be read from here if garbage collection removes the blob before the Write.
  await using handle = await open(file);
  const blob = join(contentRoot, "blobs", "sha256", hexOf(descriptor.digest));
  if (!(await holdContent(channel, lease, descriptor))) await place(file, blob);
  failpoint("adoption-placed");
  await write(channel, lease, descriptor, labels, async (writer, commit) => {
    const { ref, total, expected } = commit;
    const stat = await writer.send({ action: actions.stat, ref, total, expected });
    const offset = stat.offset === total ? total : BigInt(await stream(writer, handle));
    await writer.send({ ...commit, offset });
  });
}

/**
 * Gives the file its blob's path as a second name. Whatever lies there is replaced: containerd takes a file of the right
 * size on trust, and only ours is known to have the right bytes. Until containerd has taken it over it may remove that
 * name as an unknown file's, so the first name stays. Failure (another file system) is no error: see adoptContent.
 */
async function place(file: string, blob: string): Promise<void> {
  try {
    await mkdir(dirname(blob), { recursive: true });
    await chmod(file, 0o444);
    // In one step, since what lies there may be the blob of another namespace.
    const second = `${file}.blob`;
    await rm(second, { force: true });
    await link(file, second);
    failpoint("adoption-placing");
    await rename(second, blob);
    // It is still there when both were one file already.
    await rm(second, { force: true });
    // containerd's record of the blob is durable once written, so the name must be so before it.
    await using folder = await open(dirname(blob));
    await folder.sync();
  } catch {
    // The Write that follows finds no blob and asks for the bytes.
  }
}

/** Where containerd notes which repositories of a host have a blob, in a list. */
const sourcePrefix = "containerd.io/distribution.source.";

/** Most bytes of a label, key and value together (containerd's labels.Validate). */
const labelBytesMax = 4096;

/** Gives a blob labels besides those that it has. */
export async function mergeLabels(channel: Channel, digest: Digest, labels: Labels): Promise<void> {
  if (Object.keys(labels).length === 0) return;
  const { info } = await channel.call(content.info, { digest });
  const merged = Object.entries(labels).map(
    ([key, value]) => [key, mergeLabel(key, info?.labels[key], value)] as const,
  );
  const changed = merged.filter(([key, value]) => info?.labels[key] !== value);
  if (changed.length === 0) return;
  await channel.call(content.update, {
    info: { digest, labels: Object.fromEntries(changed) },
    updateMask: { paths: changed.map(([key]) => `labels.${key}`) },
  });
}

/** Repositories become one sorted list, as containerd writes it, for as long as it fits; everything else stays as it is. */
export function mergeLabel(key: string, present: string | undefined, value: string): string {
  if (!present) return value;
  if (!key.startsWith(sourcePrefix)) return present;
  const merged = [...new Set([...present.split(","), value])].sort().join(",");
  return key.length + merged.length > labelBytesMax ? present : merged;
}

interface Commit {
  readonly action: typeof actions.commit;
  readonly ref: string;
  readonly total: bigint;
  readonly expected: string;
  readonly labels: Labels;
}

/** Sends what is to be sent; the last message is the given one, with offset and bytes. */
type Fill = (writer: Writer, commit: Commit) => Promise<void>;

/** Writes until the blob is there and the lease holds it; what somebody else wrote is labelled as well. */
async function write(
  channel: Channel,
  lease: string,
  descriptor: Descriptor,
  labels: Labels,
  fill: Fill,
): Promise<void> {
  for (let attempt = 0; attempt < attemptsMax; attempt++) {
    try {
      await writeOnce(channel, lease, descriptor, labels, fill);
      return;
    } catch (error) {
      if (!(error instanceof PullError && error.code === "exists")) throw error;
      // Containerd has added it to the lease if it was there at the first message, and has not if it came later.
      if (await holdContent(channel, lease, descriptor)) {
        await mergeLabels(channel, descriptor.digest, labels);
        return;
      }
    }
  }
  throw new PullError("unavailable", `blob ${descriptor.digest} is collected as fast as it is written`, {
    temporary: true,
  });
}

/** One Write. Throws `exists` when the blob is there already. */
async function writeOnce(
  channel: Channel,
  lease: string,
  descriptor: Descriptor,
  labels: Labels,
  fill: Fill,
): Promise<void> {
  const total = BigInt(descriptor.size);
  const ref = `hawser-${randomUUID()}`;
  const limitMs = writeLimit.baseMs + descriptor.size / writeLimit.bytesPerMs;
  const writer = new Writer(channel.stream(content.write, { lease, limitMs }));
  try {
    await fill(writer, { action: actions.commit, ref, total, expected: descriptor.digest, labels });
    await writer.close();
  } catch (error) {
    // The ref is locked until the stream is over.
    await writer.close();
    // An ingest that cannot be aborted now goes with its lease.
    await channel.call(content.abort, { ref }, { lease }).catch(() => {});
    throw error;
  }
}

async function stream(writer: Writer, handle: FileHandle): Promise<number> {
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
  readonly #over: Promise<void>;

  constructor(call: ClientDuplexStream<WriteRequest, WriteResponse>) {
    this.#call = call;
    call.on("data", (answer: WriteResponse) => this.#settle?.resolve(answer));
    call.on("error", (error: ServiceError) => this.#fail(fromStatus(error, content.write.path)));
    call.on("end", () =>
      this.#fail(new PullError("unavailable", "containerd ended a Write", { temporary: true })),
    );
    this.#over = new Promise((resolve) => {
      call.on("status", () => resolve());
    });
  }

  async send(request: WriteRequest): Promise<WriteResponse> {
    if (this.#failure) throw this.#failure;
    return await new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
      this.#call.write(request);
    });
  }

  /** Ends the stream and waits until containerd has ended it too. Never throws. */
  async close(): Promise<void> {
    this.#call.end();
    await this.#over;
  }

  #fail(error: PullError): void {
    this.#failure ??= error;
    this.#settle?.reject(error);
  }
}
