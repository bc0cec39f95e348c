// Snapshots of the fake containerd, laid out on disk and mounted as overlayfs does it, in folders that are really there.

import { chownSync, mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import { snapshots } from "../../../src/containerd/methods.ts";
import type { MountSchema, PrepareSnapshotRequestSchema } from "../../../src/proto/gen/containerd_pb.js";
import { Status } from "../containerd.ts";
import { type Caller, type Metadata, type Snapshot, snapshotType } from "./metadata.ts";
import type { Serving } from "./serving.ts";

type Mount = MessageInitShape<typeof MountSchema>;

/** Names the committed snapshot that a Prepare is for; Prepare refuses when that is there. */
const targetLabel = "containerd.io/snapshot.ref";

export const kinds = { view: 1, active: 2, committed: 3 } as const;

export function serveSnapshots(serving: Serving, metadata: Metadata): void {
  const service = new Snapshots(metadata);
  serving.unary(snapshots.prepare, (request, caller) => service.make("active", request, caller));
  serving.unary(snapshots.view, (request, caller) => service.make("view", request, caller));
  serving.unary(snapshots.commit, ({ name, key, labels }, caller) => {
    service.commit(name, key, labels, caller);
    return {};
  });
  serving.unary(snapshots.remove, ({ key }, caller) => {
    service.remove(key, caller);
    return {};
  });
  serving.unary(snapshots.stat, ({ key }, { namespace }) => {
    const { kind, parent, labels } = service.find(namespace, key);
    return { info: { name: key, parent, kind: kinds[kind], labels } };
  });
}

class Snapshots {
  readonly #metadata: Metadata;
  #count = 0;

  constructor(metadata: Metadata) {
    this.#metadata = metadata;
  }

  find(namespace: string, key: string): Snapshot {
    const snapshot = this.#metadata.of(namespace).snapshots.get(key);
    if (snapshot === undefined)
      throw new Status(status.NOT_FOUND, `snapshot ${key} does not exist: not found`);
    return snapshot;
  }

  make(
    kind: "active" | "view",
    { key, parent, labels }: MessageShape<typeof PrepareSnapshotRequestSchema>,
    caller: Caller,
  ): { mounts: Mount[] } {
    const { snapshots: known } = this.#metadata.within(caller.namespace);
    const target = labels[targetLabel];
    // Not held by the lease: 1.6 undoes that together with the failed transaction.
    if (target !== undefined && known.has(target))
      throw new Status(status.ALREADY_EXISTS, `target snapshot "${target}": already exists`);
    if (known.has(key)) throw new Status(status.ALREADY_EXISTS, `snapshot "${key}": already exists`);
    const below = parent === "" ? undefined : known.get(parent);
    if (parent !== "" && below === undefined)
      throw new Status(status.NOT_FOUND, `parent snapshot ${parent} does not exist: not found`);
    if (below && below.kind !== "committed")
      throw new Status(status.INVALID_ARGUMENT, `parent "${parent}" is not committed snapshot`);
    this.#metadata.hold(caller, snapshotType, key);
    this.#count += 1;
    const id = String(this.#count);
    this.#makeFolders(id, below);
    const snapshot = { kind, parent, labels, id };
    known.set(key, snapshot);
    return { mounts: [this.#mount(caller.namespace, snapshot)] };
  }

  commit(name: string, key: string, labels: Record<string, string>, caller: Caller): void {
    const { snapshots: known } = this.#metadata.of(caller.namespace);
    if (known.has(name)) throw new Status(status.ALREADY_EXISTS, `snapshot "${name}": already exists`);
    const active = this.find(caller.namespace, key);
    if (active.kind !== "active")
      throw new Status(status.FAILED_PRECONDITION, `snapshot ${key} is not active: failed precondition`);
    this.#metadata.hold(caller, snapshotType, name);
    this.#metadata.release(caller, snapshotType, key);
    known.delete(key);
    known.set(name, { kind: "committed", parent: active.parent, labels, id: active.id });
  }

  /** The record goes at once, the folders with the next collection. */
  remove(key: string, caller: Caller): void {
    this.find(caller.namespace, key);
    const { snapshots: known } = this.#metadata.of(caller.namespace);
    if ([...known.values()].some(({ parent }) => parent === key))
      throw new Status(status.FAILED_PRECONDITION, "cannot remove snapshot with child: failed precondition");
    known.delete(key);
    this.#metadata.release(caller, snapshotType, key);
    this.#metadata.deleted("snapshots");
  }

  #makeFolders(id: string, below: Snapshot | undefined): void {
    const folder = this.#metadata.snapshotPath(id);
    mkdirSync(join(folder, "fs"), { recursive: true, mode: 0o755 });
    mkdirSync(join(folder, "work"), { mode: 0o711 });
    if (below === undefined) return;
    const { uid, gid } = statSync(this.#upper(below));
    chownSync(join(folder, "fs"), uid, gid);
  }

  #upper({ id }: Snapshot): string {
    return join(this.#metadata.snapshotPath(id), "fs");
  }

  #mount(namespace: string, snapshot: Snapshot): Mount {
    const lowers = this.#parents(namespace, snapshot).map((one) => this.#upper(one));
    const lowerdir = `lowerdir=${lowers.join(":")}`;
    if (snapshot.kind === "view") {
      return lowers.length > 1
        ? { type: "overlay", source: "overlay", options: ["index=off", lowerdir] }
        : { type: "bind", source: lowers[0] ?? this.#upper(snapshot), options: ["ro", "rbind"] };
    }
    const upper = this.#upper(snapshot);
    if (lowers.length === 0) return { type: "bind", source: upper, options: ["rw", "rbind"] };
    const work = join(this.#metadata.snapshotPath(snapshot.id), "work");
    const options = ["index=off", `workdir=${work}`, `upperdir=${upper}`, lowerdir];
    return { type: "overlay", source: "overlay", options };
  }

  /** Nearest first. */
  #parents(namespace: string, { parent }: Snapshot): Snapshot[] {
    if (parent === "") return [];
    const below = this.find(namespace, parent);
    return [below, ...this.#parents(namespace, below)];
  }
}
