// The controller of DaemonSets: a pod for each node. It deletes none for an update.

import { randomBytes } from "node:crypto";
import { specOf } from "./podstatus.ts";
import { type ClusterSide, hashLabel, isReady, labelOf, type Workload } from "./workload.ts";

export function reconcileDaemonSet(set: Workload, { nodes }: ClusterSide): void {
  const { hash, template } = set.revision();
  const taken = new Set(set.pods().map((pod) => specOf(pod).nodeName));
  for (const node of nodes)
    if (!taken.has(node)) {
      const name = `${set.name}-${randomBytes(4).toString("hex").slice(0, 5)}`;
      set.makePod(name, template, { [hashLabel]: hash }, node);
    }
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
