// The objects of a cluster, by the path of their collection, with a version for every change, a log of changes that is
// kept until it is compacted, and listeners that are told of each.

import { randomUUID } from "node:crypto";
import { isDeepStrictEqual } from "node:util";

export interface ApiObject {
  readonly metadata: Readonly<Record<string, unknown>> & {
    readonly name: string;
    readonly namespace?: string;
  };
  readonly [key: string]: unknown;
}

export interface ApiChange {
  readonly type: "ADDED" | "MODIFIED" | "DELETED";
  readonly collection: string;
  readonly object: ApiObject;
  /** As it was before, if it was. */
  readonly former: ApiObject | undefined;
  readonly version: number;
}

export type Listener = (change: ApiChange) => void;

/** What every API server has, and how one of each is called. */
const builtIn: Readonly<Record<string, string>> = {
  "/api/v1/pods": "Pod",
  "/api/v1/nodes": "Node",
  "/api/v1/secrets": "Secret",
  "/api/v1/configmaps": "ConfigMap",
  "/api/v1/namespaces": "Namespace",
  "/api/v1/events": "Event",
  "/apis/apps/v1/statefulsets": "StatefulSet",
  "/apis/apps/v1/daemonsets": "DaemonSet",
  "/apis/apps/v1/deployments": "Deployment",
  "/apis/apps/v1/replicasets": "ReplicaSet",
  "/apis/apps/v1/controllerrevisions": "ControllerRevision",
  "/apis/coordination.k8s.io/v1/leases": "Lease",
};

export class ObjectStore {
  readonly #collections = new Map<string, Map<string, ApiObject>>();
  readonly #kinds = new Map<string, string>();
  readonly #listeners = new Set<Listener>();
  readonly #untold: ApiChange[] = [];
  #isTelling = false;
  #log: ApiChange[] = [];
  #version = 1000;
  /** Changes up to this version are forgotten. */
  #compacted = 0;

  constructor() {
    for (const [collection, kind] of Object.entries(builtIn)) this.register(collection, kind);
  }

  get version(): number {
    return this.#version;
  }

  get compacted(): number {
    return this.#compacted;
  }

  register(collection: string, kind?: string): void {
    if (!this.#collections.has(collection)) this.#collections.set(collection, new Map());
    if (kind !== undefined) this.#kinds.set(collection, kind);
  }

  isKnown(collection: string): boolean {
    return this.#collections.has(collection);
  }

  read(collection: string, name: string, namespace: string): ApiObject | undefined {
    return this.#collections.get(collection)?.get(`${namespace}/${name}`);
  }

  /** Of one namespace, or of all. */
  list(collection: string, namespace = ""): ApiObject[] {
    const all = [...(this.#collections.get(collection)?.values() ?? [])];
    return namespace === "" ? all : all.filter(({ metadata }) => metadata.namespace === namespace);
  }

  /** Adds an object or changes it; a uid, a generation and a version are given to it here. */
  put(collection: string, object: ApiObject): ApiObject {
    this.register(collection);
    const former = this.read(collection, object.metadata.name, object.metadata.namespace ?? "");
    const version = ++this.#version;
    const stored = { ...this.#typeOf(collection), ...object, metadata: metadataOf(object, former, version) };
    this.#collections.get(collection)?.set(keyOf(object), stored);
    this.#tell({ type: former ? "MODIFIED" : "ADDED", collection, object: stored, former, version });
    return stored;
  }

  remove(collection: string, name: string, namespace: string): void {
    const former = this.read(collection, name, namespace);
    if (former === undefined) throw new Error(`there is no ${namespace}/${name}`);
    this.#collections.get(collection)?.delete(`${namespace}/${name}`);
    const version = ++this.#version;
    const object = { ...former, metadata: { ...former.metadata, resourceVersion: String(version) } };
    this.#tell({ type: "DELETED", collection, object, former, version });
  }

  /** What changed since a version, as far as it is not forgotten. */
  since(version: number): readonly ApiChange[] {
    return this.#log.filter((change) => change.version > version);
  }

  compact(): void {
    this.#log = [];
    this.#compacted = this.#version;
  }

  /** Calls it after each change, in order, until what this returns is called. */
  listen(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** A listener that changes something is told of that after all the others know what made it do so. */
  #tell(change: ApiChange): void {
    this.#log.push(change);
    this.#untold.push(change);
    if (this.#isTelling) return;
    this.#isTelling = true;
    try {
      for (let next = this.#untold.shift(); next; next = this.#untold.shift())
        for (const listener of this.#listeners) listener(next);
    } finally {
      this.#isTelling = false;
    }
  }

  #typeOf(collection: string): object {
    const kind = this.#kinds.get(collection);
    const apiVersion = collection.replace(/^\/apis?\//, "").replace(/\/[^/]+$/, "");
    return kind === undefined ? {} : { apiVersion, kind };
  }
}

function keyOf({ metadata }: ApiObject): string {
  return `${metadata.namespace ?? ""}/${metadata.name}`;
}

function metadataOf(
  object: ApiObject,
  former: ApiObject | undefined,
  version: number,
): ApiObject["metadata"] {
  const { metadata } = object;
  const grown = isDeepStrictEqual(object["spec"], former?.["spec"]) ? 0 : 1;
  const generation = former ? Number(former.metadata["generation"]) + grown : (metadata["generation"] ?? 1);
  const uid = metadata["uid"] ?? former?.metadata["uid"] ?? randomUUID();
  const now = new Date().toISOString().replace(/\.\d+Z$/, "Z");
  const creationTimestamp = metadata["creationTimestamp"] ?? former?.metadata["creationTimestamp"] ?? now;
  return { ...metadata, uid, creationTimestamp, generation, resourceVersion: String(version) };
}
