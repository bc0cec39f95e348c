// An upgrade from its plan to its outcome. Planning changes nothing in the cluster; whatever is upgraded is read again
// once the lock is held, since it may be what somebody else has just ended.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, wordOf } from "../cluster/fields.ts";
import { PullError } from "../errors.ts";
import { mustBeAllowed } from "./access.ts";
import { upgradeCloneSet } from "./cloneset.ts";
import {
  type Outcome,
  type Plan,
  type PlannedPod,
  type UpgradeOptions,
  type UpgradeRequest,
  usualPace,
} from "./inplace.ts";
import { asMeant, expectedOf, mustNotBeKept, strategyPatch } from "./kruise.ts";
import {
  annotationOf,
  differing,
  hasEnded,
  type Images,
  imageFor,
  imagesOf,
  isBegun,
  isReady,
  isServing,
  markOf,
  nodeOf,
  upgradeAnnotation,
} from "./pod.ts";
import { inOrder } from "./rolling.ts";
import { isSkipped, rollOut } from "./rollout.ts";
import { Steady } from "./steady.ts";
import { templateOf } from "./template.ts";
import { begin, known } from "./work.ts";
import { mustBeUpgradable, mustHaveGates, readWorkload, replicasOf, type Workload } from "./workload.ts";

const usualGraceMs = 10_000;

/**
 * What would be done. Throws `not_found`, `unsupported` (with the change to the manifest that would help), `refused` (with
 * the permissions that are missing), `invalid` and `unavailable`.
 */
export async function planUpgrade(
  options: UpgradeOptions,
  request: UpgradeRequest,
  signal: AbortSignal,
): Promise<Plan> {
  const { cluster, pace = usualPace } = options;
  const steady = new Steady(cluster, pace.awayMs);
  const workload = await steady.persist(async () => await readWorkload(cluster, request, signal), signal);
  mustBeUpgradable(workload, request.images);
  await steady.persist(async () => await mustBeAllowed(cluster, request, signal), signal);
  const all = await steady.persist(async () => await cluster.list(workload.collection, signal), signal);
  const pods = all.filter(workload.isOwn);
  return planFor(workload, request, pods.filter(isServing));
}

/** Does it, and rolls back what fails. Throws like {@link planUpgrade}, and `exists` where another upgrade goes on. */
export async function upgrade(
  options: UpgradeOptions,
  request: UpgradeRequest,
  signal: AbortSignal,
): Promise<Outcome> {
  const { cluster, pace = usualPace } = options;
  const steady = new Steady(cluster, pace.awayMs);
  const read = async (): Promise<Workload> =>
    await steady.persist(async () => await readWorkload(cluster, request, signal), signal);
  const seen = await read();
  mustBeUpgradable(seen, request.images);
  await using work = await begin(options, request, seen, signal);
  const workload = await read();
  mustBeUpgradable(workload, request.images);
  await known(work);
  const plan = planFor(workload, request, work.pods.all.filter(isServing));
  const fresh = { ...work, workload };
  return request.kind === "cloneset" ? await upgradeCloneSet(fresh) : await rollOut(fresh, plan);
}

function planFor(workload: Workload, request: UpgradeRequest, all: readonly KubernetesObject[]): Plan {
  const { images, kind, maxUnavailable, graceMs } = request;
  const template = kind === "pod" ? undefined : templateOf(workload.object);
  const open = all
    .filter((pod) => differing(pod, images).length > 0 || isBegun(pod, template))
    .filter((pod) => !isSkipped(pod, request, template))
    .toSorted(inOrder);
  const isOpenKruise = kind === "cloneset";
  mustHaveGates(open);
  mustBeAlone(all, request, template);
  if (isOpenKruise && differing(template, images).length > 0) mustNotBeKept(asMeant(workload.object), all);
  return {
    request,
    pods: open.map((pod) => plannedPod(pod, images)),
    podsInAll: all.length,
    maxUnavailable: isOpenKruise ? undefined : countOf(maxUnavailable, replicasOf(workload)),
    graceMs: isOpenKruise ? undefined : (graceMs ?? usualGraceMs),
    changes: [...templateChanges(workload, images), ...strategyChanges(workload, request)],
  };
}

/** An upgrade of other containers that was broken off would be forgotten. Throws `unsupported`. */
function mustBeAlone(all: readonly KubernetesObject[], { images }: UpgradeRequest, template: unknown): void {
  for (const pod of all) {
    const mark = markOf(pod);
    if (mark === undefined || hasEnded(pod, mark, template)) continue;
    const others = Object.keys(mark.to).filter(
      (name) => imageFor(images, name) === undefined && mark.from[name] !== mark.to[name],
    );
    if (others.length === 0) continue;
    const words = others.map((name) => `${name}=${mark.to[name]} (it was ${mark.from[name]})`).join(" ");
    throw new PullError(
      "unsupported",
      `an upgrade of it was broken off, of ${words}: end it first, or undo it with the former image`,
    );
  }
}

function plannedPod(pod: KubernetesObject, images: Images): PlannedPod {
  const now = imagesOf(pod);
  const others = differing(pod, images).map(({ name }) => [name, now[name] ?? ""]);
  return {
    name: pod.metadata.name,
    node: nodeOf(pod),
    isReady: isReady(pod),
    from: Object.fromEntries(others) as Images,
    isBegun: annotationOf(pod, upgradeAnnotation) !== undefined,
  };
}

/** A share is rounded down, and never to none. */
function countOf(share: UpgradeRequest["maxUnavailable"], replicas: number): number {
  if (share === undefined) return 1;
  return "count" in share ? share.count : Math.max(1, Math.floor((replicas * share.percent) / 100));
}

function templateChanges({ target, object }: Workload, images: Images): readonly string[] {
  if (target.kind === "pod") return [];
  return differing(templateOf(object), images).map(
    ({ name, image, list }) => `spec.template.spec.${list}, ${name}: ${image} -> ${images[name]}`,
  );
}

function strategyChanges(workload: Workload, request: UpgradeRequest): readonly string[] {
  if (request.kind !== "cloneset") return [];
  const object = asMeant(workload.object);
  const now = fieldsOf(fieldsOf(object["spec"])["updateStrategy"]);
  const changes = Object.entries(strategyPatch(object, request)).flatMap(([key, value]) => {
    const [before, after] = [now[key], value].map((one) =>
      one === undefined ? "unset" : (wordOf(one) ?? JSON.stringify(one)),
    );
    const until = key === "type" ? "" : ", until it is upgraded";
    return before === after ? [] : [`spec.updateStrategy.${key}: ${before} -> ${after}${until}`];
  });
  const kept = replicasOf(workload) - expectedOf(object);
  const partition = `spec.updateStrategy.partition keeps ${kept} of ${replicasOf(workload)} pods as they are`;
  return [...changes, ...(kept > 0 ? [partition] : [])];
}
