// The fake controllers: what they make of a template, what they do when it changes, and what they say of it.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { FakeApi } from "../fakes/api.ts";
import { FakeControllers } from "../fakes/controllers.ts";
import { FakeKubelet } from "../fakes/kubelet.ts";
import type { ContainerStatus, PodCondition, PodSpec } from "../fakes/kubernetes/podstatus.ts";
import type { ApiObject } from "../fakes/kubernetes/store.ts";

const pods = "/api/v1/pods";
const statefulSets = "/apis/apps/v1/statefulsets";
const daemonSets = "/apis/apps/v1/daemonsets";
const cloneSets = "/apis/apps.kruise.io/v1alpha1/clonesets";
const revisions = "/apis/apps/v1/controllerrevisions";
const nodes = ["node-1", "node-2"];
const gate = "InPlaceUpdateReady";

let api: FakeApi;
let controllers: FakeControllers;
let kubelets: FakeKubelet[];

beforeEach(async () => {
  api = await FakeApi.start();
  controllers = new FakeControllers({ api, nodes, kruise: true });
  kubelets = nodes.map((nodeName) => new FakeKubelet({ api, nodeName, images: (image) => `id-of-${image}` }));
});

afterEach(async () => {
  controllers[Symbol.dispose]();
  for (const kubelet of kubelets) await kubelet[Symbol.asyncDispose]();
  await api[Symbol.asyncDispose]();
});

function put(collection: string, image: string, spec: object = {}): void {
  const labels = { app: "web" };
  const template = { metadata: { labels }, spec: { containers: [{ name: "app", image }] } };
  const metadata = { name: "web", namespace: "default" };
  const former = api.read(collection, "web", "default");
  api.put(collection, {
    ...former,
    metadata: { ...former?.metadata, ...metadata },
    spec: { selector: { matchLabels: labels }, template, ...spec },
  });
}

function podNames(): string[] {
  return api.list(pods).map(({ metadata }) => metadata.name);
}

function imageOf(pod: ApiObject | undefined): string | undefined {
  return (pod?.["spec"] as PodSpec | undefined)?.containers?.[0]?.image;
}

async function untilStatus(collection: string, status: object): Promise<void> {
  await vi.waitFor(() => expect(api.read(collection, "web", "default")).toMatchObject({ status }), {
    timeout: 10_000,
  });
}

function conditionOf(pod: ApiObject, type: string): string | undefined {
  const { conditions = [] } = pod["status"] as { conditions?: readonly PodCondition[] };
  return conditions.find((one) => one.type === type)?.status;
}

test("a StatefulSet's pods are made in order, by turns on the nodes, and anew from the template when they go", async () => {
  put(statefulSets, "app:1", { replicas: 3, updateStrategy: { type: "OnDelete" } });
  await untilStatus(statefulSets, {
    observedGeneration: 1,
    replicas: 3,
    readyReplicas: 3,
    updatedReplicas: 3,
  });
  expect(podNames()).toEqual(["web-0", "web-1", "web-2"]);
  expect(api.list(pods).map((pod) => (pod["spec"] as PodSpec).nodeName)).toEqual([
    "node-1",
    "node-2",
    "node-1",
  ]);
  const { uid } = api.read(statefulSets, "web", "default")?.metadata ?? { uid: undefined };
  const [first] = api.list(revisions);
  expect(api.read(pods, "web-0", "default")?.metadata).toMatchObject({
    labels: { app: "web", "controller-revision-hash": first?.metadata.name },
    ownerReferences: [{ kind: "StatefulSet", apiVersion: "apps/v1", name: "web", uid, controller: true }],
  });
  put(statefulSets, "app:2", { replicas: 3, updateStrategy: { type: "OnDelete" } });
  await untilStatus(statefulSets, {
    observedGeneration: 2,
    updatedReplicas: 0,
    currentRevision: first?.metadata.name,
  });
  expect(api.list(pods).map(imageOf)).toEqual(["app:1", "app:1", "app:1"]);
  expect(api.list(revisions).map((one) => one["revision"])).toEqual([1, 2]);
  api.remove(pods, "web-1", "default");
  await untilStatus(statefulSets, { readyReplicas: 3, updatedReplicas: 1 });
  expect(imageOf(api.read(pods, "web-1", "default"))).toBe("app:2");
  put(statefulSets, "app:1", { replicas: 1, updateStrategy: { type: "OnDelete" } });
  await untilStatus(statefulSets, { replicas: 1, updatedReplicas: 1, updateRevision: first?.metadata.name });
  expect(api.list(revisions).map((one) => one["revision"])).toEqual([3, 2]);
  api.remove(statefulSets, "web", "default");
  expect(podNames()).toEqual([]);
});

test("a DaemonSet has a pod on each node, with the hash of its revision", async () => {
  put(daemonSets, "app:1", { updateStrategy: { type: "OnDelete" } });
  await untilStatus(daemonSets, { desiredNumberScheduled: 2, numberReady: 2, updatedNumberScheduled: 2 });
  const [first] = api.list(pods);
  const [revision] = api.list(revisions);
  const hash = (first?.metadata["labels"] as Record<string, string> | undefined)?.[
    "controller-revision-hash"
  ];
  expect(revision?.metadata).toMatchObject({
    name: `web-${hash}`,
    labels: { "controller-revision-hash": hash },
    ownerReferences: [{ kind: "DaemonSet", controller: true }],
  });
  put(daemonSets, "app:2", { updateStrategy: { type: "OnDelete" } });
  await untilStatus(daemonSets, { observedGeneration: 2, updatedNumberScheduled: 0 });
  api.remove(pods, first?.metadata.name ?? "", "default");
  await untilStatus(daemonSets, { numberReady: 2, updatedNumberScheduled: 1 });
  expect(new Set(api.list(pods).map(imageOf))).toEqual(new Set(["app:1", "app:2"]));
});

test("a CloneSet exchanges images in place, few at a time, with the gate closed before and opened after", async () => {
  const updateStrategy = { type: "InPlaceIfPossible", inPlaceUpdateStrategy: { gracePeriodSeconds: 0.02 } };
  put(cloneSets, "app:1", { replicas: 5, updateStrategy });
  await untilStatus(cloneSets, { replicas: 5, readyReplicas: 5, updatedReadyReplicas: 5 });
  const names = podNames();
  const broken: string[] = [];
  const silence = api.listen(({ collection, object, former }) => {
    if (collection !== pods || former === undefined) return;
    const unready = api.list(pods).filter((pod) => conditionOf(pod, "Ready") !== "True");
    if (unready.length > 1) broken.push(`${unready.length} pods are unready`);
    if (imageOf(object) !== imageOf(former) && conditionOf(former, "Ready") === "True")
      broken.push("exchanged while it is ready");
    const [status] = (object["status"] as { containerStatuses: ContainerStatus[] }).containerStatuses;
    const isOld = imageOf(object) === "app:2" && status?.imageID === "id-of-app:1";
    if (isOld && conditionOf(object, gate) === "True") broken.push("open before it is another");
  });
  put(cloneSets, "app:2", { replicas: 5, updateStrategy });
  await untilStatus(cloneSets, {
    observedGeneration: 2,
    updatedReadyReplicas: 5,
    expectedUpdatedReplicas: 5,
  });
  silence();
  expect(broken).toEqual([]);
  expect(podNames()).toEqual(names);
  expect(new Set(api.list(pods).map(imageOf))).toEqual(new Set(["app:2"]));
  const status = api.read(cloneSets, "web", "default")?.["status"] as Record<string, string> | undefined;
  expect(status?.["currentRevision"]).toBe(status?.["updateRevision"]);
});

test("a CloneSet holds back what its partition says, does nothing when paused, and makes anew what it has to", async () => {
  const inPlace = { type: "InPlaceOnly", maxUnavailable: "100%" };
  put(cloneSets, "app:1", { replicas: 4, updateStrategy: inPlace });
  await untilStatus(cloneSets, { updatedReadyReplicas: 4 });
  put(cloneSets, "app:2", { replicas: 4, updateStrategy: { ...inPlace, paused: true } });
  await untilStatus(cloneSets, { observedGeneration: 2, updatedReplicas: 0 });
  put(cloneSets, "app:2", { replicas: 4, updateStrategy: { ...inPlace, partition: "75%" } });
  await untilStatus(cloneSets, {
    observedGeneration: 3,
    updatedReadyReplicas: 1,
    expectedUpdatedReplicas: 1,
  });
  const names = podNames();
  const updateStrategy = { type: "ReCreate", partition: 1 };
  put(cloneSets, "app:2", { replicas: 4, updateStrategy });
  await untilStatus(cloneSets, { observedGeneration: 4, readyReplicas: 4, updatedReadyReplicas: 3 });
  expect(podNames().filter((name) => names.includes(name))).toHaveLength(2);
});

test("a gate that somebody else closes is opened by OpenKruise, for whom nothing is under way", async () => {
  put(cloneSets, "app:1", { replicas: 1, updateStrategy: { type: "InPlaceOnly" } });
  await untilStatus(cloneSets, { readyReplicas: 1 });
  const [name = ""] = podNames();
  const seen: unknown[] = [];
  const silence = api.listen(({ object }) => {
    if (object.metadata.name === name) seen.push(conditionOf(object, gate));
  });
  api.update(pods, name, "default", (pod) => {
    const status = pod["status"] as { conditions: readonly PodCondition[] };
    const conditions = status.conditions.map((one) =>
      one.type === gate ? { type: gate, status: "False" } : one,
    );
    return { ...pod, status: { ...status, conditions } };
  });
  await vi.waitFor(() => expect(seen.at(-1)).toBe("True"));
  silence();
  expect(seen[0]).toBe("False");
});

test("controllers that are paused do nothing until they are resumed", async () => {
  controllers.pause();
  put(daemonSets, "app:1");
  await new Promise(setImmediate);
  expect(podNames()).toEqual([]);
  controllers.resume();
  await untilStatus(daemonSets, { numberReady: 2 });
});

test.each([statefulSets, daemonSets])(
  "an update is rolled out one by one where that is asked for, and not with OnDelete: %s",
  async (collection) => {
    controllers[Symbol.dispose]();
    controllers = new FakeControllers({ api, nodes, rolls: true });
    const isDaemon = collection === daemonSets;
    const [ready, updated] = isDaemon
      ? ["numberReady", "updatedNumberScheduled"]
      : ["readyReplicas", "updatedReplicas"];
    put(collection, "app:1", { replicas: 2, updateStrategy: { type: "OnDelete" } });
    await untilStatus(collection, { [ready]: 2 });
    put(collection, "app:2", { replicas: 2, updateStrategy: { type: "OnDelete" } });
    await untilStatus(collection, { observedGeneration: 2, [ready]: 2, [updated]: 0 });
    const counts: number[] = [];
    const silence = api.listen(
      () => void counts.push(api.list(pods).filter((pod) => conditionOf(pod, "Ready") === "True").length),
    );
    put(collection, "app:2", { replicas: 2 });
    await untilStatus(collection, { observedGeneration: 3, [ready]: 2, [updated]: 2 });
    silence();
    expect(Math.min(...counts)).toBe(1);
    expect(api.list(pods).map(imageOf)).toEqual(["app:2", "app:2"]);
  },
);
