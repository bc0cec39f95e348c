// What the controllers of workloads have in common: revisions of a template, pods that are made of one, and whose they are.

import { createHash } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import type { FakeApi } from "../api.ts";
import type { PodCondition, PodSpec } from "./podstatus.ts";
import type { ApiObject } from "./store.ts";

export const pods = "/api/v1/pods";
const revisions = "/apis/apps/v1/controllerrevisions";
export const hashLabel = "controller-revision-hash";

export interface Template {
  readonly metadata?: {
    readonly labels?: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
  };
  readonly spec: PodSpec;
}

export interface Revision {
  /** "web-5d8c9f" */
  readonly name: string;
  readonly hash: string;
  readonly template: Template;
}

interface StoredRevision extends ApiObject {
  readonly revision: number;
  readonly data: { readonly spec: { readonly template: Template } };
}

/** What a controller makes known beside its objects. */
export interface ClusterSide {
  /** Pods go to these, by turns. */
  readonly nodes: readonly string[];
  /** Updates are rolled out where the strategy says so. */
  readonly rolls: boolean;
  /** Has everything looked at again after a while. */
  wakeIn(ms: number): void;
}

/** A StatefulSet, DaemonSet or CloneSet, as it is at the moment. */
export class Workload {
  readonly api: FakeApi;
  readonly name: string;
  readonly namespace: string;
  readonly #object: ApiObject;
  readonly #collection: string;

  constructor(api: FakeApi, collection: string, object: ApiObject) {
    this.api = api;
    this.#collection = collection;
    this.#object = object;
    this.name = object.metadata.name;
    this.namespace = object.metadata.namespace ?? "";
  }

  get spec(): { readonly replicas?: number; readonly template: Template } & Readonly<
    Record<string, unknown>
  > {
    return this.#object["spec"] as { readonly template: Template };
  }

  get replicas(): number {
    return this.spec.replicas ?? 1;
  }

  /** As its status has it. */
  get currentRevision(): string | undefined {
    return (this.#object["status"] as { currentRevision?: string } | undefined)?.currentRevision;
  }

  /** Its own pods, by name. */
  pods(): ApiObject[] {
    const { uid } = this.#object.metadata;
    return this.api
      .list(pods, this.namespace)
      .filter((pod) => ownerOf(pod) === uid)
      .sort((one, other) => one.metadata.name.localeCompare(other.metadata.name, "en", { numeric: true }));
  }

  /** That of the template, which is stored when it is new, and is the latest from now on. */
  revision(): Revision {
    const { template } = this.spec;
    const hash = createHash("sha256").update(JSON.stringify(template)).digest("hex").slice(0, 10);
    const name = `${this.name}-${hash}`;
    const stored = this.#revisions();
    const latest = Math.max(0, ...stored.map(({ revision }) => revision));
    const own = stored.find(({ metadata }) => metadata.name === name);
    if (own === undefined || own.revision < latest) {
      const labels = { ...template.metadata?.labels, [hashLabel]: hash };
      const metadata = { name, namespace: this.namespace, labels, ownerReferences: this.#owners() };
      const data = { spec: { template: { ...template, $patch: "replace" } } };
      this.api.put(revisions, { metadata, data, revision: latest + 1 });
    }
    return { name, hash, template };
  }

  /** A former one, by its name. */
  templateOf(name: string | undefined): Template | undefined {
    const found = this.#revisions().find(({ metadata }) => metadata.name === name);
    if (found === undefined) return undefined;
    const { $patch: _, ...template } = found.data.spec.template as Template & { $patch?: string };
    return template;
  }

  makePod(
    name: string,
    { metadata, spec }: Template,
    labels: Readonly<Record<string, string>>,
    nodeName: string,
  ): void {
    this.api.put(pods, {
      metadata: {
        name,
        namespace: this.namespace,
        labels: { ...metadata?.labels, ...labels },
        ...(metadata?.annotations && { annotations: metadata.annotations }),
        ownerReferences: this.#owners(),
      },
      spec: { ...spec, nodeName },
      status: { phase: "Pending" },
    });
  }

  removePod({ metadata }: ApiObject): void {
    this.api.remove(pods, metadata.name, this.namespace);
  }

  writeStatus(status: Readonly<Record<string, unknown>>): void {
    const { generation } = this.#object.metadata;
    this.api.update(this.#collection, this.name, this.namespace, (object) => ({
      ...object,
      status: { ...Object(object["status"]), observedGeneration: generation, ...status },
    }));
  }

  #revisions(): StoredRevision[] {
    const all = this.api.list(revisions, this.namespace) as readonly StoredRevision[];
    return all.filter((one) => ownerOf(one) === this.#object.metadata["uid"]);
  }

  #owners(): object[] {
    const { apiVersion, kind } = this.#object;
    const { name, uid } = this.#object.metadata;
    return [{ apiVersion, kind, name, uid, controller: true, blockOwnerDeletion: true }];
  }
}

/** The uid of its controller. */
export function ownerOf({ metadata }: ApiObject): string | undefined {
  const owners = (metadata["ownerReferences"] ?? []) as readonly { uid: string; controller?: boolean }[];
  return owners.find(({ controller }) => controller)?.uid;
}

export function labelOf({ metadata }: ApiObject, label: string): string | undefined {
  return (metadata["labels"] as Readonly<Record<string, string>> | undefined)?.[label];
}

export function conditionsOf(pod: ApiObject): readonly PodCondition[] {
  return (pod["status"] as { conditions?: readonly PodCondition[] } | undefined)?.conditions ?? [];
}

export function isReady(pod: ApiObject): boolean {
  return conditionsOf(pod).some(({ type, status }) => type === "Ready" && status === "True");
}

/** Percents are rounded up. */
export function absolute(value: number | string, whole: number): number {
  return typeof value === "number" ? value : Math.ceil((Number.parseFloat(value) * whole) / 100);
}

/** Nothing but images is another. */
export function isSameButImages(one: Template, other: Template): boolean {
  return isDeepStrictEqual(withoutImages(one), withoutImages(other));
}

function withoutImages({ metadata, spec }: Template): Template {
  const { containers = [], initContainers = [] } = spec;
  const bare = [containers, initContainers].map((list) => list.map((one) => ({ ...one, image: "" })));
  const [bareContainers = [], bareInits = []] = bare;
  return {
    ...(metadata && { metadata }),
    spec: { ...spec, containers: bareContainers, initContainers: bareInits },
  };
}
