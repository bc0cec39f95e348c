// Upgrades in place, each kind of workload and each kind of failure, against fakes of the cluster that pull nothing.

import { afterEach, expect, test } from "vitest";
import { conditionOf, prewarmAnnotation, readinessGate, requestAnnotation } from "../../src/cluster/marks.ts";
import type { UpgradeRequest } from "../../src/inplace/inplace.ts";
import { upgradeAnnotation } from "../../src/inplace/pod.ts";
import { eventually } from "../harness/process.ts";
import { digestOf, namespace, podSpec, pods, quick, Rig } from "./rig.ts";

const leases = "/apis/coordination.k8s.io/v1/leases";

let rig: Rig;

afterEach(async () => {
  await rig[Symbol.asyncDispose]();
});

function identities(): unknown[] {
  return rig.all.map(({ metadata: { name, uid }, spec }) => [
    name,
    uid,
    (spec as { nodeName: string }).nodeName,
  ]);
}

function expectClean(): void {
  expect(rig.unready).toEqual([]);
  expect(rig.annotations).toEqual([]);
  expect(rig.api.list(leases)).toEqual([]);
}

/** Every pod has this image; and what stands beside it is as it was. */
function expectImages(image: string): void {
  expect(new Set(Object.values(rig.images))).toEqual(new Set([image]));
  if (rig.kind !== "pod") expect(rig.template).toBe(image);
  expectClean();
}

async function refusal(more: Partial<UpgradeRequest> = {}): Promise<Error> {
  const [planned, done] = await Promise.all([
    rig.plan(more).catch((error: unknown) => error as Error),
    rig.upgrade(more).catch((error: unknown) => error as Error),
  ]);
  expect(planned).toBeInstanceOf(Error);
  expect(done).toBeInstanceOf(Error);
  expect((planned as Error).message).toBe((done as Error).message);
  return planned as Error;
}

test.each(["statefulset", "daemonset", "pod"] as const)(
  "a %s gets the image in the pods that there are, one after another, and its template last",
  async (kind) => {
    rig = await Rig.open(3, { kind });
    const before = identities();
    const plan = await rig.plan();
    expect(plan.pods.map(({ from }) => from)).toEqual(before.map(() => ({ app: "app:1" })));
    expect(await rig.upgrade()).toEqual({ kind: "upgraded", pods: before.length });
    expect(identities()).toEqual(before);
    expect(rig.worst).toBe(1);
    expectImages("app:2");
    // Only the container that was meant.
    for (const { events } of rig.kubelets)
      expect(events.filter((event) => event.startsWith("Killing") && event.includes("/side"))).toEqual([]);
    expect(await rig.plan()).toMatchObject({ pods: [], changes: [] });
    expect(await rig.upgrade()).toEqual({ kind: "upgraded", pods: 0 });
  },
);

test.each(["statefulset", "daemonset"] as const)(
  "the pods of a %s count as updated, and an update that its controller rolls out by itself has nothing to do",
  async (kind) => {
    rig = await Rig.open(2, { kind });
    await rig.upgrade();
    const updated = kind === "statefulset" ? "updatedReplicas" : "updatedNumberScheduled";
    await eventually(async () => {
      expect(await Promise.resolve(rig.workload?.["status"])).toMatchObject({ [updated]: 2 });
    }, "pods counted as updated");
  },
);

test("pods that differ from the template in more than images are told, and not said to be of its revision", async () => {
  rig = await Rig.open(2);
  const { spec } = rig.workload as unknown as { spec: { template: { spec: object } } };
  const template = { ...spec.template, spec: { ...spec.template.spec, terminationGracePeriodSeconds: 5 } };
  rig.putWorkload("statefulset", 2, { template });
  await eventually(async () => {
    expect(await Promise.resolve(rig.workload?.["status"])).toMatchObject({ updatedReplicas: 0 });
  }, "a new revision");
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded" });
  expect(rig.workload?.["status"]).toMatchObject({ updatedReplicas: 0 });
  expect(rig.steps).toContain(
    "web-0, web-1 differ from the template of statefulset/web in more than these images",
  );
});

test("a CloneSet is told to exchange the images in place, within its own limits", async () => {
  rig = await Rig.open(4, { kind: "cloneset" });
  const before = identities();
  const plan = await rig.plan({ maxUnavailable: { count: 2 }, graceMs: 0 });
  expect(plan.changes).toEqual([
    "spec.template.spec.containers, app: app:1 -> app:2",
    "spec.updateStrategy.type: ReCreate -> InPlaceIfPossible",
    "spec.updateStrategy.maxUnavailable: unset -> 2, until it is upgraded",
    'spec.updateStrategy.inPlaceUpdateStrategy: unset -> {"gracePeriodSeconds":0}, until it is upgraded',
  ]);
  const outcome = await rig.upgrade({ maxUnavailable: { count: 2 }, graceMs: 0 });
  expect(outcome).toEqual({ kind: "upgraded", pods: 4 });
  expect(identities()).toEqual(before);
  expect(rig.worst).toBeLessThanOrEqual(2);
  expect(rig.workload).toHaveProperty("spec.updateStrategy", { type: "InPlaceIfPossible" });
  expect(Object.keys(rig.workload?.metadata["annotations"] ?? {})).toEqual([]);
  expectImagesOfCloneSet("app:2");
});

function expectImagesOfCloneSet(image: string): void {
  expect(new Set(Object.values(rig.images))).toEqual(new Set([image]));
  expect(rig.template).toBe(image);
  expect(rig.unready).toEqual([]);
  expect(rig.annotations.filter((name) => name.startsWith("hawser.dev/"))).toEqual([]);
}

test("a CloneSet with a partition: those that it keeps are kept, and a failure takes back the others", async () => {
  const spec = { updateStrategy: { type: "InPlaceIfPossible", partition: "50%", maxUnavailable: 1 } };
  rig = await Rig.open(4, { kind: "cloneset", spec });
  expect(await rig.upgrade({ images: { app: "app:crash" } })).toMatchObject({ kind: "rolled back" });
  expectImagesOfCloneSet("app:1");
  expect(rig.workload).toMatchObject({ spec });
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded" });
  expect(Object.values(rig.images).sort()).toEqual(["app:1", "app:1", "app:2", "app:2"]);
});

test.each(["statefulset", "daemonset", "cloneset", "pod"] as const)(
  "a %s whose new containers crash becomes what it was",
  async (kind) => {
    rig = await Rig.open(3, { kind });
    const before = identities();
    const strategy = (rig.workload?.["spec"] as { updateStrategy?: unknown } | undefined)?.updateStrategy;
    const outcome = await rig.upgrade({ images: { app: "app:crash" } });
    expect(outcome).toMatchObject({ kind: "rolled back", failure: { code: "unsupported" } });
    if (outcome.kind !== "rolled back") return;
    expect(outcome.failure.message).toMatch(
      /^pod web\S*: container app crashes: it ended 2 times, at last with exit code 1$/,
    );
    expect(identities()).toEqual(before);
    expect(rig.worst).toBe(1);
    expect((rig.workload?.["spec"] as { updateStrategy?: unknown } | undefined)?.updateStrategy).toEqual(
      strategy,
    );
    if (kind === "cloneset") expectImagesOfCloneSet("app:1");
    else expectImages("app:1");
  },
);

test.each(["statefulset", "daemonset", "cloneset", "pod"] as const)(
  "an image that a node of a %s cannot have is told before anything is touched",
  async (kind) => {
    rig = await Rig.open(3, { kind });
    const specs = rig.all.map((pod) => pod["spec"]);
    rig.fetch = () => ({ state: "failed", code: "not_found", error: "manifest unknown" });
    const outcome = await rig.upgrade();
    expect(outcome).toMatchObject({ kind: "rolled back", pods: 0 });
    if (outcome.kind !== "rolled back") return;
    expect(outcome.failure.message).toMatch(
      /^node node-\d cannot have app:2 for pod web\S*: manifest unknown$/,
    );
    expect(rig.all.map((pod) => pod["spec"])).toEqual(specs);
    expect(rig.worst).toBe(0);
    expect(rig.annotations.filter((name) => name.startsWith("hawser.dev/"))).toEqual([]);
  },
);

test("a failure to fetch that may pass is waited for, and told", async () => {
  rig = await Rig.open(2);
  rig.fetch = () => ({ state: "failed", code: "unavailable", error: "503" });
  const done = rig.upgrade();
  await eventually(
    async () =>
      expect(await Promise.resolve(rig.events)).toContainEqual(
        expect.objectContaining({ detail: "app:2: 503" }),
      ),
    "told",
  );
  expect(rig.worst).toBe(0);
  rig.fetch = (image) => ({ state: "warm", digest: digestOf(image) });
  // The daemon says more by itself; here any change of the pod has it looked at again.
  for (const { metadata } of rig.all) touch(metadata.name);
  expect(await done).toMatchObject({ kind: "upgraded" });
});

function touch(name: string): void {
  rig.api.update(pods, name, namespace, (pod) => ({
    ...pod,
    metadata: { ...pod.metadata, labels: { ...Object(pod.metadata["labels"]), touched: "yes" } },
  }));
}

test("a node on which no Hawser answers is named, with what would help", async () => {
  rig = await Rig.open(2);
  rig.fetch = () => undefined;
  const outcome = await rig.upgrade({}, undefined, { ...quick, answerMs: 300 });
  expect(outcome).toMatchObject({ kind: "rolled back", pods: 0 });
  if (outcome.kind !== "rolled back") return;
  expect(outcome.failure.message).toMatch(
    /no Hawser on node node-\d has answered.*prewarm\.pods = true.*--no-prewarm/,
  );
  expectImages("app:1");
});

test("without pre-warming, an image that kubelet does not get is rolled back", async () => {
  rig = await Rig.open(2);
  rig.fetch = () => undefined;
  expect(await rig.upgrade({ isPrewarmed: false })).toMatchObject({ kind: "upgraded" });
  expectImages("app:2");
  const outcome = await rig.upgrade({ isPrewarmed: false, images: { app: "missing:1" } });
  expect(outcome).toMatchObject({ kind: "rolled back", pods: 1 });
  if (outcome.kind !== "rolled back") return;
  expect(outcome.failure.message).toMatch(/container app does not start: ImagePullBackOff/);
  expectImages("app:2");
});

test.each([
  {
    what: "that never become ready",
    image: "app:never",
    told: /did not come to run the images within 1 s: containers/,
  },
  { what: "whose kubelet is dead", image: "app:2", told: /did not leave service within 1 s/ },
])("pods $what are rolled back once their time is over", async ({ image, told }) => {
  rig = await Rig.open(2);
  if (image === "app:2") for (const kubelet of rig.kubelets) kubelet.pause();
  rig.onEvent = ({ event }) => {
    if (event === "failure") for (const kubelet of rig.kubelets) kubelet.resume();
  };
  const outcome = await rig.upgrade({ images: { app: image }, timeoutMs: 1_000 });
  expect(outcome).toMatchObject({ kind: "rolled back", pods: 1, failure: { code: "slow" } });
  if (outcome.kind === "rolled back") expect(outcome.failure.message).toMatch(told);
  expectImages("app:1");
});

test("a gate that is not enough to be ready by is told with what kubelet says", async () => {
  const other = "example.com/other";
  const gates = [{ conditionType: readinessGate }, { conditionType: other }];
  rig = await Rig.open(0);
  rig.putWorkload("statefulset", 1, {
    template: { metadata: { labels: { app: "web" } }, spec: { ...podSpec(), readinessGates: gates } },
  });
  const set = (status: string): void => {
    rig.api.update(pods, "web-0", namespace, (pod) => {
      const { conditions, ...rest } = pod["status"] as { conditions: { type: string }[] };
      const others = conditions.filter(({ type }) => type !== other);
      return { ...pod, status: { ...rest, conditions: [...others, { type: other, status }] } };
    });
  };
  await eventually(async () => {
    if (rig.all.length > 0) set("True");
    expect(
      await Promise.resolve(rig.all.filter((pod) => conditionOf(pod, "Ready")?.status === "True")),
    ).toHaveLength(1);
  }, "a pod");
  rig.onEvent = (event) => {
    if (event.event === "pod" && event.step === "entering service") set("False");
    if (event.event === "failure") set("True");
  };
  const outcome = await rig.upgrade({ timeoutMs: 1_000 });
  expect(outcome).toMatchObject({ kind: "rolled back", failure: { code: "slow" } });
  if (outcome.kind === "rolled back")
    expect(outcome.failure.message).toMatch(/did not become ready.*example\.com\/other/);
  expectImages("app:1");
});

test("the API forbids half way what it allowed: rolled back, and what cannot be is named", async () => {
  rig = await Rig.open(2);
  rig.api.behave = ({ identity, method, path, body }) =>
    identity === "operator" &&
    method === "PATCH" &&
    JSON.stringify(body).includes("app:2") &&
    path.endsWith("/web-0") &&
    "spec" in Object(body)
      ? { status: 403 }
      : undefined;
  const outcome = await rig.upgrade();
  expect(outcome).toMatchObject({ kind: "rolled back", pods: 2, failure: { code: "refused" } });
  expectImages("app:1");
});

test("a pod that cannot become what it was is left and named, and the others are gone on with", async () => {
  rig = await Rig.open(3);
  rig.onEvent = (event) => {
    // The former image does not run any more on one of the nodes.
    if (event.event === "failure")
      for (const kubelet of rig.kubelets)
        if (kubelet.nodeName === "node-2") kubelet.behave = () => ({ exitsWith: 1 });
  };
  rig.api.behave = ({ identity, body, path }) =>
    identity === "operator" &&
    path.endsWith("/web-0") &&
    "spec" in Object(body) &&
    JSON.stringify(body).includes("app:2")
      ? { status: 403 }
      : undefined;
  const outcome = await rig.upgrade();
  expect(outcome).toMatchObject({ kind: "left", failure: { code: "refused" } });
  if (outcome.kind !== "left") return;
  expect(outcome.left.join()).toMatch(/^pod web-1: .*container app crashes/);
  expect(rig.worst).toBe(1);
  expect(rig.images).toMatchObject({ "web-0": "app:1", "web-1": "app:1" });
});

test("no more pods are out of service than may be, whoever has made them so, and those go first", async () => {
  rig = await Rig.open(5);
  rig.worst = 0;
  expect(await rig.upgrade({ maxUnavailable: { percent: 50 } })).toEqual({ kind: "upgraded", pods: 5 });
  expect(rig.worst).toBe(2);
  // One that is broken takes the place of one that might be upgraded.
  const broken = "web-1";
  setGate(broken, "False");
  await eventually(
    async () => expect(await Promise.resolve(rig.unready)).toEqual([broken]),
    "a pod that is out",
  );
  rig.worst = 0;
  rig.events.splice(0);
  expect(await rig.upgrade({ images: { app: "app:3" } })).toEqual({ kind: "upgraded", pods: 5 });
  expect(rig.worst).toBe(1);
  const firsts = rig.events.flatMap((event) =>
    event.event === "pod" && event.step === "leaving service" ? [event.pod] : [],
  );
  expect(firsts).toEqual([broken, "web-4", "web-3", "web-2", "web-0"]);
});

function setGate(name: string, status: string): void {
  rig.api.update(pods, name, namespace, (pod) => {
    const { conditions, ...rest } = pod["status"] as { conditions: { type: string }[] };
    const others = conditions.filter(({ type }) => type !== readinessGate);
    return { ...pod, status: { ...rest, conditions: [...others, { type: readinessGate, status }] } };
  });
}

test("a pod that stays broken for another reason stands in the way, and is named", async () => {
  rig = await Rig.open(2);
  const [node] = rig.kubelets;
  // Its containers run what they are to run already, and are not ready.
  await rig.upgrade({ images: { side: "side:2" } });
  node?.holdReadiness();
  rig.api.update(pods, "web-0", namespace, (pod) => ({
    ...pod,
    spec: withImage(pod["spec"], "side", "side:never"),
  }));
  await eventually(
    async () => expect(await Promise.resolve(rig.unready)).toEqual(["web-0"]),
    "a pod that is out",
  );
  const outcome = await rig.upgrade({ timeoutMs: 500 });
  expect(outcome).toMatchObject({ kind: "rolled back" });
  expect(rig.images).toEqual({ "web-0": "app:1", "web-1": "app:1" });
});

function withImage(spec: unknown, name: string, image: string): object {
  const { containers, ...rest } = spec as { containers: { name: string }[] };
  const changed = containers.map((one) => Object.assign({}, one, one.name === name && { image }));
  return { ...rest, containers: changed };
}

test("a pod that is deleted meanwhile comes back and is upgraded as well; one that nobody makes anew is a failure", async () => {
  rig = await Rig.open(2);
  rig.onEvent = (event) => {
    if (event.event !== "pod" || event.step !== "restarting" || event.pod !== "web-1") return;
    rig.onEvent = () => {};
    rig.api.remove(pods, "web-1", namespace);
  };
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded" });
  expectImages("app:2");
  await rig[Symbol.asyncDispose]();
  rig = await Rig.open(1, { kind: "pod" });
  rig.onEvent = (event) => {
    if (event.event === "pod" && event.step === "restarting") rig.api.remove(pods, "web", namespace);
  };
  const outcome = await rig.upgrade();
  expect(outcome.kind === "upgraded" ? "" : outcome.failure.message).toBe(
    "pod/web has ended or was deleted meanwhile",
  );
});

test("a workload that is scaled meanwhile: fewer pods are enough, and new ones are upgraded as well", async () => {
  rig = await Rig.open(4);
  const scale = (replicas: number): void => {
    rig.api.update("/apis/apps/v1/statefulsets", "web", namespace, (workload) => ({
      ...workload,
      spec: { ...Object(workload["spec"]), replicas },
    }));
  };
  rig.onEvent = (event) => {
    if (event.event !== "pod" || event.step !== "done") return;
    if (event.pod === "web-3") scale(2);
    if (event.pod === "web-1") scale(3);
  };
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded" });
  expect(Object.keys(rig.images)).toEqual(["web-0", "web-1", "web-2"]);
  expectImages("app:2");
});

test("a template that somebody else has changed meanwhile is left so, and told", async () => {
  rig = await Rig.open(1);
  rig.onEvent = (event) => {
    if (event.event !== "pod" || event.step !== "entering service") return;
    const spec = withImage(podSpec(), "app", "app:theirs");
    rig.putWorkload("statefulset", 1, { template: { metadata: { labels: { app: "web" } }, spec } });
  };
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded" });
  expect([rig.template, rig.images]).toEqual(["app:theirs", { "web-0": "app:2" }]);
  expect(rig.steps).toContain(
    "somebody has changed the template of statefulset/web meanwhile (app: app:theirs)",
  );
});

test("the same bytes under another name, and a name that stands for other bytes than the nodes were told of", async () => {
  rig = await Rig.open(2);
  const same = digestOf("app:1");
  rig.imageID = () => `registry/app@${same}`;
  rig.fetch = () => ({ state: "warm", digest: same });
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded", pods: 2 });
  expectImages("app:2");
  for (const { events } of rig.kubelets)
    expect(events.filter((event) => event.startsWith("Killing"))).toHaveLength(1);
  rig.imageID = (image) => `registry/${image}@${digestOf(`moved ${image}`)}`;
  expect(await rig.upgrade({ images: { app: "app:3" } })).toMatchObject({ kind: "upgraded", pods: 2 });
  expectImages("app:3");
});

test.each([true, false])(
  "what was wanted on the pods already stays, and what was added goes; images on the nodes first: %s",
  async (isPrewarmed) => {
    rig = await Rig.open(1);
    const wanted = { [prewarmAnnotation]: "other:1,app:2", [requestAnnotation]: "somebody's" };
    rig.api.update(pods, "web-0", namespace, (pod) => ({
      ...pod,
      metadata: { ...pod.metadata, annotations: wanted },
    }));
    const images = { app: "app:2", side: "side:2" };
    expect(await rig.upgrade({ images, isPrewarmed })).toMatchObject({ kind: "upgraded" });
    expect(rig.all[0]?.metadata["annotations"]).toEqual(wanted);
  },
);

test("what was wanted on the pods stays, through an upgrade that was broken off and another one behind it", async () => {
  rig = await Rig.open(1);
  const wanted = { [prewarmAnnotation]: "other:1", [requestAnnotation]: "somebody's" };
  rig.api.update(pods, "web-0", namespace, (pod) => ({
    ...pod,
    metadata: { ...pod.metadata, annotations: wanted },
  }));
  // The pod is marked, and then nothing more gets through.
  rig.api.behave = ({ identity, method, body }) =>
    identity === "operator" &&
    method === "PATCH" &&
    !JSON.stringify(body).includes(`"${upgradeAnnotation}":"`)
      ? { status: 403 }
      : undefined;
  expect(await rig.upgrade({ images: { app: "app:2" } })).toMatchObject({ kind: "rolled back" });
  expect(rig.all[0]?.metadata["annotations"]).not.toEqual(wanted);
  rig.api.behave = () => undefined;
  expect(await rig.upgrade({ images: { app: "app:2" } })).toMatchObject({ kind: "upgraded" });
  expect(rig.all[0]?.metadata["annotations"]).toEqual(wanted);
});

test("two upgrades at once: one is refused with who is at it, and a third may as soon as that has ended", async () => {
  rig = await Rig.open(3);
  let isFirst = true;
  const begun = new Promise<void>((resolve) => {
    rig.onEvent = () => {
      if (isFirst) resolve();
      isFirst = false;
    };
  });
  const first = rig.upgrade({ graceMs: 400 });
  await begun;
  await expect(rig.upgrade({ images: { app: "app:3" } })).rejects.toMatchObject({
    code: "exists",
    message: expect.stringMatching(/another upgrade of it goes on, by tester \(\w+\)/),
  });
  expect(await first).toMatchObject({ kind: "upgraded" });
  expect(await rig.upgrade({ images: { app: "app:3" } })).toMatchObject({ kind: "upgraded" });
  expect(rig.worst).toBe(1);
  expectImages("app:3");
});

test("what would make pods anew is refused, with the change to the manifest that would help", async () => {
  rig = await Rig.open(1);
  rig.putWorkload("statefulset", 1, { updateStrategy: {} });
  expect((await refusal()).message).toMatch(
    /makes its pods anew.*RollingUpdate.*set it to OnDelete.*kubectl patch statefulset web .*"type":"OnDelete"/,
  );
  const { readinessGates, ...spec } = podSpec() as { readinessGates: unknown };
  expect(readinessGates).toBeDefined();
  rig.putWorkload("statefulset", 1, { template: { metadata: { labels: { app: "web" } }, spec } });
  expect((await refusal()).message).toMatch(
    /add readinessGates: \[\{conditionType: InPlaceUpdateReady\}\] to spec\.template\.spec/,
  );
  expect((await refusal({ name: "other" })).message).toMatch(
    /there is no statefulset\/other in namespace shop/,
  );
  expect((await refusal({ kind: "daemonset" })).message).toMatch(/there is no daemonset\/web/);
  expect((await refusal({ kind: "cloneset" })).message).toMatch(/there is no cloneset\/web/);
  expect((await refusal({ kind: "pod", name: "web-0" })).message).toMatch(
    /belongs to statefulset\/web: upgrade statefulset\/web/,
  );
  expect(
    rig.api.requests.filter((request) => rig.isChange(request) && !request.path.includes("leases")),
  ).toEqual([]);
});

test("pods from before the gate was in the template are refused by name", async () => {
  rig = await Rig.open(0);
  const { readinessGates, ...spec } = podSpec() as { readinessGates: unknown };
  expect(readinessGates).toBeDefined();
  rig.putWorkload("statefulset", 2, { template: { metadata: { labels: { app: "web" } }, spec } });
  await rig.untilReady(2);
  rig.putWorkload("statefulset", 2);
  expect((await refusal()).message).toMatch(
    /pods without readiness gate InPlaceUpdateReady: web-1, web-0; .*delete them one after another/,
  );
});

test("containers that are not there, or do not run again, and workloads that are paused are refused", async () => {
  rig = await Rig.open(1, { kind: "cloneset" });
  expect((await refusal({ images: { ap: "app:2" } })).message).toBe(
    "cloneset/web has no container ap: it has app, side",
  );
  rig.putWorkload("cloneset", 1, { updateStrategy: { paused: true } });
  expect((await refusal()).message).toMatch(/is paused: .*spec\.updateStrategy\.paused is false/);
  const spec = { ...podSpec(), initContainers: [{ name: "init", image: "init:1" }] };
  rig.putWorkload("cloneset", 1, { template: { metadata: { labels: { app: "web" } }, spec } });
  expect((await refusal({ images: { init: "init:2" } })).message).toMatch(/init is an init container/);
});

test("a sidecar that is an init container is exchanged as well", async () => {
  const spec = {
    ...podSpec(),
    initContainers: [{ name: "proxy", image: "proxy:1", restartPolicy: "Always" }],
  };
  rig = await Rig.open(1, { kind: "pod", spec });
  expect(await rig.upgrade({ images: { proxy: "proxy:2" } })).toMatchObject({ kind: "upgraded", pods: 1 });
  expect(rig.all[0]?.["spec"]).toMatchObject({ initContainers: [{ image: "proxy:2" }] });
});

test("permissions that are missing are named before anything is done, all of them", async () => {
  rig = await Rig.open(1);
  const kubeconfig = rig.api.kubeconfigFor({
    name: "reader",
    rules: [{ apiGroups: ["*"], resources: ["*"], verbs: ["get", "list", "watch"] }],
  });
  const options = rig.optionsWith(kubeconfig);
  const never = new AbortController().signal;
  const { planUpgrade } = await import("../../src/inplace/upgrade.ts");
  const planned = planUpgrade(options, { ...rig.request, graceMs: 0 }, never);
  await expect(planned).rejects.toMatchObject({
    code: "refused",
    message: expect.stringContaining(
      "in namespace shop: patch pods, create leases, patch leases, delete leases, patch pods/status, patch statefulsets (config/kubernetes/upgrade",
    ),
  });
});
