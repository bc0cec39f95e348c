// StatefulSets and DaemonSets that replace no pods by themselves, and bare pods: each pod is upgraded here, and the template
// at last. If anything fails, all pods that were begun with become again what they were.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, numberOf } from "../cluster/fields.ts";
import { PullError } from "../errors.ts";
import type { Goal } from "./exchange.ts";
import { type Outcome, type Plan, type UpgradeRequest, usualPace } from "./inplace.ts";
import {
  areEqual,
  differing,
  imagesOf,
  isBegun,
  isGateOpen,
  isInService,
  isServing,
  markOf,
  nodeOf,
  uidOf,
} from "./pod.ts";
import { labelPods } from "./revisions.ts";
import { type RollingOptions, roll } from "./rolling.ts";
import type { Patch } from "./steady.ts";
import { templateOf, templatePatch } from "./template.ts";
import { currentOf, unmarkAll, type Work } from "./work.ts";
import { mustBeUpgradable, replicasOf, someOf } from "./workload.ts";

/** Never throws; what has failed is in its outcome. */
export async function rollOut(work: Work, plan: Plan): Promise<Outcome> {
  const touched = { template: false };
  try {
    const pods = await upgradePods(work, plan, touched);
    // From here on it is done, and nobody's interruption undoes it.
    if (work.request.kind !== "pod") await labelPods(work);
    await unmarkAll(work, work.lost, () => true);
    return { kind: "upgraded", pods };
  } catch (error) {
    return await rollBack(work, plan, PullError.from(error), touched.template);
  }
}

async function upgradePods(work: Work, plan: Plan, touched: { template: boolean }): Promise<number> {
  const { pods, signal, warming, workload, request } = work;
  const { kind, name } = request;
  const goalOf = goalFor(work);
  const first = pods.all.filter((pod) => isServing(pod) && goalOf(pod) !== undefined);
  await warming.all(first, signal);
  const upgraded = new Set<string>();
  const rolling: RollingOptions = {
    ...rollingOf(work, plan),
    goalOf,
    prepare: async (pod, of) => {
      upgraded.add(uidOf(pod));
      await warming.of(pod, of);
    },
    failed: () => "end",
    signal,
  };
  await roll(rolling);
  if (kind === "pod") {
    const pod = pods.get(uidOf(workload.object));
    if (pod === undefined || !isServing(pod))
      throw new PullError("not_found", `pod/${name} has ended or was deleted meanwhile`);
    return upgraded.size;
  }
  if (differing(templateOf(workload.object), request.images).length > 0) {
    touched.template = true;
    await bringInLine(work);
  }
  // One may have been made of the former template just before.
  await roll(rolling);
  return upgraded.size;
}

function goalFor({ request, workload, pods, options }: Work): (pod: KubernetesObject) => Goal | undefined {
  const { images } = request;
  const template = request.kind === "pod" ? undefined : templateOf(workload.object);
  const skipped = pods.all.filter((pod) => isSkipped(pod, request, template));
  const uids = new Set(skipped.map(uidOf));
  if (skipped.length > 0) {
    const text = `${someOf(skipped.map(({ metadata }) => metadata.name))} was not ready, and is left alone`;
    options.told({ event: "note", text });
  }
  return (pod) => {
    if (uids.has(uidOf(pod))) return undefined;
    if (differing(pod, images).length === 0 && !isBegun(pod, template)) return undefined;
    // What no node has yet starts with it, whenever that is.
    return { images, isBack: false, mustBeReady: nodeOf(pod) !== undefined };
  };
}

/** Pods that nobody has taken out of service for an upgrade, and that are out of it. */
export function isSkipped(
  pod: KubernetesObject,
  { skipsUnready }: UpgradeRequest,
  template: unknown,
): boolean {
  return (skipsUnready ?? false) && isServing(pod) && !isInService(pod) && !isBegun(pod, template);
}

function rollingOf(work: Work, plan: Plan) {
  const { steady, pods, pathOf, request, options, workload } = work;
  const minReadySeconds = numberOf(fieldsOf(workload.object["spec"])["minReadySeconds"], 0);
  return {
    steady,
    pods,
    pathOf,
    graceMs: plan.graceMs ?? 0,
    timeoutMs: request.timeoutMs,
    minReadyMs: 1000 * minReadySeconds,
    told: options.told,
    settleMs: (options.pace ?? usualPace).settleMs,
    maxUnavailable: plan.maxUnavailable ?? 1,
    replicas: () => replicasOf(currentOf(work)),
  };
}

async function bringInLine(work: Work): Promise<void> {
  const { options, workload, steady, request, signal } = work;
  const name = `${request.kind}/${request.name}`;
  const fresh = await steady.get(workload.path, signal);
  if (uidOf(fresh) !== uidOf(workload.object))
    throw new PullError("not_found", `${name} was deleted and made anew meanwhile`);
  // It may have become one whose pods would be made anew by this.
  mustBeUpgradable({ ...workload, object: fresh }, request.images);
  const others = foreignIn(fresh, work);
  if (others.length > 0) {
    const text = `somebody has changed the template of ${name} meanwhile (${others.join(", ")}): it is left so`;
    options.told({ event: "note", text });
    return;
  }
  options.told({ event: "note", text: `the template of ${name} is brought in line` });
  await steady.amend(workload.path, fresh, (object) => templatePatch(object, request.images), signal);
}

/** Whatever ended it, the way back ends only when the lock is lost. */
async function rollBack(
  work: Work,
  plan: Plan,
  failure: PullError,
  isTemplateTouched: boolean,
): Promise<Outcome> {
  const { pods, lost, request, options, steady, workload } = work;
  const name = `${request.kind}/${request.name}`;
  if (lost.aborted) {
    const out = pods.all.filter((pod) => isServing(pod) && markOf(pod) && !isInService(pod));
    return { kind: "left", failure, left: [name, ...out.map(({ metadata }) => `pod ${metadata.name}`)] };
  }
  options.told({ event: "failure", error: failure.message });
  pods.forgive();
  try {
    for (const object of await steady.unsure(lost)) pods.saw(object);
  } catch (error) {
    return { kind: "left", failure, left: [`${name}: ${PullError.from(error).message}`] };
  }
  const isOurs = (pod: KubernetesObject): boolean => {
    const mark = markOf(pod);
    return isServing(pod) && mark !== undefined && areEqual(mark.to, request.images);
  };
  const goalOf = (pod: KubernetesObject): Goal | undefined => {
    const mark = markOf(pod);
    if (!isOurs(pod) || mark === undefined) return undefined;
    // Whether it is ready then is its own affair, where this has not exchanged it.
    const isBack = differing(pod, mark.from).length === 0 && isGateOpen(pod);
    return isBack ? undefined : { images: mark.from, isBack: true, mustBeReady: mark.wasReady };
  };
  const touched = new Set(pods.all.filter((pod) => goalOf(pod) !== undefined).map(uidOf));
  const left: string[] = [];
  const leave = (pod: KubernetesObject, error: PullError): "go on" => {
    left.push(`pod ${pod.metadata.name}: ${error.message}`);
    options.told({ event: "pod", pod: pod.metadata.name, step: "left", detail: error.message });
    return "go on";
  };
  try {
    if (isTemplateTouched) {
      const fresh = await steady.get(workload.path, lost);
      await steady.amend(workload.path, fresh, (object) => templateBack(object, work), lost);
    }
    await roll({ ...rollingOf(work, plan), goalOf, failed: leave, signal: lost });
  } catch (error) {
    const open = pods.all.filter((pod) => goalOf(pod) !== undefined).map(({ metadata }) => metadata.name);
    const names = open.length > 0 ? `pods ${someOf(open)}` : name;
    left.push(`${names}: ${PullError.from(error).message}`);
  }
  await unmarkAll(work, lost, (pod) => isOurs(pod) && goalOf(pod) === undefined);
  // Nobody makes it anew.
  const bare = request.kind === "pod" ? pods.get(uidOf(workload.object)) : undefined;
  if (request.kind === "pod" && !(bare && isServing(bare))) left.push(`${name}: it has ended, or is gone`);
  if (left.length > 0) return { kind: "left", failure, left };
  return { kind: "rolled back", failure, pods: touched.size };
}

/** Images in the template that are neither what it had when this began nor what it is to have. */
function foreignIn(object: KubernetesObject, { workload, request }: Work): readonly string[] {
  const former = imagesOf(templateOf(workload.object));
  const others = differing(templateOf(object), request.images);
  return others.flatMap(({ name, image }) => (image === former[name] ? [] : [`${name}: ${image}`]));
}

/** What of the template is ours becomes what it was. */
function templateBack(object: KubernetesObject, { workload, request }: Work): Patch | undefined {
  const former = differing(templateOf(workload.object), request.images);
  const now = imagesOf(templateOf(object));
  const ours = former.filter(({ name }) => now[name] === request.images[name]);
  return templatePatch(object, Object.fromEntries(ours.map(({ name, image }) => [name, image])));
}
