// The fake kubelet: which containers it restarts, what it says of them and of their pod, and how it fails.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { FakeApi } from "../fakes/api.ts";
import { FakeKubelet } from "../fakes/kubelet.ts";
import type { ContainerStatus, PodCondition } from "../fakes/kubernetes/podstatus.ts";

const pods = "/api/v1/pods";
const gate = "InPlaceUpdateReady";

let api: FakeApi;
let kubelet: FakeKubelet;
let pull: (image: string) => Promise<string> | string;

beforeEach(async () => {
  api = await FakeApi.start();
  pull = (image) => `id-of-${image}`;
  kubelet = new FakeKubelet({ api, images: async (image) => await pull(image) });
});

afterEach(async () => {
  await kubelet[Symbol.asyncDispose]();
  await api[Symbol.asyncDispose]();
});

interface Status {
  readonly phase: string;
  readonly observedGeneration: number;
  readonly conditions: readonly PodCondition[];
  readonly containerStatuses: readonly ContainerStatus[];
  readonly initContainerStatuses?: readonly ContainerStatus[];
}

function statusOf(name = "web"): Status {
  return api.read(pods, name, "default")?.["status"] as Status;
}

/** Of the container by this name. */
function container(name: string): ContainerStatus | undefined {
  const { initContainerStatuses = [], containerStatuses } = statusOf();
  return [...initContainerStatuses, ...containerStatuses].find((one) => one.name === name);
}

function condition(type: string): PodCondition | undefined {
  return statusOf().conditions.find((one) => one.type === type);
}

function put(spec: object = {}): void {
  const containers = [
    { name: "app", image: "app:1" },
    { name: "side", image: "side:1" },
  ];
  api.put(pods, {
    metadata: { name: "web", namespace: "default" },
    spec: { nodeName: api.nodeName, containers, ...spec },
  });
}

function setImage(name: string, image: string): void {
  api.update(pods, "web", "default", (pod) => {
    const {
      containers = [],
      initContainers = [],
      ...rest
    } = pod["spec"] as Record<string, { name: string }[]>;
    const exchanged = (all: { name: string }[]) =>
      all.map((one) => (one.name === name ? { ...one, image } : one));
    const spec = { ...rest, containers: exchanged(containers), initContainers: exchanged(initContainers) };
    return { ...pod, spec };
  });
}

function setGate(status: string): void {
  api.update(pods, "web", "default", (pod) => {
    const { conditions, ...rest } = pod["status"] as Status;
    const others = conditions.filter(({ type }) => type !== gate);
    return { ...pod, status: { ...rest, conditions: [...others, { type: gate, status }] } };
  });
}

async function untilReady(): Promise<void> {
  await vi.waitFor(() => expect(condition("Ready")).toMatchObject({ status: "True" }));
}

async function untilWaiting(name: string, reason: string): Promise<void> {
  await vi.waitFor(() => expect(container(name)?.state.waiting?.reason).toBe(reason), { interval: 2 });
}

test("exactly the container whose image is another is restarted, sidecars among them", async () => {
  const initContainers = [
    { name: "init", image: "init:1" },
    { name: "proxy", image: "proxy:1", restartPolicy: "Always" },
  ];
  put({ initContainers });
  await untilReady();
  const [app, side, proxy] = [container("app"), container("side"), container("proxy")];
  expect(app).toMatchObject({ image: "app:1", imageID: "id-of-app:1", restartCount: 0, lastState: {} });
  setImage("app", "app:2");
  await vi.waitFor(() =>
    expect(container("app")).toMatchObject({ imageID: "id-of-app:2", restartCount: 1, ready: true }),
  );
  expect(container("app")).toMatchObject({
    lastState: { terminated: { exitCode: 137, containerID: app?.containerID } },
  });
  expect(container("app")?.containerID).not.toBe(app?.containerID);
  expect([container("side"), container("proxy")]).toEqual([side, proxy]);
  setImage("proxy", "proxy:2");
  await vi.waitFor(() =>
    expect(container("proxy")).toMatchObject({ image: "proxy:2", restartCount: 1, ready: true }),
  );
  expect(container("app")).toMatchObject({ restartCount: 1 });
  expect(statusOf()).toMatchObject({ phase: "Running", observedGeneration: 3 });
  api.update(pods, "web", "default", (pod) => ({
    ...pod,
    metadata: { ...pod.metadata, labels: { a: "b" } },
  }));
  await untilReady();
  const started = (name: string): number =>
    kubelet.events.filter((event) => event === `Started web/${name}`).length;
  expect(["init", "proxy", "app", "side"].map(started)).toEqual([1, 2, 2, 1]);
});

test("a pod is ready when its gates are, and foreign conditions stay", async () => {
  put({ readinessGates: [{ conditionType: gate }] });
  await vi.waitFor(() =>
    expect(condition("Ready")).toMatchObject({
      status: "False",
      reason: "ReadinessGatesNotReady",
      message: `corresponding condition of pod readiness gate "${gate}" does not exist.`,
    }),
  );
  expect(condition("ContainersReady")).toMatchObject({ status: "True" });
  setGate("True");
  await untilReady();
  setGate("False");
  await vi.waitFor(() =>
    expect(condition("Ready")?.message).toBe(
      `the status of pod readiness gate "${gate}" is not "True", but False`,
    ),
  );
  expect(condition(gate)).toEqual({ type: gate, status: "False" });
});

test("a pull that fails is told, backed off, and tried again; the status stays as it was while it lasts", async () => {
  put();
  await untilReady();
  let open = (): void => {};
  pull = async (image) => {
    await new Promise<void>((resolve) => {
      open = resolve;
    });
    throw new Error(`no ${image}`);
  };
  setImage("app", "app:2");
  await vi.waitFor(() => expect(kubelet.events).toContain("Pulling web/app: app:2"));
  expect(kubelet.events).toContain("Killing web/app: Container app definition changed, will be restarted");
  expect(container("app")).toMatchObject({ state: { running: {} }, ready: true, imageID: "id-of-app:1" });
  pull = (image) => {
    throw new Error(`no ${image}`);
  };
  const reasons: unknown[] = [];
  const silence = api.listen(() => void reasons.push(container("app")?.state.waiting?.reason));
  open();
  await untilWaiting("app", "ImagePullBackOff");
  silence();
  expect(reasons).toContain("ErrImagePull");
  expect(container("app")).toMatchObject({
    ready: false,
    imageID: "id-of-app:1",
  });
  expect(condition("Ready")).toMatchObject({
    reason: "ContainersNotReady",
    message: "containers with unready status: [app]",
  });
  await untilWaiting("app", "ImagePullBackOff");
  expect(container("app")?.state.waiting?.message).toContain('Back-off pulling image "app:2"');
  pull = (image) => `id-of-${image}`;
  await untilReady();
  expect(container("app")).toMatchObject({ imageID: "id-of-app:2", restartCount: 1 });
});

test("what crashes is restarted later each time, until its image is another", async () => {
  kubelet.behave = (image) => (image === "app:2" ? { exitsWith: 1 } : undefined);
  put();
  await untilReady();
  setImage("app", "app:2");
  await untilWaiting("app", "CrashLoopBackOff");
  await vi.waitFor(() => expect(container("app")?.restartCount).toBeGreaterThan(2));
  expect(container("app")).toMatchObject({ lastState: { terminated: { exitCode: 1, reason: "Error" } } });
  setImage("app", "app:1");
  await untilReady();
});

test("readiness comes late, never, or when it is let to", async () => {
  kubelet.behave = (image) =>
    image === "app:1" ? { readyAfterMs: 30 } : image === "app:2" ? { neverReady: true } : {};
  put();
  await vi.waitFor(() => expect(container("app")).toMatchObject({ started: true, ready: false }), {
    interval: 2,
  });
  await untilReady();
  setImage("app", "app:2");
  await vi.waitFor(() => expect(container("app")).toMatchObject({ image: "app:2", ready: false }));
  kubelet.holdReadiness();
  setImage("app", "app:3");
  await vi.waitFor(() => expect(container("app")).toMatchObject({ image: "app:3", ready: false }));
  kubelet.releaseReadiness();
  await untilReady();
});

test("a kubelet that is paused does nothing until it is resumed; a pod that goes is stopped, and another is another", async () => {
  put();
  await untilReady();
  const former = container("app")?.containerID;
  kubelet.pause();
  setImage("app", "app:2");
  api.remove(pods, "web", "default");
  put();
  expect(statusOf()).toBeUndefined();
  kubelet.resume();
  await vi.waitFor(() => expect(statusOf()).toBeDefined());
  await untilReady();
  expect(container("app")).toMatchObject({ restartCount: 0, image: "app:1" });
  expect(container("app")?.containerID).not.toBe(former);
});

test("an image that is to be pulled always is pulled at each start, another when the node lacks it", async () => {
  const app = { name: "app", image: "app:1", imagePullPolicy: "Always" };
  put({ containers: [app, { name: "again", image: "app:1" }] });
  await untilReady();
  setImage("app", "app:2");
  setImage("again", "app:2");
  await vi.waitFor(() => expect(container("again")).toMatchObject({ image: "app:2", ready: true }));
  expect(kubelet.events.filter((event) => event.startsWith("Pulling"))).toEqual([
    "Pulling web/app: app:1",
    "Pulling web/app: app:2",
  ]);
});
