// The template of a workload: read, and given images.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { type Fields, fieldsOf, listOf, wordOf } from "../cluster/fields.ts";
import { type Images, imageFor, specPatch } from "./pod.ts";
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

/** The lists of containers of a spec, as they are but for these images. */
export function listsWith(spec: unknown, images: Images): Fields {
  const lists = ["containers", "initContainers"].flatMap((list) => {
    const all = fieldsOf(spec)[list];
    if (!Array.isArray(all)) return [];
    const changed = listOf(all).map((container) => {
      const image = imageFor(images, wordOf(container["name"]) ?? "");
      return image === undefined ? container : Object.assign({}, container, { image });
    });
    return [[list, changed] as const];
  });
  return Object.fromEntries(lists);
}

export function labelOf({ metadata }: KubernetesObject): string | undefined {
  return wordOf(fieldsOf(fieldsOf(metadata)["labels"])[revisionLabel]);
}
