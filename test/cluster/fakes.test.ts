// The fake of the Kubernetes API that changes are tried against: it has to refuse what a real one refuses, in its words.

import { readFileSync } from "node:fs";
import { request } from "node:https";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { createCluster } from "../../src/cluster/client.ts";
import type { Cluster, KubernetesObject } from "../../src/cluster/cluster.ts";
import { FakeApi } from "../fakes/api.ts";
import type { Rule } from "../fakes/kubernetes/access.ts";

const pods = "/api/v1/pods";
const cloneSets = "/apis/apps.kruise.io/v1alpha1/clonesets";
const own = "/api/v1/namespaces/default/pods";
const never = new AbortController().signal;
const gate = "InPlaceUpdateReady";

let api: FakeApi;

beforeEach(async () => {
  api = await FakeApi.start();
});

afterEach(async () => {
  await api[Symbol.asyncDispose]();
});

function put(name: string, more: { labels?: Record<string, string>; nodeName?: string } = {}): void {
  const { labels = {}, nodeName = api.nodeName } = more;
  const containers = [
    { name: "app", image: "app:1" },
    { name: "side", image: "side:1" },
  ];
  const metadata = { name, namespace: "default", labels };
  api.put(pods, { metadata, spec: { nodeName, containers }, status: { phase: "Running" } });
}

function as(name: string, rules?: readonly Rule[]): Cluster {
  return createCluster({ files: [api.kubeconfigFor({ name, ...(rules && { rules }) })] });
}

async function patch(
  cluster: Cluster,
  path: string,
  body: unknown,
  kind: "strategic" | "merge" = "strategic",
) {
  return await cluster.write({ kind, path, patch: body }, never);
}

/** A request that Hawser's own client does not make. */
async function send(
  method: string,
  path: string,
  body?: unknown,
): Promise<{ status: number; body: unknown }> {
  const { clusters, users } = JSON.parse(readFileSync(api.kubeconfigFor({ name: "admin" }), "utf8"));
  const { server, "certificate-authority": file } = clusters[0].cluster;
  return await new Promise((resolve, reject) => {
    const text = body === undefined ? "" : JSON.stringify(body);
    const headers = {
      authorization: `Bearer ${users[0].user.token}`,
      "content-length": Buffer.byteLength(text),
    };
    const sent = request(`${server}${path}`, { method, headers, ca: readFileSync(file) }, (answer) => {
      const parts: Buffer[] = [];
      answer.on("data", (part: Buffer) => parts.push(part));
      answer.once("end", () =>
        resolve({ status: answer.statusCode ?? 0, body: JSON.parse(Buffer.concat(parts).toString()) }),
      );
    });
    sent.once("error", reject);
    sent.end(text);
  });
}

async function namesAt(path: string): Promise<string[]> {
  const { body } = await send("GET", path);
  return (body as { items: KubernetesObject[] }).items.map(({ metadata }) => metadata.name);
}

test("collections are of a namespace, and selected by labels and fields", async () => {
  put("a", { labels: { app: "web", tier: "front" } });
  put("b", { labels: { app: "web" }, nodeName: "node-2" });
  put("c", { labels: { app: "db" } });
  api.put(pods, { metadata: { name: "d", namespace: "other" } });
  expect(await namesAt(own)).toEqual(["a", "b", "c"]);
  expect(await namesAt(pods)).toEqual(["a", "b", "c", "d"]);
  const selected = async (selector: string): Promise<string[]> =>
    await namesAt(`${own}?labelSelector=${encodeURIComponent(selector)}`);
  expect(await selected("app=web")).toEqual(["a", "b"]);
  expect(await selected("app in (web,db),tier")).toEqual(["a"]);
  expect(await selected("app notin (web), !tier")).toEqual(["c"]);
  expect(await selected("app!=web")).toEqual(["c"]);
  expect(await namesAt(`${own}?fieldSelector=spec.nodeName%3Dnode-2`)).toEqual(["b"]);
  expect(await namesAt("/apis/apps/v1/namespaces/default/statefulsets")).toEqual([]);
  const missing = { status: 404, body: { message: "the server could not find the requested resource" } };
  expect(await send("GET", cloneSets)).toMatchObject(missing);
  api.register(cloneSets, "CloneSet");
  expect(await namesAt(cloneSets)).toEqual([]);
});

test("a watch tells of what comes to be selected, and of what is so no more", async () => {
  const told: string[] = [];
  const abort = new AbortController();
  const tell = (how: string, { metadata }: KubernetesObject): void =>
    void told.push(`${how} ${metadata.name}`);
  const follower = {
    replaced: () => void told.push("all"),
    changed: (object: KubernetesObject) => tell("has", object),
    deleted: (object: KubernetesObject) => tell("lacks", object),
    trouble: () => {},
  };
  const over = as("admin").follow({ path: own, labelSelector: "app=web" }, follower, abort.signal);
  await vi.waitFor(() => expect(api.watching).toBe(1));
  put("a", { labels: { app: "web" } });
  put("a", { labels: { app: "db" } });
  await vi.waitFor(() => expect(told).toEqual(["all", "has a", "lacks a"]));
  abort.abort();
  await over;
});

test("strategic patches merge containers by name and conditions by type; merge patches replace lists", async () => {
  put("a");
  const admin = as("admin");
  const patched = await patch(admin, `${own}/a`, {
    metadata: { annotations: { note: "1" } },
    spec: { containers: [{ name: "app", image: "app:2" }] },
    status: { phase: "Failed" },
  });
  expect(patched["spec"]).toMatchObject({ containers: [{ image: "app:2" }, { image: "side:1" }] });
  expect(patched).toMatchObject({ metadata: { generation: 2 }, status: { phase: "Running" } });
  for (const [type, status] of [["X", "True"] as const, [gate, "False"] as const, [gate, "True"] as const])
    await patch(admin, `${own}/a/status`, {
      status: { conditions: [{ type, status }] },
      spec: { nodeName: "" },
    });
  const conditions = [
    { type: "X", status: "True" },
    { type: gate, status: "True" },
  ];
  expect(api.read(pods, "a", "default")).toMatchObject({
    status: { conditions },
    metadata: { generation: 2 },
  });
  await patch(admin, `${own}/a/status`, { status: { conditions: [{ type: "X", $patch: "delete" }] } });
  expect(api.read(pods, "a", "default")).toMatchObject({ status: { conditions: conditions.slice(1) } });
  await patch(admin, `${own}/a/status`, { status: { conditions: [{ type: "Y" }] } }, "merge");
  expect(api.read(pods, "a", "default")).toMatchObject({ status: { conditions: [{ type: "Y" }] } });
  await patch(admin, `${own}/a`, { metadata: { annotations: { note: null } } });
  expect(api.read(pods, "a", "default")?.metadata["annotations"]).toEqual({});
});

test("a strategic patch of somebody else's kind is not taken, and its status takes nothing else", async () => {
  const path = "/apis/apps.kruise.io/v1alpha1/namespaces/default/clonesets/web";
  api.put(cloneSets, { metadata: { name: "web", namespace: "default" }, spec: { replicas: 1 } });
  await expect(patch(as("admin"), path, {})).rejects.toThrow(/the API does not take it: the body/);
  const body = { spec: { replicas: 2 }, status: { replicas: 1 }, metadata: { labels: { a: "b" } } };
  await patch(as("admin"), path, body, "merge");
  expect(api.read(cloneSets, "web", "default")).toMatchObject({ spec: { replicas: 2 } });
  expect(api.read(cloneSets, "web", "default")).not.toHaveProperty("status");
  await patch(as("admin"), `${path}/status`, { ...body, metadata: { labels: null } }, "merge");
  expect(api.read(cloneSets, "web", "default")).toMatchObject({
    metadata: { labels: { a: "b" }, generation: 2 },
    status: { replicas: 1 },
  });
});

test("what changed meanwhile, or is another of the name, is a conflict; what changes nothing has no new version", async () => {
  put("a");
  const former = api.read(pods, "a", "default")?.metadata;
  const [resourceVersion, uid] = [former?.["resourceVersion"], former?.["uid"]];
  const note = (metadata: object): unknown => ({ metadata: { ...metadata, annotations: { note: "1" } } });
  await expect(patch(as("admin"), `${own}/a`, note({ resourceVersion: "1" }))).rejects.toMatchObject({
    code: "conflict",
    message: expect.stringContaining(
      'Operation cannot be fulfilled on pods "a": the object has been modified',
    ),
  });
  await expect(patch(as("admin"), `${own}/a`, note({ uid: "other" }))).rejects.toMatchObject({
    code: "conflict",
  });
  await patch(as("admin"), `${own}/a`, note({ resourceVersion, uid }));
  const { metadata } = api.read(pods, "a", "default") ?? {};
  expect(metadata?.["resourceVersion"]).not.toBe(resourceVersion);
  await patch(as("admin"), `${own}/a`, note({ uid }));
  expect(api.read(pods, "a", "default")?.metadata).toEqual(metadata);
});

test.each([
  { spec: { containers: [{ name: "app", image: "" }] }, says: /spec.containers\[0\].image: Required value/ },
  { spec: { containers: [{ name: "more", image: "a" }] }, says: /may not add or remove containers/ },
  { spec: { containers: [{ name: "app", tty: true }] }, says: /may not change fields other than/ },
  { spec: { nodeName: "node-2" }, says: /Pod "a" is invalid: spec: Forbidden/ },
])("a pod's spec is what it is but for images: $says", async ({ spec, says }) => {
  put("a");
  await expect(patch(as("admin"), `${own}/a`, { spec })).rejects.toMatchObject({
    code: "invalid",
    message: expect.stringMatching(says),
  });
});

test("objects are created once, and removed if they are the ones that are meant", async () => {
  const leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
  const object = { metadata: { name: "lock" }, spec: { holderIdentity: "me" } };
  const made = await as("admin").write({ kind: "create", path: leases, object }, never);
  expect(made).toMatchObject({ kind: "Lease", metadata: { namespace: "default", generation: 1 } });
  await expect(as("admin").write({ kind: "create", path: leases, object }, never)).rejects.toMatchObject({
    code: "exists",
    message: expect.stringContaining('leases.coordination.k8s.io "lock" already exists'),
  });
  const { status } = await send("DELETE", `${leases}/lock`, { preconditions: { uid: "other" } });
  expect(status).toBe(409);
  expect(await namesAt(leases)).toEqual(["lock"]);
  await send("DELETE", `${leases}/lock`, { preconditions: { uid: made.metadata.uid } });
  expect(await namesAt(leases)).toEqual([]);
  expect(await send("DELETE", `${leases}/lock`)).toMatchObject({ status: 404 });
});

test("a node writes the status of its own pods, and no labels", async () => {
  put("a");
  put("elsewhere", { nodeName: "node-2" });
  const node = createCluster({ files: [api.kubeconfig] });
  const status = { conditions: [{ type: "X", status: "True" }] };
  await patch(node, `${own}/a/status`, { status, metadata: { annotations: { note: "1" } } });
  const refused = async (path: string, body: unknown, says: string): Promise<void> => {
    await expect(patch(node, path, body)).rejects.toThrow(`is forbidden: ${says}`);
  };
  const me = `node "${api.nodeName}"`;
  await refused(`${own}/elsewhere/status`, { status }, `${me} can only update pod status for pods with`);
  const labels = { metadata: { labels: { a: "b" } } };
  await refused(`${own}/a/status`, labels, `${me} cannot update labels through pod status`);
  await refused(
    `${own}/a`,
    {},
    `User "system:node:${api.nodeName}" cannot patch resource "pods" in API group ""`,
  );
});

test("rules say who may do what, and a review tells", async () => {
  put("a");
  api.put("/apis/apps/v1/statefulsets", { metadata: { name: "web", namespace: "default" } });
  const rules = [
    { apiGroups: [""], resources: ["pods"], verbs: ["get", "patch"] },
    { apiGroups: ["apps"], resources: ["statefulsets"], verbs: ["get"], resourceNames: ["web"] },
  ];
  const one = as("one", rules);
  await one.get(`${own}/a`, never);
  await one.get("/apis/apps/v1/namespaces/default/statefulsets/web", never);
  await expect(patch(one, `${own}/a/status`, {})).rejects.toThrow(
    'pods "a" is forbidden: User "one" cannot patch resource "pods/status" in API group "" in the namespace "default"',
  );
  await expect(one.get("/apis/apps/v1/namespaces/default/statefulsets/db", never)).rejects.toThrow(
    'statefulsets.apps "db" is forbidden: User "one" cannot get resource "statefulsets" in API group "apps"',
  );
  await expect(one.get(pods, never)).rejects.toThrow(
    'cannot list resource "pods" in API group "" at the cluster',
  );
  const review = async (subresource: string) => {
    const spec = {
      resourceAttributes: { verb: "patch", resource: "pods", subresource, namespace: "default" },
    };
    const path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    return (await one.write({ kind: "create", path, object: { spec } }, never))["status"];
  };
  expect([await review(""), await review("status")]).toEqual([{ allowed: true }, { allowed: false }]);
});

test("a request waits, is lost, or its answer is; listeners hear of each change in order", async () => {
  put("a");
  const heard: string[] = [];
  const silence = api.listen(({ type, object }) => {
    heard.push(`${type} ${object.metadata.name} ${String(object.metadata["annotations"])}`);
    api.update(pods, "a", "default", (pod) => ({ ...pod, metadata: { ...pod.metadata, annotations: {} } }));
  });
  const body = { metadata: { labels: { a: "b" } } };
  api.behave = () => ({ drop: true });
  await expect(patch(as("admin"), `${own}/a`, body)).rejects.toMatchObject({ code: "unavailable" });
  expect(heard).toEqual([]);
  api.behave = () => ({ dropAfter: true });
  await expect(patch(as("admin"), `${own}/a`, body)).rejects.toMatchObject({ code: "unavailable" });
  expect(heard).toEqual(["MODIFIED a undefined", "MODIFIED a [object Object]"]);
  silence();
  let open = (): void => {};
  const hold = new Promise<void>((resolve) => {
    open = resolve;
  });
  api.behave = () => ({ hold });
  const waiting = patch(as("admin"), `${own}/a`, { metadata: { labels: { a: "c" } } });
  await vi.waitFor(() => expect(api.requests).toHaveLength(3));
  expect(api.requests.at(-1)).toMatchObject({
    identity: "admin",
    contentType: "application/strategic-merge-patch+json",
    body: { metadata: { labels: { a: "c" } } },
  });
  expect(api.read(pods, "a", "default")?.metadata["labels"]).toEqual({ a: "b" });
  open();
  expect((await waiting).metadata).toMatchObject({ labels: { a: "c" } });
});
