// Pre-warming by what the cluster has scheduled: pods that are bound to this node, their secrets, their end, what is said
// on them, and an API that is away. Containerd and its pulls are real, the API is a fake.

import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { createCluster } from "../../src/cluster/client.ts";
import type { KubernetesObject } from "../../src/cluster/cluster.ts";
import {
  conditionOf,
  type ImageReport,
  prewarmedCondition,
  readinessGate,
  reportOn,
} from "../../src/cluster/marks.ts";
import { askAdmin } from "../../src/front/client.ts";
import type { PrewarmStatus } from "../../src/prewarm/prewarming.ts";
import { FakeApi } from "../fakes/api.ts";
import { type Asked, type Behaviour, FakeRegistry, gate } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

const [pods, nodes, secrets] = ["/api/v1/pods", "/api/v1/nodes", "/api/v1/secrets"] as const;
const login = { username: "somebody", password: "secret-of-somebody" };

let registry: FakeRegistry;
let containerd: PrivateContainerd;
let api: FakeApi;
let hawser: PrivateHawser;
let images = 0;

beforeAll(async () => {
  [registry, containerd] = await Promise.all([FakeRegistry.start(), PrivateContainerd.start()]);
});

afterAll(async () => {
  await registry[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
});

beforeEach(async () => {
  api = await FakeApi.start();
  api.put(nodes, { metadata: { name: api.nodeName } });
  api.put(pods, { metadata: { name: "elsewhere" }, spec: { nodeName: "node-2" } });
  hawser = await PrivateHawser.start({
    containerd: containerd.address,
    config: `[prewarm]\npods = true\nkubeconfig = "${api.kubeconfig}"\nmax_concurrent = 3`,
  });
});

afterEach(async () => {
  registry.behave = () => undefined;
  await hawser[Symbol.asyncDispose]();
  await api[Symbol.asyncDispose]();
});

function makeImage() {
  images += 1;
  return registry.put(`pods/image${images}:v1`, [{ bytes: tarGz([file(`f${images}`, `image ${images}`)]) }]);
}

type Image = ReturnType<typeof makeImage>;

function blobRequests(...all: readonly Image[]): number {
  return all.reduce((sum, { layers }) => sum + registry.rangesOf(layers[0]?.digest ?? "").length, 0);
}

function put(name: string, spec: object, more: object = {}): void {
  api.put(pods, {
    metadata: { name, namespace: "default" },
    spec: { nodeName: api.nodeName, ...spec },
    status: { phase: "Pending" },
    ...more,
  });
}

const container = (name: string, { reference }: Image, imagePullPolicy = "IfNotPresent") => ({
  name,
  image: reference,
  imagePullPolicy,
});

async function ask(): Promise<PrewarmStatus> {
  return (await askAdmin(join(hawser.root, "admin.sock"), "GET", "/prewarm")) as PrewarmStatus;
}

/** Each image that the tests made, with its state. */
async function states(): Promise<Record<string, string>> {
  const { images: all } = await ask();
  return Object.fromEntries(all.map(({ name, state }) => [name, state]));
}

async function untilStates(expected: Readonly<Record<string, string>>): Promise<void> {
  await eventually(async () => expect(await states()).toMatchObject(expected), JSON.stringify(expected));
}

async function untilTrouble(pattern: RegExp): Promise<void> {
  await eventually(async () => expect((await ask()).troubles.join("\n")).toMatch(pattern), String(pattern));
}

async function mustPull(image: Image, auth?: typeof login): Promise<void> {
  expect(await hawser.cri.pull(image.reference, auth)).toEqual({ value: image.configDigest });
}

function behind(user: typeof login): (asked: Asked) => Behaviour | undefined {
  const right = `Basic ${Buffer.from(`${user.username}:${user.password}`).toString("base64")}`;
  return ({ authorization }) =>
    authorization === right
      ? undefined
      : { status: 401, headers: { "www-authenticate": 'Basic realm="fake"' } };
}

function putSecret(password: string): void {
  const auth = Buffer.from(`${login.username}:${password}`).toString("base64");
  const text = JSON.stringify({ auths: { [registry.host]: { auth } } });
  const data = { ".dockerconfigjson": Buffer.from(text).toString("base64") };
  api.put(secrets, { metadata: { name: "pull", namespace: "default" }, data });
}

/** A pod with these of our annotations, and with the status that it has. */
async function annotate(name: string, value: string | undefined, request?: string): Promise<void> {
  const annotations = {
    ...(value !== undefined && { "hawser.dev/prewarm": value }),
    ...(request !== undefined && { "hawser.dev/prewarm-request": request }),
  };
  const { status } = await podOf(name).catch(() => ({ status: { phase: "Running" } }));
  put(name, {}, { status, metadata: { name, namespace: "default", annotations } });
}

async function podOf(name: string): Promise<KubernetesObject> {
  const cluster = createCluster({ files: [api.kubeconfig] });
  return await cluster.get(`/api/v1/namespaces/default/pods/${name}`, AbortSignal.timeout(10_000));
}

/** What is said on the pod: whether all is warm, the request, and each image. */
async function untilSaid(
  name: string,
  status: "True" | "False",
  request: string | undefined,
  expected: Readonly<Record<string, Partial<ImageReport>>>,
): Promise<void> {
  await eventually(async () => {
    const pod = await podOf(name);
    expect(conditionOf(pod, prewarmedCondition)?.status).toBe(status);
    const report = reportOn(pod);
    expect(report?.request).toBe(request);
    expect(Object.keys(report?.images ?? {})).toEqual(Object.keys(expected));
    expect(report?.images).toMatchObject(expected);
  }, JSON.stringify(expected));
}

const patches = () => api.requests.filter(({ method }) => method === "PATCH").length;

test("all images of a pod are warm before kubelet asks for the first, and held no more once it has them", async () => {
  const [init, app, sidecar, volume, never] = [1, 2, 3, 4, 5].map(makeImage) as [
    Image,
    Image,
    Image,
    Image,
    Image,
  ];
  const spec = {
    initContainers: [container("init", init)],
    containers: [
      container("app", app, "Always"),
      container("sidecar", sidecar),
      container("never", never, "Never"),
    ],
    volumes: [{ name: "data", image: { reference: volume.reference, pullPolicy: "IfNotPresent" } }],
  };
  put("web", spec);
  const all = [init, app, sidecar, volume];
  await untilStates(Object.fromEntries(all.map(({ reference }) => [reference, "warm"])));
  expect(Object.keys(await states())).not.toContain(never.reference);
  expect(blobRequests(...all)).toBe(4);
  for (const image of all) await mustPull(image);
  expect(blobRequests(...all)).toBe(4);
  const statusOf = (name: string) => ({ name, imageID: "sha256:of-whatever", state: { running: {} } });
  put("web", spec, {
    status: {
      phase: "Running",
      initContainerStatuses: [statusOf("init")],
      containerStatuses: ["app", "sidecar", "never"].map(statusOf),
    },
  });
  await eventually(async () => expect(await states()).toEqual({}), "nothing that is held");
  expect(containerd.ctr("leases", "ls")).not.toContain("io.hawser/warm");
});

test("an image that the node has is not asked for again, unless the pod wants that", async () => {
  const [present, always] = [makeImage(), makeImage()];
  for (const image of [present, always]) await mustPull(image);
  const before = registry.asked.length;
  put("web", { containers: [container("a", present), container("b", always, "Always")] });
  await untilStates({ [present.reference]: "warm", [always.reference]: "warm" });
  const asked = registry.asked.slice(before).map(({ method, path }) => `${method} ${path}`);
  expect(asked).toEqual([
    `HEAD /v2/${always.reference.split("/").slice(1).join("/").replace(":", "/manifests/")}`,
  ]);
});

test("a pod that is deleted has its work stopped", async () => {
  const image = makeImage();
  const paused = gate();
  registry.behave = ({ path }) =>
    path.includes("/blobs/") ? { after: 10, afterwards: paused.opened } : undefined;
  put("web", { containers: [container("app", image)] });
  await untilStates({ [image.reference]: "fetching" });
  api.remove(pods, "web", "default");
  await eventually(
    async () => expect(Object.keys(await states())).not.toContain(image.reference),
    "nothing that is wanted",
  );
  paused.open();
});

test("a pull secret that is missing, wrong, and then right; nobody without it is let in", async () => {
  const image = makeImage();
  registry.behave = behind(login);
  api.put(secrets, { metadata: { name: "other", namespace: "default" }, data: {} });
  put("web", {
    containers: [container("app", image)],
    imagePullSecrets: [{ name: "pull" }, { name: "other" }],
  });
  await untilStates({ [image.reference]: "failed" });
  await untilTrouble(/secret default\/pull: .*not found/);
  await untilTrouble(/secret default\/other: it is no pull secret/);
  putSecret("wrong");
  await untilTrouble(/^(?!.*default\/pull)/s);
  await untilStates({ [image.reference]: "failed" });
  putSecret(login.password);
  await untilStates({ [image.reference]: "warm" });
  const before = blobRequests(image);
  expect(JSON.stringify(await hawser.cri.pull(image.reference))).toMatch(/401|no basic auth/);
  await mustPull(image, login);
  expect(blobRequests(image)).toBe(before);
  expect(hawser.logs()).not.toContain(login.password);
});

test("annotations of a pod and of the node name images", async () => {
  const [one, two] = [makeImage(), makeImage()];
  const value = (image: Image): object => ({
    annotations: { "hawser.dev/prewarm": ` ${image.reference}, NOT ONE` },
  });
  api.put(pods, {
    metadata: { name: "web", namespace: "default", ...value(one) },
    spec: { nodeName: api.nodeName },
  });
  api.put(nodes, { metadata: { name: api.nodeName, ...value(two) } });
  await untilStates({ [one.reference]: "warm", [two.reference]: "warm" });
  await untilTrouble(/node: no image references: "NOT ONE"/);
});

test("an API that is away for a while, or refuses, costs no pull, and what was missed is made up for", async () => {
  const [before, meanwhile, pulled] = [makeImage(), makeImage(), makeImage()];
  put("one", { containers: [container("app", before)] });
  await untilStates({ [before.reference]: "warm" });
  api.behave = () => ({ status: 403 });
  api.disconnect();
  await untilTrouble(/the node's pods: the API refuses/);
  put("two", { containers: [container("app", meanwhile)] });
  api.compact();
  await mustPull(pulled);
  expect(await states()).toMatchObject({ [before.reference]: "warm" });
  api.behave = () => undefined;
  await untilStates({ [meanwhile.reference]: "warm" });
  await eventually(async () => expect((await ask()).troubles).toEqual([]), "no trouble");
});

test("a thousand pods of two images cost two fetches", async () => {
  const [one, two] = [makeImage(), makeImage()];
  for (let index = 0; index < 1000; index++)
    put(`pod-${index}`, { containers: [container("app", index % 2 === 0 ? one : two)] });
  await untilStates({ [one.reference]: "warm", [two.reference]: "warm" });
  expect(blobRequests(one, two)).toBe(2);
});

test("a kubeconfig that cannot be used is told, and pulls go on", async () => {
  const image = makeImage();
  api.writeKubeconfig("", "{");
  await hawser.stop();
  await hawser.startAgain();
  await untilTrouble(/prewarm\.pods: the kubeconfig .* cannot be used/);
  await mustPull(image);
});

test("a pod is told what became of the images that it names, and nothing any more when it names none", async () => {
  const [held, listed] = [makeImage(), makeImage()];
  await mustPull(listed);
  await annotate("web", `${held.reference}, ${listed.reference}`);
  const warm = ({ manifestDigest: digest }: Image): ImageReport => ({ state: "warm", digest });
  await untilSaid("web", "True", undefined, {
    [held.reference]: warm(held),
    [listed.reference]: warm(listed),
  });
  const written = patches();
  await annotate("web", held.reference);
  await untilSaid("web", "True", undefined, { [held.reference]: warm(held) });
  expect(patches()).toBe(written + 1);
  await annotate("web", undefined);
  await eventually(
    async () => expect((await podOf("web"))["status"]).toMatchObject({ conditions: [] }),
    "no condition",
  );
});

test("a tag that is missing is told, and with a new request what is there by then", async () => {
  const [missing, other] = [`${registry.host}/pods/later:v1`, makeImage()];
  await annotate("web", `${missing},NOT ONE,${other.reference}`, "r1");
  const rest = {
    "NOT ONE": { state: "failed", code: "invalid" },
    [other.reference]: { state: "warm", digest: other.manifestDigest },
  } as const;
  await untilSaid("web", "False", "r1", { [missing]: { state: "failed", code: "not_found" }, ...rest });
  await annotate("web", `${missing},${other.reference}`, "r2");
  await untilSaid("web", "False", "r2", {
    [missing]: { state: "failed", code: "not_found" },
    [other.reference]: rest[other.reference] as ImageReport,
  });
  const pushed = registry.put("pods/later:v1", [{ bytes: tarGz([file("later", "later")]) }]);
  await annotate("web", missing, "r3");
  await untilSaid("web", "True", "r3", { [missing]: { state: "warm", digest: pushed.manifestDigest } });
  // A tag that has moved is looked at before it is called warm again.
  const moved = registry.put("pods/later:v1", [{ bytes: tarGz([file("later", "later still")]) }]);
  await annotate("web", missing, "r4");
  await untilSaid("web", "True", "r4", { [missing]: { state: "warm", digest: moved.manifestDigest } });
});

test("what is said on a pod outlasts a restart, and is not said anew", async () => {
  const image = makeImage();
  await annotate("web", image.reference, "r1");
  await untilSaid("web", "True", "r1", { [image.reference]: { state: "warm" } });
  await hawser.stop();
  const before = patches();
  await hawser.startAgain();
  await untilStates({ [image.reference]: "warm" });
  await annotate("other", image.reference, "r2");
  await untilSaid("other", "True", "r2", { [image.reference]: { state: "warm" } });
  const paths = api.requests.flatMap(({ method, path }) => (method === "PATCH" ? [path] : []));
  expect(new Set(paths.slice(before))).toEqual(new Set(["/api/v1/namespaces/default/pods/other/status"]));
});

test("an API that does not take what is said costs no pull, and is told it later", async () => {
  const [first, second, pulled] = [makeImage(), makeImage(), makeImage()];
  let [answers, status] = [0, 503];
  api.behave = ({ method }) => {
    if (method !== "PATCH") return undefined;
    answers += 1;
    return answers > 3 ? undefined : { status };
  };
  await annotate("web", first.reference);
  await untilSaid("web", "True", undefined, { [first.reference]: { state: "warm" } });
  [answers, status] = [0, 409];
  await annotate("web", second.reference);
  await untilSaid("web", "True", undefined, { [second.reference]: { state: "warm" } });
  [answers, status] = [Number.NEGATIVE_INFINITY, 403];
  await annotate("web", pulled.reference);
  await untilTrouble(/the status of the node's pods: the API refuses/);
  await untilStates({ [pulled.reference]: "warm" });
  await mustPull(pulled);
  api.behave = () => undefined;
  await untilSaid("web", "True", undefined, { [pulled.reference]: { state: "warm" } });
  await eventually(async () => expect((await ask()).troubles).toEqual([]), "no trouble");
});

test("a readiness gate that nobody is going to open is opened", async () => {
  const gated = { readinessGates: [{ conditionType: readinessGate }] };
  const shut = { conditions: [{ type: readinessGate, status: "False" }] };
  const kruise = [{ apiVersion: "apps.kruise.io/v1alpha1", kind: "CloneSet", name: "web", uid: "1" }];
  put("shut", gated, { status: shut });
  api.put(pods, {
    metadata: { name: "kruise", namespace: "default", ownerReferences: kruise },
    spec: { nodeName: api.nodeName, ...gated },
  });
  put("web", gated);
  const open = { conditions: [{ type: readinessGate, status: "True" }] };
  await eventually(async () => expect((await podOf("web"))["status"]).toMatchObject(open), "an open gate");
  // Whatever was to be written of those that came before has been by then.
  await annotate("later", "NOT ONE");
  await untilSaid("later", "False", undefined, { "NOT ONE": { state: "failed" } });
  expect((await podOf("shut"))["status"]).toEqual(shut);
  expect((await podOf("kruise"))["status"]).toBeUndefined();
  expect(patches()).toBe(2);
});
