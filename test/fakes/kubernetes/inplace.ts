// OpenKruise's exchange of a pod's images in place: the gate is closed, the images are patched after the grace, and the
// gate is opened again once the images of the containers are others. What is under way is in the pod's annotations.

import type { FakeApi } from "../api.ts";
import { type ContainerSpec, type ContainerStatus, type PodCondition, specOf, timeNow } from "./podstatus.ts";
import type { ApiObject } from "./store.ts";
import { conditionsOf, hashLabel, pods, type Revision } from "./workload.ts";

export const gateType = "InPlaceUpdateReady";
const stateAnnotation = "apps.kruise.io/inplace-update-state";
const graceAnnotation = "apps.kruise.io/inplace-update-grace";

interface State {
  readonly revision: string;
  readonly updateTimestamp: string;
  readonly lastContainerStatuses: Readonly<Record<string, { readonly imageID: string }>>;
}

interface Grace {
  readonly containerImages: Readonly<Record<string, string>>;
  readonly graceSeconds: number;
}

/** Begins with it. */
export function exchange(
  api: FakeApi,
  pod: ApiObject,
  { name, template }: Revision,
  graceSeconds: number,
): void {
  setGate(api, pod, { status: "False", reason: "StartInPlaceUpdate" });
  const wanted = new Map((template.spec.containers ?? []).map((one) => [one.name, one.image]));
  const others = (specOf(pod).containers ?? []).filter((one) => wanted.get(one.name) !== one.image);
  const containerImages = Object.fromEntries(others.map((one) => [one.name, wanted.get(one.name) ?? ""]));
  const state: State = {
    revision: name,
    updateTimestamp: new Date().toISOString(),
    lastContainerStatuses: Object.fromEntries(
      statusesOf(pod)
        .filter((one) => one.name in containerImages)
        .map((one) => [one.name, { imageID: one.imageID }]),
    ),
  };
  const grace: Grace = { containerImages, graceSeconds };
  update(api, pod, (now) => ({
    ...(graceSeconds > 0 ? now : withImages(now, containerImages)),
    metadata: {
      ...now.metadata,
      labels: { ...Object(now.metadata["labels"]), [hashLabel]: name },
      annotations: {
        ...Object(now.metadata["annotations"]),
        [stateAnnotation]: JSON.stringify(state),
        ...(graceSeconds > 0 && { [graceAnnotation]: JSON.stringify(grace) }),
      },
    },
  }));
}

/** Goes on with what is due; opens the gate of a pod of which nothing is under way, whoever has closed it. */
export function refresh(api: FakeApi, pod: ApiObject, wakeIn: (ms: number) => void): void {
  const gate = conditionsOf(pod).find(({ type }) => type === gateType);
  const { readinessGates = [] } = specOf(pod);
  if (!readinessGates.some(({ conditionType }) => conditionType === gateType)) return;
  const state = read(pod, stateAnnotation) as State | undefined;
  const grace = read(pod, graceAnnotation) as Grace | undefined;
  if (state && grace) {
    const leftMs = Date.parse(state.updateTimestamp) + 1000 * grace.graceSeconds - Date.now();
    if (leftMs > 0) wakeIn(leftMs);
    else finishGrace(api, pod, grace);
  } else if (gate?.status !== "True" && (state === undefined || isExchanged(pod, state))) {
    setGate(api, pod, { status: "True" });
  }
}

function finishGrace(api: FakeApi, pod: ApiObject, { containerImages }: Grace): void {
  update(api, pod, (now) => {
    const { [graceAnnotation]: _, ...annotations } = Object(now.metadata["annotations"]) as Record<
      string,
      string
    >;
    return { ...withImages(now, containerImages), metadata: { ...now.metadata, annotations } };
  });
}

function isExchanged(pod: ApiObject, { lastContainerStatuses }: State): boolean {
  const now = new Map(statusesOf(pod).map((one) => [one.name, one.imageID]));
  return Object.entries(lastContainerStatuses).every(([name, { imageID }]) => now.get(name) !== imageID);
}

function withImages(pod: ApiObject, images: Readonly<Record<string, string>>): ApiObject {
  const spec = specOf(pod);
  const exchanged = (one: ContainerSpec): ContainerSpec => ({ ...one, image: images[one.name] ?? one.image });
  const containers = (spec.containers ?? []).map(exchanged);
  return { ...pod, spec: { ...spec, containers } };
}

function setGate(api: FakeApi, pod: ApiObject, gate: Omit<PodCondition, "type">): void {
  update(api, pod, (now) => {
    const own = { type: gateType, lastTransitionTime: timeNow(), ...gate };
    const others = conditionsOf(now).filter(({ type }) => type !== gateType);
    const conditions = [...others.map((one) => (gate.status === "False" ? withoutReady(one) : one)), own];
    return { ...now, status: { ...Object(now["status"]), conditions } };
  });
}

/** Nobody is to wait for kubelet until the pod is ready no more. */
function withoutReady(condition: PodCondition): PodCondition {
  if (condition.type !== "Ready" || condition.status !== "True") return condition;
  const message = `the status of pod readiness gate "${gateType}" is not "True", but False`;
  const lastTransitionTime = timeNow();
  return { type: "Ready", status: "False", reason: "ReadinessGatesNotReady", message, lastTransitionTime };
}

function statusesOf(pod: ApiObject): readonly ContainerStatus[] {
  return (pod["status"] as { containerStatuses?: readonly ContainerStatus[] }).containerStatuses ?? [];
}

function read(pod: ApiObject, annotation: string): unknown {
  const text = (Object(pod.metadata["annotations"]) as Record<string, string | undefined>)[annotation];
  return text === undefined ? undefined : JSON.parse(text);
}

function update(api: FakeApi, { metadata }: ApiObject, change: (pod: ApiObject) => ApiObject): void {
  api.update(pods, metadata.name, metadata.namespace ?? "", change);
}
