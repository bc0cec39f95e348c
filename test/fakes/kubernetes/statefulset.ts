// The controller of StatefulSets: pods by ordinals, one after another unless they are managed in parallel. With OnDelete it
// deletes none for an update, and with RollingUpdate where updates are rolled out: from the last down to the partition.

import { type ClusterSide, hashLabel, isReady, labelOf, type Template, type Workload } from "./workload.ts";

interface Spec {
  readonly podManagementPolicy?: string;
  readonly updateStrategy?: {
    readonly type?: string;
    readonly rollingUpdate?: { readonly partition?: number };
  };
}

export function reconcileStatefulSet(set: Workload, { nodes, rolls }: ClusterSide): void {
  const update = set.revision();
  const current = set.currentRevision ?? update.name;
  const isOrdered = (set.spec as Spec).podManagementPolicy !== "Parallel";
  let isWhole = true;
  for (let ordinal = 0; ordinal < set.replicas; ordinal += 1) {
    const name = `${set.name}-${ordinal}`;
    const pod = set.pods().find(({ metadata }) => metadata.name === name);
    if (pod === undefined) {
      const former = isHeldBack(set.spec as Spec, ordinal) ? set.templateOf(current) : undefined;
      const revision = former ? current : update.name;
      makePod(set, ordinal, former ?? update.template, revision, nodes[ordinal % nodes.length] ?? "");
    }
    if (!(pod && isReady(pod))) isWhole = false;
    if (isOrdered && !isWhole) break;
  }
  for (const pod of set.pods())
    if (Number(labelOf(pod, "apps.kubernetes.io/pod-index")) >= set.replicas) set.removePod(pod);
  if (rolls && (isWhole || !isOrdered)) roll(set, update.name);
  writeStatus(set, update.name, current);
}

/** One at a time, when all behind it are updated and ready. */
function roll(set: Workload, update: string): void {
  const spec = set.spec as Spec;
  if ((spec.updateStrategy?.type ?? "RollingUpdate") !== "RollingUpdate") return;
  for (let ordinal = set.replicas - 1; ordinal >= 0 && !isHeldBack(spec, ordinal); ordinal -= 1) {
    const pod = set.pods().find(({ metadata }) => metadata.name === `${set.name}-${ordinal}`);
    if (pod === undefined) return;
    if (labelOf(pod, hashLabel) !== update) {
      set.removePod(pod);
      return;
    }
    if (!isReady(pod)) return;
  }
}

function isHeldBack({ updateStrategy = {} }: Spec, ordinal: number): boolean {
  const { type = "RollingUpdate", rollingUpdate } = updateStrategy;
  return type === "RollingUpdate" && ordinal < (rollingUpdate?.partition ?? 0);
}

function makePod(
  set: Workload,
  ordinal: number,
  template: Template,
  revision: string,
  nodeName: string,
): void {
  const name = `${set.name}-${ordinal}`;
  const labels = {
    [hashLabel]: revision,
    "statefulset.kubernetes.io/pod-name": name,
    "apps.kubernetes.io/pod-index": String(ordinal),
  };
  set.makePod(name, template, labels, nodeName);
}

/** With OnDelete, a real one never makes an update's revision the current one. */
function writeStatus(set: Workload, update: string, current: string): void {
  const pods = set.pods();
  const ready = pods.filter(isReady);
  const updated = pods.filter((pod) => labelOf(pod, hashLabel) === update);
  const { type = "RollingUpdate" } = (set.spec as Spec).updateStrategy ?? {};
  const isOver = type === "RollingUpdate" && updated.length === set.replicas && updated.every(isReady);
  const now = isOver ? update : current;
  set.writeStatus({
    replicas: pods.length,
    readyReplicas: ready.length,
    availableReplicas: ready.length,
    currentReplicas: pods.filter((pod) => labelOf(pod, hashLabel) === now).length,
    updatedReplicas: updated.length,
    currentRevision: now,
    updateRevision: update,
    collisionCount: 0,
  });
}
