// The status that a kubelet gives a pod: of its containers, and the conditions that follow from them and from the pod's
// readiness gates. Conditions of others stay as they are.

import type { ApiObject } from "./store.ts";

export interface ContainerSpec {
  readonly name: string;
  readonly image: string;
  readonly imagePullPolicy?: string;
  readonly restartPolicy?: string;
  readonly command?: readonly string[];
  readonly args?: readonly string[];
}

export interface PodSpec {
  readonly nodeName?: string;
  readonly containers?: readonly ContainerSpec[];
  readonly initContainers?: readonly ContainerSpec[];
  readonly readinessGates?: readonly { readonly conditionType: string }[];
}

export interface PodCondition {
  readonly type: string;
  readonly status: string;
  readonly reason?: string;
  readonly message?: string;
  readonly lastTransitionTime?: string;
}

export interface ContainerState {
  readonly waiting?: { readonly reason: string; readonly message?: string };
  readonly running?: { readonly startedAt: string };
  readonly terminated?: {
    readonly exitCode: number;
    readonly reason: string;
    readonly startedAt: string;
    readonly finishedAt: string;
    readonly containerID: string;
  };
}

export interface ContainerStatus {
  readonly name: string;
  readonly image: string;
  readonly imageID: string;
  readonly containerID?: string;
  readonly ready: boolean;
  readonly started: boolean;
  readonly restartCount: number;
  readonly state: ContainerState;
  readonly lastState: ContainerState;
}

export function specOf(pod: ApiObject): PodSpec {
  return pod["spec"] ?? {};
}

export function isSidecar({ restartPolicy }: ContainerSpec): boolean {
  return restartPolicy === "Always";
}

/** RFC 3339 without fractions, as the API has times. */
export function timeNow(): string {
  return new Date().toISOString().replace(/\.\d+Z$/, "Z");
}

/** The pod with the status that follows from those of its containers. */
export function withStatus(
  pod: ApiObject,
  inits: readonly ContainerStatus[],
  containers: readonly ContainerStatus[],
): ApiObject {
  const former = (pod["status"] ?? {}) as { conditions?: readonly PodCondition[]; startTime?: string };
  const conditions = conditionsOf(pod, former.conditions ?? [], inits, containers);
  const wasStarted = containers.every(({ containerID }) => containerID !== undefined);
  const status = {
    ...former,
    observedGeneration: pod.metadata["generation"],
    phase: wasStarted ? "Running" : "Pending",
    startTime: former.startTime ?? timeNow(),
    conditions,
    ...(inits.length > 0 && { initContainerStatuses: inits }),
    containerStatuses: containers,
  };
  return { ...pod, status };
}

function conditionsOf(
  pod: ApiObject,
  former: readonly PodCondition[],
  inits: readonly ContainerStatus[],
  containers: readonly ContainerStatus[],
): PodCondition[] {
  const { initContainers = [], readinessGates = [] } = specOf(pod);
  const sidecars = new Set(initContainers.filter(isSidecar).map(({ name }) => name));
  const incomplete = inits.filter(({ name, started, state }) =>
    sidecars.has(name) ? !started : state.terminated?.exitCode !== 0,
  );
  const unready = [...inits.filter(({ name }) => sidecars.has(name)), ...containers].filter(
    ({ ready }) => !ready,
  );
  const containersReady = conditionFrom(
    "ContainersReady",
    "ContainersNotReady",
    unreadyMessage("unready", unready),
  );
  const gates = readinessGates.flatMap(({ conditionType }) => gateMessage(conditionType, former)).join(", ");
  const ready =
    containersReady.status === "True"
      ? conditionFrom("Ready", "ReadinessGatesNotReady", gates)
      : { ...containersReady, type: "Ready" };
  const own = [
    { type: "PodScheduled", status: "True" },
    conditionFrom("Initialized", "ContainersNotInitialized", unreadyMessage("incomplete", incomplete)),
    containersReady,
    ready,
  ];
  const types = new Set(own.map(({ type }) => type));
  const foreign = former.filter(({ type }) => !types.has(type));
  return [...foreign, ...own.map((condition) => sinceWhen(condition, former))];
}

function unreadyMessage(how: string, statuses: readonly ContainerStatus[]): string {
  if (statuses.length === 0) return "";
  return `containers with ${how} status: [${statuses.map(({ name }) => name).join(" ")}]`;
}

/** True without a message. */
function conditionFrom(type: string, reason: string, message: string): PodCondition {
  return message === "" ? { type, status: "True" } : { type, status: "False", reason, message };
}

function gateMessage(type: string, conditions: readonly PodCondition[]): readonly string[] {
  const found = conditions.find((one) => one.type === type);
  if (found?.status === "True") return [];
  if (found === undefined) return [`corresponding condition of pod readiness gate "${type}" does not exist.`];
  return [`the status of pod readiness gate "${type}" is not "True", but ${found.status}`];
}

function sinceWhen(condition: PodCondition, former: readonly PodCondition[]): PodCondition {
  const same = former.find(({ type, status }) => type === condition.type && status === condition.status);
  return { ...condition, lastTransitionTime: same?.lastTransitionTime ?? timeNow() };
}
