// What is to be upgraded: read from the API, and refused where its pods would be made anew instead, with the change to its
// manifest that would help.

import type { Cluster, Collection, KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, listOf, numberOf, wordOf } from "../cluster/fields.ts";
import { readinessGate } from "../cluster/marks.ts";
import { PullError } from "../errors.ts";
import type { Kind, Target } from "./inplace.ts";
import {
  annotationOf,
  containersOf,
  controllerOf,
  hasGate,
  type Images,
  isLeaving,
  isOver,
  uidOf,
} from "./pod.ts";

export interface Workload {
  readonly target: Target;
  readonly path: string;
  readonly object: KubernetesObject;
  /** Its pods, and perhaps others. */
  readonly collection: Collection;
  readonly isOwn: (pod: KubernetesObject) => boolean;
}

const groups: Readonly<Record<Exclude<Kind, "pod">, readonly string[]>> = {
  statefulset: ["/apis/apps/v1"],
  daemonset: ["/apis/apps/v1"],
  // Newer versions of OpenKruise have both.
  cloneset: ["/apis/apps.kruise.io/v1alpha1", "/apis/apps.kruise.io/v1beta1"],
};

/** Kubelet makes a pod of it that the API only shows. */
const mirrorAnnotation = "kubernetes.io/config.mirror";

/** Throws `not_found`, `refused` and `unavailable` as the API says. */
export async function readWorkload(cluster: Cluster, target: Target, signal: AbortSignal): Promise<Workload> {
  const { kind, namespace, name } = target;
  const pods = `/api/v1/namespaces/${encodeURIComponent(namespace)}/pods`;
  if (kind === "pod") {
    const path = `${pods}/${encodeURIComponent(name)}`;
    const object = { apiVersion: "v1", kind: "Pod", ...(await cluster.get(path, signal)) };
    const collection = { path: pods, fieldSelector: `metadata.name=${name}`, isCurrent: true };
    return { target, path, object, collection, isOwn: (pod) => uidOf(pod) === uidOf(object) };
  }
  const { path, object } = await readFirst(cluster, target, groups[kind], signal);
  const collection = { path: pods, labelSelector: selectorOf(object), isCurrent: true };
  return { target, path, object, collection, isOwn: (pod) => controllerOf(pod)?.uid === uidOf(object) };
}

async function readFirst(
  cluster: Cluster,
  { kind, namespace, name }: Target,
  places: readonly string[],
  signal: AbortSignal,
): Promise<Pick<Workload, "path" | "object">> {
  let failure = new PullError("not_found", `there is no ${kind}/${name} in namespace ${namespace}`);
  for (const place of places) {
    const path = `${place}/namespaces/${encodeURIComponent(namespace)}/${kind}s/${encodeURIComponent(name)}`;
    try {
      return { path, object: await cluster.get(path, signal) };
    } catch (error) {
      failure = PullError.from(error);
      if (failure.code !== "not_found") throw failure;
    }
  }
  throw new PullError(
    "not_found",
    `there is no ${kind}/${name} in namespace ${namespace}: ${failure.message}`,
  );
}

/** As a query has it; an object without one selects nothing that is owned. */
function selectorOf(object: KubernetesObject): string {
  const selector = fieldsOf(fieldsOf(object["spec"])["selector"]);
  const labels = Object.entries(fieldsOf(selector["matchLabels"])).map(
    ([key, value]) => `${key}=${String(value)}`,
  );
  const expressions = listOf(selector["matchExpressions"]).map(({ key, operator, values }) => {
    const all = (Array.isArray(values) ? values : []).map(String).join(",");
    if (operator === "Exists") return String(key);
    if (operator === "DoesNotExist") return `!${String(key)}`;
    return `${String(key)} ${operator === "NotIn" ? "notin" : "in"} (${all})`;
  });
  return [...labels, ...expressions].join(",");
}

/** Throws `unsupported` with what stands against it, and what would help. */
export function mustBeUpgradable({ target, object }: Workload, images: Images): void {
  const { kind, name } = target;
  const template = kind === "pod" ? object : fieldsOf(object["spec"])["template"];
  for (const container of Object.keys(images)) mustHave(container, template, `${kind}/${name}`);
  if (kind === "pod") mustBeBare(object);
  else if (kind === "cloneset") mustNotBePaused(object);
  else mustBeOnDelete(target, object);
  if (kind !== "cloneset" && !hasGate(template)) throw new PullError("unsupported", gateText(target));
}

function mustHave(name: string, template: unknown, where: string): void {
  const containers = containersOf(template);
  const found = containers.find((container) => container.name === name);
  if (found?.isRunning) return;
  if (found)
    throw new PullError(
      "unsupported",
      `${where}: ${name} is an init container, which does not run a second time in its pod`,
    );
  const names = containers.flatMap((container) => (container.isRunning ? [container.name] : []));
  throw new PullError("invalid", `${where} has no container ${name}: it has ${names.join(", ")}`);
}

function mustBeBare(pod: KubernetesObject): void {
  const { name } = pod.metadata;
  if (annotationOf(pod, mirrorAnnotation) !== undefined)
    throw new PullError("unsupported", `pod/${name} is a static pod: change its manifest on its node`);
  const owner = controllerOf(pod);
  if (owner) {
    const kind = owner.kind.toLowerCase();
    const group = owner.apiVersion.split("/")[0];
    const isOurs =
      (group === "apps" && (kind === "statefulset" || kind === "daemonset")) ||
      (group === "apps.kruise.io" && kind === "cloneset");
    const help = isOurs
      ? `upgrade ${kind}/${owner.name}`
      : `${owner.apiVersion} ${owner.kind} cannot be upgraded in place`;
    throw new PullError("unsupported", `pod/${name} belongs to ${kind}/${owner.name}: ${help}`);
  }
  if (isOver(pod)) throw new PullError("unsupported", `pod/${name} has ended: make it anew`);
  const policy = wordOf(fieldsOf(pod["spec"])["restartPolicy"]) ?? "Always";
  if (policy !== "Always")
    throw new PullError(
      "unsupported",
      `pod/${name} has restartPolicy ${policy}: it would end for good if its next container did not start at once`,
    );
  if (isLeaving(pod)) throw new PullError("unsupported", `pod/${name} is being deleted`);
}

function mustNotBePaused({ metadata: { name }, ...object }: KubernetesObject): void {
  const { paused } = fieldsOf(fieldsOf(object["spec"])["updateStrategy"]);
  if (paused === true)
    throw new PullError(
      "unsupported",
      `cloneset/${name} is paused: OpenKruise updates nothing until spec.updateStrategy.paused is false`,
    );
}

function mustBeOnDelete({ kind, name }: Target, object: KubernetesObject): void {
  const type = wordOf(fieldsOf(fieldsOf(object["spec"])["updateStrategy"])["type"]) ?? "RollingUpdate";
  if (type === "OnDelete") return;
  throw new PullError(
    "unsupported",
    `${kind}/${name} makes its pods anew when its template changes (spec.updateStrategy.type is ${type}): ` +
      `set it to OnDelete, as with kubectl patch ${kind} ${name} --type merge ` +
      `-p '{"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null}}}'`,
  );
}

function gateText({ kind, name }: Target): string {
  const gate = `readinessGates: [{conditionType: ${readinessGate}}]`;
  if (kind === "pod")
    return `pod/${name} cannot be taken out of service while it is upgraded: make it anew with spec.${gate}`;
  return (
    `the pods of ${kind}/${name} cannot be taken out of service while they are upgraded: ` +
    `add ${gate} to spec.template.spec, and delete them one after another, since only new pods get it`
  );
}

/** Those that were made before the gate was in the template. Throws `unsupported`. */
export function mustHaveGates(pods: readonly KubernetesObject[]): void {
  const without = pods.filter((pod) => !hasGate(pod)).map(({ metadata }) => metadata.name);
  if (without.length === 0) return;
  throw new PullError(
    "unsupported",
    `pods without readiness gate ${readinessGate}: ${someOf(without)}; they were made before it was in their template: ` +
      `delete them one after another, since only new pods get it`,
  );
}

export function someOf(names: readonly string[]): string {
  const more = names.length - 5;
  return more > 0 ? `${names.slice(0, 5).join(", ")} and ${more} more` : names.join(", ");
}

/** How many pods there should be. */
export function replicasOf({ target, object }: Workload): number {
  if (target.kind === "pod") return 1;
  if (target.kind === "daemonset") return numberOf(fieldsOf(object["status"])["desiredNumberScheduled"], 0);
  return numberOf(fieldsOf(object["spec"])["replicas"], 1);
}
