// What the fake containerd knows: records by namespace, as containerd's metadata store has them, and garbage collection.
//
// Blobs and layers are real files below real roots, since Hawser links and renames into them. Everything happens in
// one turn of the event loop, like a transaction. Leases never expire here.

import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { status } from "@grpc/grpc-js";
import { Status } from "../containerd.ts";

export type Labels = Record<string, string>;

/** Who makes a call, from its headers. */
export interface Caller {
  readonly namespace: string;
  readonly lease: string | undefined;
}

export interface Lease {
  readonly labels: Labels;
  /** Of each type, the names that it holds. */
  readonly resources: Map<string, Set<string>>;
}

export interface Blob {
  readonly size: bigint;
  readonly labels: Labels;
}

export interface Ingest {
  readonly total: bigint;
  /** Set when the bytes are those of a blob that is on disk already: they are neither read nor copied. */
  shared: string | undefined;
  data: Buffer;
}

export interface Snapshot {
  readonly kind: "view" | "active" | "committed";
  readonly parent: string;
  readonly labels: Labels;
  /** Name of its folder. */
  readonly id: string;
}

interface Image {
  readonly labels: Labels;
  /** What it stands for: a blob. */
  readonly mediaType: string;
  readonly digest: string;
  readonly size: bigint;
}

export interface Namespace {
  readonly leases: Map<string, Lease>;
  readonly blobs: Map<string, Blob>;
  readonly ingests: Map<string, Ingest>;
  readonly snapshots: Map<string, Snapshot>;
  readonly images: Map<string, Image>;
}

export const snapshotType = "snapshots/overlayfs";

/** How soon a deletion is followed by a collection. */
const collectAfterMs = 5;

function empty(): Namespace {
  return {
    leases: new Map(),
    blobs: new Map(),
    ingests: new Map(),
    snapshots: new Map(),
    images: new Map(),
  };
}

export class Metadata implements Disposable {
  readonly contentRoot: string;
  readonly snapshotterRoot: string;
  readonly namespaces = new Map<string, Namespace>();
  /** Something of the kind was removed, so that the next collection looks for its files. */
  #dirty = { content: false, snapshots: false };
  #timer: NodeJS.Timeout | undefined;

  constructor(folder: string) {
    this.contentRoot = join(folder, "root/io.containerd.content.v1.content");
    this.snapshotterRoot = join(folder, "root/io.containerd.snapshotter.v1.overlayfs");
    for (const path of [join(this.contentRoot, "blobs/sha256"), join(this.snapshotterRoot, "snapshots")])
      mkdirSync(path, { recursive: true });
  }

  blobPath(digest: string): string {
    return join(this.contentRoot, "blobs/sha256", digest.slice("sha256:".length));
  }

  snapshotPath(id: string): string {
    return join(this.snapshotterRoot, "snapshots", id);
  }

  /** To read from; what is put into one that is not there yet is lost. */
  of(namespace: string): Namespace {
    return this.namespaces.get(namespace) ?? empty();
  }

  /** To write into; the first write makes the namespace. */
  within(namespace: string): Namespace {
    const found = this.namespaces.get(namespace) ?? empty();
    this.namespaces.set(namespace, found);
    return found;
  }

  /** The caller's lease holds this from now on; without a lease nothing does. */
  hold({ namespace, lease }: Caller, type: string, id: string): void {
    if (lease === undefined) return;
    const found = this.of(namespace).leases.get(lease);
    if (found === undefined) throw new Status(status.NOT_FOUND, "lease does not exist: not found");
    found.resources.set(type, (found.resources.get(type) ?? new Set()).add(id));
  }

  release({ namespace, lease }: Caller, type: string, id: string): void {
    if (lease === undefined) return;
    this.of(namespace).leases.get(lease)?.resources.get(type)?.delete(id);
  }

  /** Something was deleted: garbage collection runs soon, as in containerd. */
  deleted(what?: "content" | "snapshots"): void {
    if (what) this.#dirty[what] = true;
    this.#timer ??= setTimeout(() => this.collect(), collectAfterMs);
  }

  /** Garbage collection, at once. */
  collect(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (const namespace of this.namespaces.values()) {
      const marked = mark(namespace);
      const sweep = (type: string, records: Map<string, unknown>, dirties: "content" | "snapshots"): void => {
        for (const id of records.keys()) {
          if (marked.has(nodeOf(type, id))) continue;
          records.delete(id);
          this.#dirty[dirties] = true;
        }
      };
      sweep("content", namespace.blobs, "content");
      sweep("ingests", namespace.ingests, "content");
      sweep(snapshotType, namespace.snapshots, "snapshots");
    }
    if (this.#dirty.content) this.#removeUnknown(join(this.contentRoot, "blobs/sha256"), this.#knownBlobs());
    if (this.#dirty.snapshots)
      this.#removeUnknown(join(this.snapshotterRoot, "snapshots"), this.#knownFolders());
    this.#dirty = { content: false, snapshots: false };
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }

  #removeUnknown(folder: string, known: ReadonlySet<string>): void {
    for (const name of readdirSync(folder))
      if (!known.has(name)) rmSync(join(folder, name), { recursive: true });
  }

  #knownBlobs(): Set<string> {
    const known = new Set<string>();
    for (const { blobs, ingests } of this.namespaces.values()) {
      for (const digest of blobs.keys()) known.add(basename(this.blobPath(digest)));
      for (const { shared } of ingests.values()) if (shared) known.add(basename(this.blobPath(shared)));
    }
    return known;
  }

  #knownFolders(): Set<string> {
    const known = new Set<string>();
    for (const { snapshots } of this.namespaces.values())
      for (const { id } of snapshots.values()) known.add(id);
    return known;
  }
}

const nodeOf = (type: string, id: string): string => `${type} ${id}`;

/** Everything that leases and images reach: through labels from blob to blob and snapshot, and to parents. */
function mark(namespace: Namespace): Set<string> {
  const marked = new Set<string>();
  const visit = (type: string, id: string): void => {
    const node = nodeOf(type, id);
    if (marked.has(node)) return;
    marked.add(node);
    if (type === snapshotType) {
      const parent = namespace.snapshots.get(id)?.parent;
      if (parent) visit(snapshotType, parent);
    }
    const labels = type === "content" ? (namespace.blobs.get(id)?.labels ?? {}) : {};
    for (const [key, value] of Object.entries(labels)) {
      if (key.startsWith("containerd.io/gc.ref.content.")) visit("content", value);
      if (key.startsWith("containerd.io/gc.ref.snapshot.overlayfs")) visit(snapshotType, value);
    }
  };
  for (const { resources } of namespace.leases.values())
    for (const [type, ids] of resources) for (const id of ids) visit(type, id);
  for (const { digest } of namespace.images.values()) visit("content", digest);
  return marked;
}
