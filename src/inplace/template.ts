// The template of a workload: brought in line with its pods at the end, so that pods that are made later are like them.
//
// Its pods are then labelled with the template's revision where they were of the revision before, as they are no different
// from pods that are made of it now; so their controller counts them as updated, and does not make them anew if it is told
// to update by itself one day.

import { setTimeout as sleep } from "node:timers/promises";
import type { Cluster, KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, numberOf, wordOf } from "../cluster/fields.ts";
import { PullError, throwIfAborted } from "../errors.ts";
import { controllerOf, type Images, specPatch, uidOf } from "./pod.ts";
import type { Patch, Steady } from "./steady.ts";
import type { Workload } from "./workload.ts";

const revisionLabel = "controller-revision-hash";
/** Controllers are quick; one that says nothing is not waited for. */
const revisionMs = 10_000;
const pollMs = 100;

export function templateOf(object: KubernetesObject): unknown {
  return fieldsOf(object["spec"])["template"];
}

/** Undefined where it has them. */
export function templatePatch(object: KubernetesObject, images: Images): Patch | undefined {
  const spec = specPatch(templateOf(object), images);
  return spec && { kind: "strategic", patch: { spec: { template: { spec } } } };
}

/** As the controller has it for the workload as it is; undefined where it does not say within a while. */
export async function revisionOf(
  cluster: Cluster,
  steady: Steady,
  workload: Workload,
  signal: AbortSignal,
): Promise<string | undefined> {
  const since = performance.now();
  for (;;) {
    throwIfAborted(signal);
    const object = await steady.get(workload.path, signal);
    const { observedGeneration, updateRevision } = fieldsOf(object["status"]);
    if (numberOf(observedGeneration, 0) >= numberOf(fieldsOf(object.metadata)["generation"], 0))
      return wordOf(updateRevision) ?? (await latestRevision(cluster, workload, signal));
    if (performance.now() - since > revisionMs) return undefined;
    await sleep(pollMs, undefined, { signal }).catch(() => {});
  }
}

/** What a DaemonSet does not have in its status. */
async function latestRevision(
  cluster: Cluster,
  { target: { namespace }, collection, object }: Workload,
  signal: AbortSignal,
): Promise<string | undefined> {
  const path = `/apis/apps/v1/namespaces/${encodeURIComponent(namespace)}/controllerrevisions`;
  const isOwn = (revision: KubernetesObject): boolean => controllerOf(revision)?.uid === uidOf(object);
  try {
    const all = (await cluster.list({ ...collection, path }, signal)).filter(isOwn);
    const [latest] = all.toSorted(
      (one, other) => numberOf(other["revision"], 0) - numberOf(one["revision"], 0),
    );
    return latest && labelOf(latest);
  } catch (error) {
    if (PullError.from(error).code === "cancelled") throw error;
    return undefined;
  }
}

export function labelOf({ metadata }: KubernetesObject): string | undefined {
  return wordOf(fieldsOf(fieldsOf(metadata)["labels"])[revisionLabel]);
}

/** Undefined for a pod that was of another revision before, and so may differ in more than its images. */
export function revisionPatch(pod: KubernetesObject, before: string, now: string): Patch | undefined {
  if (labelOf(pod) !== before || before === now) return undefined;
  return { kind: "merge", patch: { metadata: { labels: { [revisionLabel]: now } } } };
}
