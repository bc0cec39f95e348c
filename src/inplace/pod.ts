// What is read of a pod: its containers and their images, whether it is ready, its gate, and the mark of an upgrade.
//
// Objects of the API are JSON of anybody's making: what is missing or of another type reads as nothing, and nothing here
// throws. Nothing here writes, either.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, listOf, numberOf, wordOf } from "../cluster/fields.ts";
import { conditionOf, readinessGate } from "../cluster/marks.ts";

/** On a pod that an upgrade has begun with: what it was, so that whoever comes next can go on or go back. */
export const upgradeAnnotation = "hawser.dev/upgrade";

/** By container. */
export type Images = Readonly<Record<string, string>>;

export interface Mark {
  readonly from: Images;
  readonly to: Images;
  /** Of the containers as they were, by which one that has been restarted is told. */
  readonly before: Readonly<Record<string, Running>>;
  readonly wasReady: boolean;
  /** What was added to what the pod's node is to have. */
  readonly prewarmed: readonly string[];
  /** What somebody else had asked the pod's node for before. */
  readonly request: string | undefined;
}

interface Running {
  readonly containerID: string;
  readonly imageID: string;
}

export interface Container {
  readonly name: string;
  readonly image: string;
  readonly list: "containers" | "initContainers";
  /** One that runs beside the others, and not before them and once. */
  readonly isRunning: boolean;
}

export interface ContainerState extends Running {
  readonly image: string;
  readonly isReady: boolean;
  readonly isRunning: boolean;
  readonly restarts: number;
  /** Of its last end. */
  readonly exitCode: number | undefined;
  /** Why it does not run, and what is said of it. */
  readonly reason: string | undefined;
  readonly message: string | undefined;
}

/** Of a pod, or of a pod's template. */
export function containersOf(object: unknown): readonly Container[] {
  const spec = fieldsOf(fieldsOf(object)["spec"]);
  const read = (list: Container["list"]) =>
    listOf(spec[list]).flatMap(({ name, image, restartPolicy }) =>
      typeof name === "string"
        ? [
            {
              name,
              image: wordOf(image) ?? "",
              list,
              isRunning: list === "containers" || restartPolicy === "Always",
            },
          ]
        : [],
    );
  return [...read("containers"), ...read("initContainers")];
}

export function imagesOf(object: unknown): Images {
  return Object.fromEntries(containersOf(object).map(({ name, image }) => [name, image]));
}

/** What it has, of the containers that are named here. */
export function imagesAmong(object: unknown, names: Images): Images {
  const all = imagesOf(object);
  return Object.fromEntries(Object.keys(names).map((name) => [name, imageFor(all, name) ?? ""]));
}

/** Names are anybody's, "constructor" as well. */
export function imageFor(images: Images, name: string): string | undefined {
  return Object.hasOwn(images, name) ? images[name] : undefined;
}

/** Of these containers, those that have other images. */
export function differing(object: unknown, wanted: Images): readonly Container[] {
  return containersOf(object).filter(({ name, image }) => {
    const other = imageFor(wanted, name);
    return other !== undefined && other !== image;
  });
}

/** Of a pod's or a template's spec, what gives these containers these images (strategic); undefined where they have them. */
export function specPatch(object: unknown, images: Images): Readonly<Record<string, unknown>> | undefined {
  const others = differing(object, images);
  if (others.length === 0) return undefined;
  return Object.fromEntries(
    (["containers", "initContainers"] as const).flatMap((list) => {
      const own = others.filter((container) => container.list === list);
      return own.length === 0
        ? []
        : [[list, own.map(({ name }) => ({ name, image: imageFor(images, name) }))]];
    }),
  );
}

export function stateOf(pod: KubernetesObject, container: string): ContainerState | undefined {
  const status = fieldsOf(pod["status"]);
  const all = [...listOf(status["containerStatuses"]), ...listOf(status["initContainerStatuses"])];
  const found = all.find(({ name }) => name === container);
  if (found === undefined) return undefined;
  const { waiting, terminated, running } = fieldsOf(found["state"]);
  const stopped = fieldsOf(waiting ?? terminated);
  const { terminated: last } = fieldsOf(found["lastState"]);
  return {
    containerID: wordOf(found["containerID"]) ?? "",
    imageID: wordOf(found["imageID"]) ?? "",
    image: wordOf(found["image"]) ?? "",
    isReady: found["ready"] === true,
    isRunning: running !== undefined,
    restarts: numberOf(found["restartCount"], 0),
    exitCode: numberOf(fieldsOf(terminated ?? last)["exitCode"], undefined),
    reason: wordOf(stopped["reason"]),
    message: wordOf(stopped["message"]),
  };
}

export function runningIn(pod: KubernetesObject, names: readonly string[]): Mark["before"] {
  return Object.fromEntries(
    names.map((name) => {
      const { containerID = "", imageID = "" } = stateOf(pod, name) ?? {};
      return [name, { containerID, imageID }];
    }),
  );
}

export function isReady(pod: KubernetesObject): boolean {
  return conditionOf(pod, "Ready")?.status === "True" && !isLeaving(pod);
}

/** Ready, and to stay so: its gate may have been closed before kubelet has seen it. */
export function isInService(pod: KubernetesObject): boolean {
  return isReady(pod) && (!hasGate(pod) || isGateOpen(pod));
}

export function areContainersReady(pod: KubernetesObject): boolean {
  return conditionOf(pod, "ContainersReady")?.status === "True";
}

/** On its way out, whoever has it deleted. */
export function isLeaving(pod: KubernetesObject): boolean {
  return fieldsOf(pod.metadata)["deletionTimestamp"] !== undefined;
}

export function isOver(pod: KubernetesObject): boolean {
  const { phase } = fieldsOf(pod["status"]);
  return phase === "Succeeded" || phase === "Failed";
}

/** To be in service, now or soon: neither over nor on its way out. */
export function isServing(pod: KubernetesObject): boolean {
  return !isOver(pod) && !isLeaving(pod);
}

export function hasGate(object: unknown): boolean {
  const spec = fieldsOf(fieldsOf(object)["spec"]);
  return listOf(spec["readinessGates"]).some(({ conditionType }) => conditionType === readinessGate);
}

export function isGateOpen(pod: KubernetesObject): boolean {
  return conditionOf(pod, readinessGate)?.status === "True";
}

export function nodeOf(pod: KubernetesObject): string | undefined {
  return wordOf(fieldsOf(pod["spec"])["nodeName"]);
}

export function uidOf({ metadata }: KubernetesObject): string {
  return metadata.uid ?? "";
}

export function annotationOf({ metadata }: KubernetesObject, name: string): string | undefined {
  return wordOf(fieldsOf(fieldsOf(metadata)["annotations"])[name]);
}

/** Whether kubelet has seen the pod as it is now; older ones do not say. */
export function observed(pod: KubernetesObject): "seen" | "unseen" | "unknown" {
  const { observedGeneration } = fieldsOf(pod["status"]);
  const { generation } = fieldsOf(pod.metadata);
  if (typeof observedGeneration !== "number" || typeof generation !== "number") return "unknown";
  return observedGeneration >= generation ? "seen" : "unseen";
}

export interface Owner {
  readonly apiVersion: string;
  readonly kind: string;
  readonly name: string;
  readonly uid: string;
}

/** Who makes its like anew when it goes. */
export function controllerOf({ metadata }: KubernetesObject): Owner | undefined {
  const found = listOf(fieldsOf(metadata)["ownerReferences"]).find(({ controller }) => controller === true);
  if (found === undefined) return undefined;
  const [apiVersion, kind, name, uid] = ["apiVersion", "kind", "name", "uid"].map(
    (key) => wordOf(found[key]) ?? "",
  );
  return { apiVersion: apiVersion ?? "", kind: kind ?? "", name: name ?? "", uid: uid ?? "" };
}

/** By the object, which never changes. */
const marks = new WeakMap<KubernetesObject, { readonly mark: Mark | undefined }>();

/** Undefined where there is none, or none of ours. */
export function markOf(pod: KubernetesObject): Mark | undefined {
  const { mark } = marks.get(pod) ?? { mark: readMark(pod) };
  marks.set(pod, { mark });
  return mark;
}

function readMark(pod: KubernetesObject): Mark | undefined {
  try {
    const mark = fieldsOf(JSON.parse(annotationOf(pod, upgradeAnnotation) ?? ""));
    return {
      from: readImages(mark["from"]),
      to: readImages(mark["to"]),
      before: Object.fromEntries(
        Object.entries(fieldsOf(mark["before"])).map(([name, value]) => {
          const { containerID, imageID } = fieldsOf(value);
          return [name, { containerID: wordOf(containerID) ?? "", imageID: wordOf(imageID) ?? "" }];
        }),
      ),
      wasReady: mark["wasReady"] === true,
      prewarmed: (Array.isArray(mark["prewarmed"]) ? mark["prewarmed"] : []).map(String),
      request: wordOf(mark["request"]),
    };
  } catch {
    return undefined;
  }
}

/**
 * The upgrade that a mark tells of has come to its end, and only the mark was left: the pod has the images and is in
 * service, and so is it in its template, which comes last.
 */
export function hasEnded(pod: KubernetesObject, mark: Mark, template: unknown): boolean {
  if (differing(pod, mark.to).length > 0) return false;
  if (template === undefined) return isInService(pod);
  return differing(template, mark.to).length === 0 && isGateOpen(pod);
}

/** An upgrade was begun with it and has not put it back into service: one that goes on, or was broken off. */
export function isBegun(pod: KubernetesObject, template: unknown): boolean {
  const mark = markOf(pod);
  if (mark === undefined || isInService(pod) || nodeOf(pod) === undefined) return false;
  // One that was only marked, and is out of service for reasons of its own, was not touched.
  const isTouched = !isGateOpen(pod) || differing(pod, mark.from).length > 0;
  return isTouched && !hasEnded(pod, mark, template);
}

export function areEqual(one: Images, other: Images): boolean {
  const names = Object.keys(one);
  return names.length === Object.keys(other).length && names.every((name) => one[name] === other[name]);
}

/** From JSON. */
export function readImages(value: unknown): Images {
  return Object.fromEntries(Object.entries(fieldsOf(value)).map(([name, word]) => [name, String(word)]));
}
