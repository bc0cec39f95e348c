// Patches: JSON merge patches (RFC 7386), and Kubernetes' strategic ones, which merge some lists by a key.

import { Refusal } from "./refusal.ts";

type Fields = Readonly<Record<string, unknown>>;

/** Lists that are merged, by the name of their field, wherever it is. */
const mergeKeys: Readonly<Record<string, string>> = {
  containers: "name",
  initContainers: "name",
  ephemeralContainers: "name",
  env: "name",
  volumes: "name",
  imagePullSecrets: "name",
  volumeMounts: "mountPath",
  conditions: "type",
  ownerReferences: "uid",
};

export function isFields(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function mergePatch(current: unknown, patch: unknown): unknown {
  if (!isFields(patch)) return patch;
  const merged: Record<string, unknown> = isFields(current) ? { ...current } : {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete merged[key];
    else merged[key] = mergePatch(merged[key], value);
  }
  return merged;
}

export function strategicPatch(current: unknown, patch: unknown, field = ""): unknown {
  const mergeKey = mergeKeys[field];
  if (Array.isArray(patch) && mergeKey !== undefined)
    return mergedList(Array.isArray(current) ? current : [], patch, mergeKey);
  if (!isFields(patch)) return patch;
  const { $patch: directive, ...rest } = patch;
  const isReplaced = directive === "replace" || !isFields(current);
  const merged: Record<string, unknown> = isReplaced ? {} : { ...current };
  for (const [key, value] of Object.entries(rest)) {
    // They say only in which order the lists of a client are, or what it keeps.
    if (key.startsWith("$setElementOrder/") || key === "$retainKeys") continue;
    if (value === null || (isFields(value) && value["$patch"] === "delete")) delete merged[key];
    else merged[key] = strategicPatch(merged[key], value, key);
  }
  return merged;
}

function mergedList(current: readonly unknown[], patch: readonly unknown[], mergeKey: string): unknown[] {
  const isReplaced = patch.some((one) => isFields(one) && one["$patch"] === "replace");
  const merged: unknown[] = isReplaced ? [] : [...current];
  for (const one of patch) {
    if (isFields(one) && one["$patch"] === "replace") continue;
    const key = isFields(one) ? one[mergeKey] : undefined;
    if (!isFields(one) || key === undefined)
      throw Refusal.bad(`map: ${JSON.stringify(one)} does not contain declared merge key: ${mergeKey}`);
    const index = merged.findIndex((former) => isFields(former) && former[mergeKey] === key);
    if (one["$patch"] === "delete") {
      if (index >= 0) merged.splice(index, 1);
    } else if (index < 0) {
      merged.push(strategicPatch({}, one));
    } else {
      merged[index] = strategicPatch(merged[index], one);
    }
  }
  return merged;
}
