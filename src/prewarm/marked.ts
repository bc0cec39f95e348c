// What a pod says of images that are to be here ahead of need, and what there is to be said on it: of a pod only that is
// kept, and of an image's entry in the queue what it comes to for whoever asked.
//
// Pods are JSON of anybody's making: what is read of them is bounded, and what makes no sense counts as absent. Nothing
// here asks or writes anything.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, listOf, wordOf } from "../cluster/fields.ts";
import {
  type Condition,
  conditionOf,
  type ImageReport,
  prewarmAnnotation,
  prewarmedCondition,
  readinessGate,
  reportOn,
  requestAnnotation,
} from "../cluster/marks.ts";
import type { Digest } from "../oci/digest.ts";
import type { Entry } from "./queue.ts";

/** What is kept of a pod on which something is to be said, or was. */
export interface MarkedPod {
  readonly metadata: KubernetesObject["metadata"];
  /** Of images, as the annotation has them, each once. */
  readonly names: readonly string[];
  /** The first of those that are left out, where it names too many. */
  readonly beyond: string | undefined;
  readonly request: string | undefined;
  /** What is said on it now. */
  readonly said: Condition | undefined;
  /** It has the readiness gate of pods whose images are exchanged in place, which nobody is going to open. */
  readonly isShut: boolean;
}

export const imagesMax = 100;

/** Undefined where nothing is to be said, and nothing was. */
export function markedPod(pod: KubernetesObject): MarkedPod | undefined {
  if (isOver(pod)) return undefined;
  const { name, namespace = "default", uid = "", resourceVersion = "" } = pod.metadata;
  const all = namesOn(pod);
  const request = all.length === 0 ? undefined : requestOn(pod);
  const said = conditionOf(pod, prewarmedCondition);
  const isGated = hasLeftGate(pod);
  const isShut = isGated && conditionOf(pod, readinessGate) === undefined;
  // One that was opened is remembered, so that this is done once.
  if (all.length === 0 && said === undefined && !isGated) return undefined;
  const metadata = { name, namespace, uid, resourceVersion };
  return { metadata, names: all.slice(0, imagesMax), beyond: all[imagesMax], request, said, isShut };
}

/** Kubelet starts nothing of it any more. */
export function isOver({ metadata, status }: KubernetesObject): boolean {
  const { phase } = fieldsOf(status);
  return fieldsOf(metadata)["deletionTimestamp"] !== undefined || phase === "Succeeded" || phase === "Failed";
}

/** What the annotation of a pod, or of a node, names, each once. */
export function namesOn(object: KubernetesObject): string[] {
  const text = annotation(object, prewarmAnnotation) ?? "";
  const names = text.split(",").map((one) => one.trim());
  return [...new Set(names)].filter((one) => one !== "");
}

export function requestOn(pod: KubernetesObject): string | undefined {
  return annotation(pod, requestAnnotation);
}

function annotation({ metadata }: KubernetesObject, name: string): string | undefined {
  return wordOf(fieldsOf(fieldsOf(metadata)["annotations"])[name]);
}

/**
 * OpenKruise opens the gate of its own workloads' pods, and shuts it while it exchanges an image. In anybody else's pods
 * nobody sets the condition when they are made, and a StatefulSet would wait for its first pod forever.
 */
function hasLeftGate(pod: KubernetesObject): boolean {
  const gates = listOf(fieldsOf(pod["spec"])["readinessGates"]);
  if (!gates.some(({ conditionType }) => conditionType === readinessGate)) return false;
  const owners = listOf(fieldsOf(pod.metadata)["ownerReferences"]);
  return !owners.some(({ apiVersion }) => String(apiVersion).split("/")[0] === "apps.kruise.io");
}

/** Images that a report, whoever wrote it, says are warm for this request, by their names. */
export function formerlyWarm(pod: KubernetesObject, request: string | undefined): Map<string, ImageReport> {
  const report = reportOn(pod);
  const entries = report?.request === request ? Object.entries(report?.images ?? {}) : [];
  const found = entries.flatMap(([name, image]): [string, ImageReport][] => {
    const { state, digest } = fieldsOf(image);
    return state === "warm" ? [[name, { state, ...(typeof digest === "string" && { digest }) }]] : [];
  });
  return new Map(found);
}

/**
 * What an entry comes to for who asked when so many attempts had begun (undefined for who asked for no answer of its own):
 * only what began later can tell what the registry says now. `formerly` is what was said before this process began.
 */
export function imageReport(
  entry: Entry | undefined,
  after: number | undefined,
  formerly: ImageReport | undefined,
): ImageReport {
  if (entry === undefined) return formerly ?? { state: "wanted" };
  const { condition, busySinceMs, trouble, endedAttempt, goodAttempt } = entry;
  const isAnswer = (attempt: number): boolean => after === undefined || attempt > after;
  if (condition.kind === "warm") {
    if (isAnswer(goodAttempt)) return warm(condition.hold?.target ?? condition.listed);
    if (trouble && isAnswer(endedAttempt)) return failed(trouble);
  }
  if (condition.kind === "failed" && isAnswer(endedAttempt)) return failed(condition.failure);
  if (endedAttempt === 0 && formerly) return formerly;
  return { state: busySinceMs === undefined ? "wanted" : "fetching" };
}

export function failed({ code, message }: { readonly code: string; readonly message: string }): ImageReport {
  return { state: "failed", code, error: message };
}

function warm(digest: Digest | undefined): ImageReport {
  return { state: "warm", ...(digest && { digest }) };
}
