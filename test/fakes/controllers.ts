// The controllers of StatefulSets, DaemonSets and OpenKruise's CloneSets on the fake API: they make the pods, bind them to
// nodes, make those anew that are deleted, and write the status. Whenever something changes, everything is looked at.

import type { FakeApi } from "./api.ts";
import { reconcileCloneSet } from "./kubernetes/cloneset.ts";
import { reconcileDaemonSet } from "./kubernetes/daemonset.ts";
import { reconcileStatefulSet } from "./kubernetes/statefulset.ts";
import type { ApiChange } from "./kubernetes/store.ts";
import { type ClusterSide, ownerOf, pods, Workload } from "./kubernetes/workload.ts";

const cloneSets = "/apis/apps.kruise.io/v1alpha1/clonesets";

const reconcilers: Readonly<Record<string, (workload: Workload, side: ClusterSide) => void>> = {
  "/apis/apps/v1/statefulsets": reconcileStatefulSet,
  "/apis/apps/v1/daemonsets": reconcileDaemonSet,
  [cloneSets]: reconcileCloneSet,
};

export interface ControllerOptions {
  readonly api: FakeApi;
  /** Where pods go; the node of the API's own kubeconfig without. */
  readonly nodes?: readonly string[];
  /** OpenKruise is installed. */
  readonly kruise?: boolean;
  /** Updates of StatefulSets and DaemonSets are rolled out unless they are OnDelete. Without, nothing is deleted for one. */
  readonly rolls?: boolean;
}

export class FakeControllers implements Disposable {
  readonly #api: FakeApi;
  readonly #nodes: readonly string[];
  readonly #rolls: boolean;
  readonly #silence: () => void;
  readonly #timers = new Set<NodeJS.Timeout>();
  #soon: NodeJS.Immediate | undefined;
  #isPaused = false;

  constructor({ api, nodes = [api.nodeName], kruise = false, rolls = false }: ControllerOptions) {
    this.#api = api;
    this.#nodes = nodes;
    this.#rolls = rolls;
    if (kruise) api.register(cloneSets, "CloneSet");
    this.#silence = api.listen((change) => this.#hear(change));
    this.#wake();
  }

  /** From now on nothing is made or written, until it is resumed. */
  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    this.#isPaused = false;
    this.#wake();
  }

  [Symbol.dispose](): void {
    this.#silence();
    this.#isPaused = true;
    clearImmediate(this.#soon);
    for (const timer of this.#timers) clearTimeout(timer);
  }

  #hear({ type, collection, object }: ApiChange): void {
    if (type === "DELETED" && collection in reconcilers) this.#removePodsOf(object.metadata["uid"]);
    if (collection === pods || collection in reconcilers) this.#wake();
  }

  /** As the garbage collector does. */
  #removePodsOf(uid: unknown): void {
    for (const pod of this.#api.list(pods))
      if (ownerOf(pod) === uid) this.#api.remove(pods, pod.metadata.name, pod.metadata.namespace);
  }

  #wake(): void {
    if (this.#isPaused) return;
    this.#soon ??= setImmediate(() => {
      this.#soon = undefined;
      if (!this.#isPaused) this.#reconcile();
    });
  }

  #reconcile(): void {
    const side: ClusterSide = { nodes: this.#nodes, rolls: this.#rolls, wakeIn: (ms) => this.#wakeIn(ms) };
    for (const [collection, reconcile] of Object.entries(reconcilers))
      for (const object of this.#api.list(collection))
        reconcile(new Workload(this.#api, collection, object), side);
  }

  #wakeIn(ms: number): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      this.#wake();
    }, ms);
    this.#timers.add(timer);
  }
}
