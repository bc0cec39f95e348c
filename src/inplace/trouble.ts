// What keeps a container from running, as kubelet tells it of a pod: whether to wait on, or that nothing will come of it.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, isOver, stateOf } from "./pod.ts";

/** Kubelet has tried, and is going to try again; or never will. */
const hopeless = new Set([
  "ImagePullBackOff",
  "InvalidImageName",
  "ErrImageNeverPull",
  "CreateContainerConfigError",
  "CreateContainerError",
  "RunContainerError",
]);
/** So often may a container end by itself before it is taken for one that crashes. */
const crashesMax = 2;

/** Restarts that a container had when it first was another one. */
export type Restarts = Map<string, number>;

/** Why one of these containers will not come to run; undefined while it may. Ends of containers are counted from the first
 * call with the same `restarts`. */
export function troubleOf(
  pod: KubernetesObject,
  containers: readonly string[],
  restarts: Restarts,
): string | undefined {
  if (isOver(pod)) return `the pod has ended (${String(fieldsOf(pod["status"])["phase"])})`;
  for (const name of containers) {
    const state = stateOf(pod, name);
    if (state === undefined) continue;
    const { reason, message, isRunning } = state;
    const said = message ? `${reason}: ${message}` : reason;
    if (reason !== undefined && hopeless.has(reason)) return `container ${name} does not start: ${said}`;
    const first = restarts.get(name) ?? state.restarts;
    restarts.set(name, first);
    // The first restart is the exchange itself.
    const crashes = state.restarts - first - 1 + (isRunning || reason === undefined ? 0 : 1);
    if (crashes >= crashesMax)
      return `container ${name} crashes (${crashes} times): ${said ?? "it was restarted"}`;
  }
  return undefined;
}
