// The controller of DaemonSets: a pod for each node. With OnDelete it deletes none for an update, and with RollingUpdate where
// updates are rolled out: one at a time, or as many as may be unavailable.

import { randomBytes } from "node:crypto";
import { specOf } from "./podstatus.ts";
import { absolute, type ClusterSide, hashLabel, isReady, labelOf, type Workload } from "./workload.ts";

interface Strategy {
  readonly type?: string;
  readonly rollingUpdate?: { readonly maxUnavailable?: number | string };
}

export function reconcileDaemonSet(set: Workload, { nodes, rolls }: ClusterSide): void {
  const { hash, template } = set.revision();
  const taken = new Set(set.pods().map((pod) => specOf(pod).nodeName));
  for (const node of nodes)
    if (!taken.has(node)) {
      const name = `${set.name}-${randomBytes(4).toString("hex").slice(0, 5)}`;
      set.makePod(name, template, { [hashLabel]: hash }, node);
    }
  if (rolls) roll(set, hash, nodes.length);
  const pods = set.pods();
  const ready = pods.filter(isReady).length;
  set.writeStatus({
    desiredNumberScheduled: nodes.length,
    currentNumberScheduled: pods.length,
    numberMisscheduled: 0,
    numberReady: ready,
    numberAvailable: ready,
    numberUnavailable: nodes.length - ready,
    updatedNumberScheduled: pods.filter((pod) => labelOf(pod, hashLabel) === hash).length,
  });
}

/** Those that serve nobody go at once. */
function roll(set: Workload, hash: string, nodes: number): void {
  const { type = "RollingUpdate", rollingUpdate }: Strategy = set.spec["updateStrategy"] ?? {};
  if (type !== "RollingUpdate") return;
  const pods = set.pods();
  let room = absolute(rollingUpdate?.maxUnavailable ?? 1, nodes) - (nodes - pods.filter(isReady).length);
  for (const pod of pods.filter((one) => labelOf(one, hashLabel) !== hash)) {
    if (isReady(pod) && room <= 0) continue;
    if (isReady(pod)) room -= 1;
    set.removePod(pod);
  }
}
