// The content store of the fake containerd: small records, and blobs that are files where containerd has them.
//
// A Write follows containerd's own server message by message: its ref is locked while it is open; a blob that this
// namespace has ends it, and is the lease's from then on only if it was there at the first message; a file of the
// right size that is on disk already is taken over without being read (content sharing).

import { createHash } from "node:crypto";
import { existsSync, renameSync, statSync, writeFileSync } from "node:fs";
import type { MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import { content } from "../../../src/containerd/methods.ts";
import { Status } from "../containerd.ts";
import type { Blob, Caller, Ingest, Labels, Metadata } from "./metadata.ts";
import type { Serving, Session } from "./serving.ts";

type WriteRequest = MessageShape<typeof content.write.request>;
type WriteResponse = MessageInitShape<typeof content.write.response>;

export interface ContentOptions {
  /** A namespace does not see what only others have (`content_sharing_policy = "isolated"`). */
  readonly isolated: boolean;
}

export function serveContent(serving: Serving, metadata: Metadata, { isolated }: ContentOptions): void {
  const find = (namespace: string, digest: string): Blob => {
    const blob = metadata.of(namespace).blobs.get(digest);
    if (blob === undefined) throw new Status(status.NOT_FOUND, `content ${digest}: not found`);
    return blob;
  };

  serving.unary(content.info, ({ digest }, { namespace }) => ({
    info: { digest, ...find(namespace, digest) },
  }));

  serving.unary(content.update, ({ info, updateMask }, { namespace }) => {
    const digest = info?.digest ?? "";
    const blob = find(namespace, digest);
    for (const path of updateMask?.paths ?? []) {
      const [, label] = /^labels\.(.+)$/.exec(path) ?? [];
      if (label === undefined)
        throw new Status(status.INVALID_ARGUMENT, `cannot update ${path} field on content info`);
      blob.labels[label] = info?.labels[label] ?? "";
    }
    return { info: { digest, ...blob } };
  });

  serving.unary(content.abort, ({ ref }, { namespace }) => {
    if (!metadata.of(namespace).ingests.delete(ref))
      throw new Status(status.NOT_FOUND, `content ref ${ref}: not found`);
    return {};
  });

  const locked = new Set<string>();
  serving.duplex(content.write, (caller) => new Write(metadata, caller, locked, isolated));
}

const actions = ["STAT", "WRITE", "COMMIT"] as const;

class Write implements Session<WriteRequest, WriteResponse> {
  readonly #metadata: Metadata;
  readonly #caller: Caller;
  readonly #locked: Set<string>;
  readonly #isolated: boolean;
  #open: { readonly ref: string; readonly ingest: Ingest } | undefined;
  #lock: string | undefined;
  #total = 0n;

  constructor(metadata: Metadata, caller: Caller, locked: Set<string>, isolated: boolean) {
    this.#metadata = metadata;
    this.#caller = caller;
    this.#locked = locked;
    this.#isolated = isolated;
  }

  name({ action }: WriteRequest): string {
    return actions[action] ?? String(action);
  }

  closed(): void {
    if (this.#lock !== undefined) this.#locked.delete(this.#lock);
    this.#lock = undefined;
  }

  take(request: WriteRequest): { answer: WriteResponse; isLast: boolean } {
    this.#open ??= this.#begin(request);
    const { ref, ingest } = this.#open;
    const { action, expected, total } = request;
    if (total > 0n && this.#total > 0n && total !== this.#total)
      throw new Status(status.FAILED_PRECONDITION, "provided total differs from previously set total");
    if (total > 0n) this.#total = total;
    if (expected !== "" && this.#blobs.has(expected)) {
      this.#metadata.of(this.#caller.namespace).ingests.delete(ref);
      throw new Status(status.ALREADY_EXISTS, `blob with expected digest ${expected} exists`);
    }
    if (action !== 0) this.#write(request, ingest);
    if (action === 2) this.#commit(ref, ingest, expected, request.labels);
    const answer = { action, offset: offsetOf(ingest), total: this.#total, digest: expected };
    return { answer, isLast: action === 2 };
  }

  get #blobs(): ReadonlyMap<string, Blob> {
    return this.#metadata.of(this.#caller.namespace).blobs;
  }

  #begin({ ref, total, expected }: WriteRequest): { ref: string; ingest: Ingest } {
    if (ref === "") throw new Status(status.INVALID_ARGUMENT, "first message must have a reference");
    if (this.#blobs.has(expected)) {
      this.#metadata.hold(this.#caller, "content", expected);
      throw new Status(status.ALREADY_EXISTS, `content ${expected}: already exists`);
    }
    const lock = `${this.#caller.namespace} ${ref}`;
    if (this.#locked.has(lock)) throw new Status(status.UNAVAILABLE, `ref ${ref} locked for 1s: unavailable`);
    this.#metadata.hold(this.#caller, "ingests", ref);
    this.#locked.add(lock);
    this.#lock = lock;
    const shared = !this.#isolated && this.#isOnDisk(expected, total) ? expected : undefined;
    const { ingests } = this.#metadata.within(this.#caller.namespace);
    const ingest = ingests.get(ref) ?? { total, shared, data: Buffer.alloc(0) };
    ingests.set(ref, ingest);
    return { ref, ingest };
  }

  /** Whatever file lies where the blob would, if its size is right. */
  #isOnDisk(digest: string, total: bigint): boolean {
    const path = this.#metadata.blobPath(digest);
    return digest !== "" && existsSync(path) && BigInt(statSync(path).size) === total;
  }

  #write({ offset, data }: WriteRequest, ingest: Ingest): void {
    const current = offsetOf(ingest);
    if (offset > 0n && offset !== current)
      throw new Status(status.OUT_OF_RANGE, `write @${offset} must occur at current offset ${current}`);
    if (offset === 0n && current > 0n) {
      ingest.shared = undefined;
      ingest.data = Buffer.alloc(0);
    }
    if (data.length > 0) ingest.data = Buffer.concat([ingest.data, data]);
  }

  #commit(ref: string, ingest: Ingest, expected: string, labels: Labels): void {
    const [size, total] = [offsetOf(ingest), this.#total];
    if (total > 0n && total !== size) {
      const sizes = `${size} != ${total}`;
      throw new Status(
        status.FAILED_PRECONDITION,
        `"${ref}" failed size validation: ${sizes}: failed precondition`,
      );
    }
    const digest = ingest.shared ?? `sha256:${createHash("sha256").update(ingest.data).digest("hex")}`;
    if (expected !== "" && expected !== digest) {
      const text = `unexpected commit digest ${digest}, expected ${expected}: failed precondition`;
      throw new Status(status.FAILED_PRECONDITION, text);
    }
    this.#metadata.hold(this.#caller, "content", digest);
    this.#metadata.release(this.#caller, "ingests", ref);
    if (ingest.shared === undefined) this.#place(digest, ingest.data);
    const { ingests, blobs } = this.#metadata.within(this.#caller.namespace);
    ingests.delete(ref);
    blobs.set(digest, { size, labels });
  }

  /** What lies there already stays. */
  #place(digest: string, data: Buffer): void {
    const path = this.#metadata.blobPath(digest);
    if (existsSync(path)) return;
    writeFileSync(`${path}.new`, data, { mode: 0o444 });
    renameSync(`${path}.new`, path);
  }
}

/** Of a blob that is taken over, all is there from the start. */
function offsetOf({ shared, total, data }: Ingest): bigint {
  return shared === undefined ? BigInt(data.length) : total;
}
