// The controller of OpenKruise's CloneSets: pods of a template, and an update of theirs that exchanges images in place
// where nothing else is another, no more pods at a time than may be unavailable. Source of its habits: kruise 1.9,
// pkg/controller/cloneset and pkg/util/inplaceupdate.

import { randomBytes } from "node:crypto";
import { exchange, gateType, refresh } from "./inplace.ts";
import type { ApiObject } from "./store.ts";
import {
  absolute,
  type ClusterSide,
  hashLabel,
  isReady,
  isSameButImages,
  labelOf,
  type Revision,
  type Template,
  type Workload,
} from "./workload.ts";

interface Strategy {
  readonly type?: "ReCreate" | "InPlaceIfPossible" | "InPlaceOnly";
  /** How many pods keep what they are. */
  readonly partition?: number | string;
  readonly maxUnavailable?: number | string;
  readonly paused?: boolean;
  readonly inPlaceUpdateStrategy?: { readonly gracePeriodSeconds?: number };
}

export function reconcileCloneSet(set: Workload, side: ClusterSide): void {
  const update = set.revision();
  const current = set.currentRevision ?? update.name;
  for (const pod of set.pods()) refresh(set.api, pod, (ms) => side.wakeIn(ms));
  scale(set, update, current, side);
  const strategy = strategyOf(set);
  if (!strategy.paused) updatePods(set, update, strategy);
  writeStatus(set, update.name, current);
}

function strategyOf(set: Workload): Strategy {
  return set.spec["updateStrategy"] ?? {};
}

function heldBack(set: Workload): number {
  return absolute(strategyOf(set).partition ?? 0, set.replicas);
}

function isUpdated(pod: ApiObject, revision: string): boolean {
  return labelOf(pod, hashLabel) === revision;
}

function scale(set: Workload, update: Revision, current: string, { nodes }: ClusterSide): void {
  const pods = set.pods();
  for (const pod of pods.slice(set.replicas)) set.removePod(pod);
  const former = set.templateOf(current);
  let old = pods.filter((pod) => !isUpdated(pod, update.name)).length;
  for (let count = pods.length; count < set.replicas; count += 1) {
    const isFormer = old < heldBack(set) && former !== undefined && current !== update.name;
    const template = isFormer ? former : update.template;
    const suffix = randomBytes(4).toString("hex").slice(0, 5);
    const labels = {
      [hashLabel]: isFormer ? current : update.name,
      "apps.kruise.io/cloneset-instance-id": suffix,
    };
    set.makePod(`${set.name}-${suffix}`, gated(template, strategyOf(set)), labels, freest(set, nodes));
    if (isFormer) old += 1;
  }
}

function gated({ spec, ...rest }: Template, { type = "ReCreate" }: Strategy): Template {
  const gates = spec.readinessGates ?? [];
  if (type === "ReCreate" || gates.some(({ conditionType }) => conditionType === gateType))
    return { ...rest, spec };
  return { ...rest, spec: { ...spec, readinessGates: [...gates, { conditionType: gateType }] } };
}

/** The node that has the fewest of its pods. */
function freest(set: Workload, nodes: readonly string[]): string {
  const pods = set.pods();
  const countOn = (node: string): number =>
    pods.filter((pod) => (pod["spec"] as { nodeName?: string }).nodeName === node).length;
  return [...nodes].sort((one, other) => countOn(one) - countOn(other))[0] ?? "";
}

function updatePods(set: Workload, update: Revision, strategy: Strategy): void {
  const pods = set.pods();
  const old = pods.filter((pod) => !isUpdated(pod, update.name));
  let left = old.length - heldBack(set);
  const max = Math.max(1, absolute(strategy.maxUnavailable ?? "20%", set.replicas));
  let room = max - pods.filter((pod) => !isReady(pod)).length;
  // Those that serve nobody first: they cost nothing.
  const [unready, ready] = [old.filter((pod) => !isReady(pod)), old.filter(isReady)];
  for (const pod of [...unready, ...ready.toReversed()]) {
    if (left <= 0 || (isReady(pod) && room <= 0)) return;
    if (!updatePod(set, pod, update, strategy)) continue;
    left -= 1;
    if (isReady(pod)) room -= 1;
  }
}

/** False when it is left as it is. */
function updatePod(set: Workload, pod: ApiObject, update: Revision, strategy: Strategy): boolean {
  const { type = "ReCreate", inPlaceUpdateStrategy } = strategy;
  const former = set.templateOf(labelOf(pod, hashLabel));
  if (type !== "ReCreate" && former && isSameButImages(former, update.template)) {
    exchange(set.api, pod, update, inPlaceUpdateStrategy?.gracePeriodSeconds ?? 0);
    return true;
  }
  if (type === "InPlaceOnly") return false;
  set.removePod(pod);
  return true;
}

function writeStatus(set: Workload, update: string, current: string): void {
  const pods = set.pods();
  const updated = pods.filter((pod) => isUpdated(pod, update));
  const ready = pods.filter(isReady).length;
  const updatedReady = updated.filter(isReady).length;
  const isOver = heldBack(set) === 0 && updatedReady === set.replicas && pods.length === set.replicas;
  set.writeStatus({
    replicas: pods.length,
    readyReplicas: ready,
    availableReplicas: ready,
    updatedReplicas: updated.length,
    updatedReadyReplicas: updatedReady,
    updatedAvailableReplicas: updatedReady,
    expectedUpdatedReplicas: Math.max(0, set.replicas - heldBack(set)),
    updateRevision: update,
    currentRevision: isOver ? update : current,
  });
}
