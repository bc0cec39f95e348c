// What keeps a container from running, as kubelet tells it of a pod: whether to wait on, or that nothing will come of it.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf } from "../cluster/fields.ts";
import { type Images, isOver, stateOf } from "./pod.ts";

/** Kubelet has tried to pull, and is going to try again or never will; its message names the image. */
const pulls = new Set(["ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"]);
/** It has what it needs of images, and does not come to run all the same. */
const starts = new Set(["CreateContainerConfigError", "CreateContainerError", "RunContainerError"]);
/** So often may a container end by itself before it is taken for one that crashes. */
const crashesMax = 2;

/** What was said of a container when it was looked at first: before kubelet may have seen what it is to run now. */
export type Firsts = Map<string, { readonly restarts: number; readonly said: string | undefined }>;

/**
 * Why one of these containers will not come to run its image; undefined while it may. Kubelet goes on saying what kept a
 * container's former image from running until it has tried the next one, even where it says that it has seen that. Such
 * words are told by the image that they name, or by the first call with the same `firsts`, which has to be an early one.
 */
export function troubleOf(pod: KubernetesObject, images: Images, firsts: Firsts): string | undefined {
  if (isOver(pod)) return `the pod has ended (${String(fieldsOf(pod["status"])["phase"])})`;
  for (const [name, image] of Object.entries(images)) {
    const state = stateOf(pod, name);
    if (state === undefined) continue;
    const { reason = "", message = "", isRunning, restarts, exitCode } = state;
    const said = message ? `${reason}: ${message}` : reason;
    const first = firsts.get(name) ?? { restarts, said };
    firsts.set(name, said === first.said ? first : { restarts: first.restarts, said: undefined });
    // In quotes, since one tag may be how another one begins.
    const isNew = pulls.has(reason)
      ? message.includes(`"${image}"`)
      : starts.has(reason) && said !== first.said;
    if (isNew) return `container ${name} does not start: ${said}`;
    // The first restart is the exchange itself.
    const crashes = restarts - first.restarts - 1 + (isRunning || reason === "" ? 0 : 1);
    if (crashes >= crashesMax)
      return `container ${name} crashes: it ended ${crashes} times, at last with exit code ${exitCode ?? "unknown"}`;
  }
  return undefined;
}
