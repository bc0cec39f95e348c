// The template of a workload: read, and given images.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, wordOf } from "../cluster/fields.ts";
import { type Images, specPatch } from "./pod.ts";
import type { Patch } from "./steady.ts";

/** Which of a workload's revisions a pod is of. */
export const revisionLabel = "controller-revision-hash";

export function templateOf(object: KubernetesObject): unknown {
  return fieldsOf(object["spec"])["template"];
}

/** Undefined where it has them. */
export function templatePatch(object: KubernetesObject, images: Images): Patch | undefined {
  const spec = specPatch(templateOf(object), images);
  return spec && { kind: "strategic", patch: { spec: { template: { spec } } } };
}

export function labelOf({ metadata }: KubernetesObject): string | undefined {
  return wordOf(fieldsOf(fieldsOf(metadata)["labels"])[revisionLabel]);
}
