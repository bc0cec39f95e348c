// What is read of a CloneSet, and how it is told to exchange images and to go back.
//
// What stood in it before is kept on it until the end, so that whoever goes on can go back as well. Whatever of it somebody
// else has changed meanwhile is left so.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { type Fields, fieldsOf, numberOf } from "../cluster/fields.ts";
import { PullError } from "../errors.ts";
import type { UpgradeRequest } from "./inplace.ts";
import {
  annotationOf,
  areEqual,
  differing,
  type Images,
  imagesAmong,
  readImages,
  upgradeAnnotation,
} from "./pod.ts";
import type { Patch } from "./steady.ts";
import { labelOf, listsWith, templateOf } from "./template.ts";

/** What stood in a CloneSet before; null for what did not. */
export interface Former {
  readonly images: Images;
  readonly to: Images;
  readonly strategy: Fields;
}

/** Undefined where it has been told already. */
export function forwardPatch(object: KubernetesObject, request: UpgradeRequest): Patch | undefined {
  const left = formerOf(object);
  // One of an upgrade that has ended says nothing of this one.
  const earlier =
    left && differing(templateOf(object), left.to).length === 0 && isComplete(object) ? undefined : left;
  const isThere = differing(templateOf(object), request.images).length === 0;
  if (isThere && (left === undefined || areEqual(left.to, request.images))) return undefined;
  const strategy = strategyOf(object);
  const changed = strategyPatch(object, request);
  // A way back that was broken off has taken it away.
  const { partition } = left?.strategy ?? {};
  const former: Former = {
    images: { ...imagesAmong(templateOf(object), request.images), ...earlier?.images },
    to: request.images,
    strategy: {
      ...Object.fromEntries(Object.keys(changed).map((key) => [key, strategy[key] ?? null])),
      ...left?.strategy,
    },
  };
  const annotations = { [upgradeAnnotation]: JSON.stringify(former) };
  const updateStrategy = { ...changed, ...(partition !== undefined && { partition }) };
  const spec = { template: templateWith(object, request.images), updateStrategy };
  return { kind: "merge", patch: { metadata: { annotations }, spec } };
}

/** What of spec.updateStrategy is changed: pods are not to be made anew, and what was asked for. */
export function strategyPatch(
  object: KubernetesObject,
  { maxUnavailable, graceMs }: Pick<UpgradeRequest, "maxUnavailable" | "graceMs">,
): Fields {
  const { type, inPlaceUpdateStrategy } = strategyOf(object);
  const isInPlace = type === "InPlaceIfPossible" || type === "InPlaceOnly";
  return {
    ...(!isInPlace && { type: "InPlaceIfPossible" }),
    ...(maxUnavailable && {
      maxUnavailable: "count" in maxUnavailable ? maxUnavailable.count : `${maxUnavailable.percent}%`,
    }),
    ...(graceMs !== undefined && {
      inPlaceUpdateStrategy: {
        ...fieldsOf(inPlaceUpdateStrategy),
        gracePeriodSeconds: Math.ceil(graceMs / 1000),
      },
    }),
  };
}

/**
 * With the partition out of the way, since pods beyond it would stay what they have become: until then all were of one
 * revision. Throws `conflict` where somebody else has changed the images meanwhile.
 */
export function backPatch(object: KubernetesObject): Patch | undefined {
  const former = formerOf(object);
  if (former === undefined || differing(templateOf(object), former.images).length === 0) return undefined;
  mustBeOurs(object, former.to);
  const { partition } = strategyOf(object);
  const kept: Former = { ...former, strategy: { ...(partition ? { partition } : {}), ...former.strategy } };
  const annotations = { [upgradeAnnotation]: JSON.stringify(kept) };
  const updateStrategy = partition ? { partition: 0 } : {};
  const template = templateWith(object, former.images);
  return { kind: "merge", patch: { metadata: { annotations }, spec: { template, updateStrategy } } };
}

/** Throws `conflict`. */
export function mustBeOurs(object: KubernetesObject, images: Images): void {
  const others = differing(templateOf(object), images).map(({ name, image }) => `${name}: ${image}`);
  if (others.length === 0) return;
  throw new PullError(
    "conflict",
    `somebody has changed its template meanwhile (${others.join(", ")}): it is left so`,
  );
}

/** At the end: all of the strategy comes back where the template did, and otherwise all but the way of updates. */
export function unmarkedPatch(object: KubernetesObject): Patch | undefined {
  if (annotationOf(object, upgradeAnnotation) === undefined) return undefined;
  const former = formerOf(object);
  const isBack = former !== undefined && differing(templateOf(object), former.images).length === 0;
  const { type, ...limits } = former?.strategy ?? {};
  const updateStrategy = { ...limits, ...(isBack && type !== undefined && { type }) };
  const spec = Object.keys(updateStrategy).length > 0 ? { spec: { updateStrategy } } : {};
  return { kind: "merge", patch: { metadata: { annotations: { [upgradeAnnotation]: null } }, ...spec } };
}

/** Lists of containers are replaced as wholes, since the API knows no keys of a CloneSet's. */
function templateWith(object: KubernetesObject, images: Images): object {
  return { spec: listsWith(fieldsOf(templateOf(object))["spec"], images) };
}

/** A CloneSet as it is when no way back is under way, which takes its partition away. */
export function asMeant(object: KubernetesObject): KubernetesObject {
  const { partition } = formerOf(object)?.strategy ?? {};
  if (partition === undefined) return object;
  const spec = fieldsOf(object["spec"]);
  return { ...object, spec: { ...spec, updateStrategy: { ...strategyOf(object), partition } } };
}

/** OpenKruise has done all that the CloneSet as it is asks for. */
export function isComplete(object: KubernetesObject): boolean {
  const { observedGeneration, updatedReplicas, updatedReadyReplicas } = fieldsOf(object["status"]);
  const isObserved = numberOf(observedGeneration, 0) >= numberOf(fieldsOf(object.metadata)["generation"], 0);
  const least = Math.min(numberOf(updatedReplicas, 0), numberOf(updatedReadyReplicas, 0));
  return isObserved && least >= expectedOf(object);
}

/** Those that are not kept at what they are by the partition (a number, or a share that is rounded up). */
export function expectedOf(object: KubernetesObject): number {
  const replicas = numberOf(fieldsOf(object["spec"])["replicas"], 1);
  return Math.max(0, replicas - keptOf(object, replicas));
}

function keptOf(object: KubernetesObject, replicas: number): number {
  const { partition } = strategyOf(object);
  const percent = /^(\d+)%$/.exec(String(partition))?.[1];
  return percent === undefined ? numberOf(partition, 0) : Math.ceil((replicas * Number(percent)) / 100);
}

/** Throws `unsupported` where a partition stands in the way: of all pods, or of a way back. */
export function mustNotBeKept(object: KubernetesObject, pods: readonly KubernetesObject[]): void {
  const { name } = object.metadata;
  const kept = keptOf(object, numberOf(fieldsOf(object["spec"])["replicas"], 1));
  if (kept === 0) return;
  if (expectedOf(object) === 0)
    throw new PullError(
      "unsupported",
      `cloneset/${name} keeps all of its pods as they are: lower spec.updateStrategy.partition`,
    );
  const revisions = new Set(pods.map(labelOf));
  if (revisions.size > 1 && formerOf(object) === undefined)
    throw new PullError(
      "unsupported",
      `the pods of cloneset/${name} are of ${revisions.size} revisions, kept so by spec.updateStrategy.partition: ` +
        "lower the partition, or give its template the former image by hand, first",
    );
}

function strategyOf(object: KubernetesObject): Fields {
  return fieldsOf(fieldsOf(object["spec"])["updateStrategy"]);
}

export function formerOf(object: KubernetesObject): Former | undefined {
  try {
    const { images, to, strategy } = fieldsOf(JSON.parse(annotationOf(object, upgradeAnnotation) ?? ""));
    return { images: readImages(images), to: readImages(to), strategy: fieldsOf(strategy) };
  } catch {
    return undefined;
  }
}
