// What is said on pods, between a queue that a test moves, a clock that it turns, and an API in memory that refuses what
// it is told to.

import { expect, test } from "vitest";
import type { Change, Cluster, KubernetesObject } from "../../src/cluster/cluster.ts";
import { type Condition, conditionOf, type ImageReport, reportOn } from "../../src/cluster/marks.ts";
import { PullError } from "../../src/errors.ts";
import { sha256 } from "../../src/oci/digest.ts";
import type { Condition as EntryCondition, Failure } from "../../src/prewarm/queue.ts";
import { Queue } from "../../src/prewarm/queue.ts";
import { Reporter } from "../../src/prewarm/reporter.ts";
import { settle, TestClock } from "../fakes/clock.ts";

const want = { priority: 0, isUrgent: true };
const digest = sha256(Buffer.from("an index"));
const [image, other] = ["r.example.com/app:v1", "r.example.com/other:v1"];
const missing: Failure = { code: "not_found", message: "no such tag", isTemporary: true, times: 1 };
const gate = "InPlaceUpdateReady";
const gated = { spec: { readinessGates: [{ conditionType: gate }] } };

type StatusPatch = { metadata: { resourceVersion: string }; status: { conditions: Patched[] } };
type Patched = Condition & { $patch?: string; lastTransitionTime?: string };

/** Pods of the one namespace, by name; a reporter sees them when the test shows them. */
class MemoryCluster implements Cluster {
  readonly pods = new Map<string, KubernetesObject>();
  readonly patches: { readonly name: string; readonly conditions: readonly Patched[] }[] = [];
  refusal: PullError | undefined;
  before: () => Promise<void> = async () => {};
  underWay = 0;
  most = 0;
  #version = 1;

  put(name: string, more: object): KubernetesObject {
    this.#version += 1;
    const { metadata, ...rest } = { metadata: {}, ...more };
    const own = { name, namespace: "default", uid: `uid-${name}`, resourceVersion: String(this.#version) };
    const pod = { ...this.pods.get(name), ...rest, metadata: { ...metadata, ...own } };
    this.pods.set(name, pod);
    return pod;
  }

  async list(): Promise<never> {
    throw new PullError("internal", "nothing is listed here");
  }

  async write(change: Change): Promise<KubernetesObject> {
    this.underWay += 1;
    this.most = Math.max(this.most, this.underWay);
    await this.before().finally(() => {
      this.underWay -= 1;
    });
    const name = /^\/api\/v1\/namespaces\/default\/pods\/(.*)\/status$/.exec(change.path)?.[1] ?? "";
    if (change.kind !== "strategic") throw new Error(change.kind);
    const { metadata, status } = change.patch as StatusPatch;
    this.patches.push({ name, conditions: status.conditions });
    if (this.refusal) throw this.refusal;
    const pod = this.pods.get(name);
    if (pod === undefined) throw new PullError("not_found", "no such pod");
    if (metadata.resourceVersion !== pod.metadata.resourceVersion)
      throw new PullError("conflict", "modified");
    const former = (pod["status"] ?? {}) as { conditions?: Condition[] };
    const types = new Map(former.conditions?.map((one) => [one.type, one]));
    for (const { $patch, ...one } of status.conditions)
      if ($patch === "delete") types.delete(one.type);
      else types.set(one.type, { ...types.get(one.type), ...one });
    return this.put(name, { metadata: pod.metadata, status: { ...former, conditions: [...types.values()] } });
  }

  async get(): Promise<KubernetesObject> {
    throw new PullError("not_found", "nothing is asked");
  }

  async follow(): Promise<void> {}
}

class Stage implements AsyncDisposable {
  readonly clock = new TestClock();
  readonly queue = new Queue();
  readonly cluster = new MemoryCluster();
  readonly troubles: (string | undefined)[] = [];
  readonly hastened: string[] = [];
  readonly reporter = new Reporter({
    cluster: this.cluster,
    clock: this.clock,
    trouble: (why) => this.troubles.push(why),
    images: {
      known: this.queue,
      hasten: (name) => {
        this.hastened.push(name);
        this.queue.renew(name, this.clock.now());
      },
    },
  });

  async [Symbol.asyncDispose](): Promise<void> {
    await this.reporter[Symbol.asyncDispose]();
  }

  /** A pod with these annotations, which names are wanted for. */
  async show(name: string, names: string | undefined, request?: string, more: object = {}): Promise<void> {
    for (const one of names?.split(",") ?? []) if (!one.includes(" ")) this.queue.want(one, name, want, 0);
    const annotations = {
      ...(names !== undefined && { "hawser.dev/prewarm": names }),
      ...(request !== undefined && { "hawser.dev/prewarm-request": request }),
    };
    this.reporter.saw(name, this.cluster.put(name, { metadata: { annotations }, ...more }), undefined);
    await settle();
  }

  /** As the API has it now. */
  async showAgain(name: string): Promise<void> {
    this.reporter.saw(name, this.#pod(name), undefined);
    await settle();
  }

  begin(name = image): void {
    this.queue.begin(name, this.clock.now());
  }

  /** What comes of it, and time for that to be said. */
  async end(outcome: "warm" | Failure, name = image): Promise<void> {
    const later = this.clock.now() + 3_600_000;
    const hold = { id: "hold", name, target: digest, bytes: 7 };
    const warm: EntryCondition = { kind: "warm", dueMs: later, sinceMs: 0, hold };
    const isWarm = this.queue.get(name)?.condition.kind === "warm";
    if (outcome === "warm") this.queue.end(name, warm);
    else if (isWarm) this.queue.end(name, warm, outcome);
    else this.queue.end(name, { kind: "failed", dueMs: later, failure: outcome });
    await this.tell();
  }

  async tell(): Promise<void> {
    this.reporter.imagesChanged();
    await this.clock.pass(1_000);
  }

  said(name = "web"): Patched | undefined {
    return conditionOf(this.#pod(name), "hawser.dev/Prewarmed");
  }

  images(name = "web"): Readonly<Record<string, ImageReport>> | undefined {
    return reportOn(this.#pod(name))?.images;
  }

  #pod(name: string): KubernetesObject {
    return this.cluster.pods.get(name) ?? { metadata: { name } };
  }
}

const failed = { state: "failed", code: "not_found", error: "no such tag" };
const warm = { state: "warm", digest };

test("somebody who asks hears at once that somebody is there, then what becomes of it, and nothing twice", async () => {
  await using stage = new Stage();
  await stage.show("web", ` ${image} ,${image}`.replaceAll(" ", ""), "r1");
  expect(stage.said()).toMatchObject({ status: "False", reason: "Fetching" });
  expect(reportOn(stage.cluster.pods.get("web") ?? { metadata: { name: "" } })).toEqual({
    request: "r1",
    images: { [image]: { state: "wanted" } },
  });
  stage.begin();
  await stage.tell();
  expect(stage.images()).toEqual({ [image]: { state: "fetching" } });
  await stage.end("warm");
  expect(stage.said()).toMatchObject({ status: "True", reason: "Warm" });
  expect(stage.images()).toEqual({ [image]: warm });
  // Only when the status changes is that a transition.
  const times = stage.cluster.patches.map(({ conditions: [one] }) => one?.lastTransitionTime !== undefined);
  expect(times).toEqual([true, false, true]);
  await stage.showAgain("web");
  await stage.tell();
  expect(stage.cluster.patches).toHaveLength(3);
});

test("a failure is the latest attempt's, while it is tried again as well, until somebody asks anew", async () => {
  await using stage = new Stage();
  await stage.show("web", `${image},${other}`, "r1");
  stage.begin(other);
  await stage.end("warm", other);
  stage.begin();
  await stage.end(missing);
  expect(stage.said()).toMatchObject({ status: "False", reason: "Failed" });
  expect(stage.images()).toEqual({ [image]: failed, [other]: warm });
  stage.begin();
  await stage.tell();
  expect(stage.images()).toMatchObject({ [image]: failed });
  stage.hastened.length = 0;
  await stage.show("web", `${image},${other}`, "r2");
  expect(stage.hastened).toEqual([image, other]);
  expect(stage.images()).toEqual({ [image]: { state: "fetching" }, [other]: { state: "wanted" } });
  // It began before anybody asked.
  await stage.end(missing);
  expect(stage.images()).toMatchObject({ [image]: { state: "wanted" } });
  expect(stage.queue.due(stage.clock.now()).map(({ name }) => name)).toEqual([image, other]);
  stage.begin();
  await stage.end(missing);
  stage.begin(other);
  await stage.end({ ...missing, code: "unavailable" }, other);
  expect(stage.images()).toMatchObject({ [image]: failed, [other]: { ...failed, code: "unavailable" } });
  stage.begin(other);
  await stage.end("warm", other);
  // It is here, whatever becomes of later looks at its tag.
  stage.begin(other);
  await stage.end(missing, other);
  expect(stage.images()).toEqual({ [image]: failed, [other]: warm });
});

test("what was broken off is no outcome", async () => {
  await using stage = new Stage();
  await stage.show("web", image, "r1");
  stage.begin();
  await stage.end(missing);
  await stage.show("web", image, "r2");
  stage.begin();
  stage.queue.breakOff(image);
  await stage.tell();
  expect(stage.images()).toEqual({ [image]: { state: "wanted" } });
});

test("without a request, what is known counts; with one that is made later, or for another image, it does not", async () => {
  await using stage = new Stage();
  stage.queue.want(image, "another pod", want, 0);
  stage.begin();
  await stage.end("warm");
  await stage.show("web", image);
  expect(stage.images()).toEqual({ [image]: warm });
  expect(stage.hastened).toEqual([]);
  await stage.show("web", image, "r1");
  expect(stage.said()).toMatchObject({ status: "False" });
  stage.begin();
  await stage.end("warm");
  expect(stage.said()).toMatchObject({ status: "True" });
  stage.queue.want(other, "another pod", want, 0);
  stage.begin(other);
  await stage.end("warm", other);
  await stage.show("web", other, "r1");
  expect(stage.images()).toEqual({ [other]: { state: "wanted" } });
});

test("names that are none, that are too many, and images that the engine does not take", async () => {
  await using stage = new Stage();
  const many = Array.from({ length: 103 }, (_, index) => `r.example.com/many:v${index}`);
  await stage.show("web", ["NOT ONE", ...many].join());
  const images = Object.entries(stage.images() ?? {});
  expect(images).toHaveLength(101);
  expect(images[0]).toEqual(["NOT ONE", expect.objectContaining({ state: "failed", code: "invalid" })]);
  expect(images[100]).toEqual([many[99], expect.objectContaining({ state: "failed", code: "exhausted" })]);
  const full = new PullError("exhausted", `no more ${"x".repeat(500)}`);
  const pod = stage.cluster.put("full", { metadata: { annotations: { "hawser.dev/prewarm": image } } });
  stage.reporter.saw("full", pod, new Map([[image, full]]));
  await settle();
  expect(stage.images("full")).toEqual({
    [image]: { state: "failed", code: "exhausted", error: full.message.slice(0, 200) },
  });
});

test("the condition goes with the annotation, and of a pod that is over or gone nothing is said", async () => {
  await using stage = new Stage();
  await stage.show("web", image);
  const status = stage.cluster.pods.get("web")?.["status"];
  await stage.show("web", undefined);
  expect(stage.said()).toBeUndefined();
  expect(stage.cluster.patches).toHaveLength(2);
  // One that an earlier process has left.
  await stage.show("old", undefined, undefined, { status });
  expect(stage.said("old")).toBeUndefined();
  await stage.show("over", image, undefined, { status: { phase: "Succeeded" } });
  stage.cluster.put("gone", {});
  stage.cluster.pods.delete("gone");
  await stage.show("gone", image);
  stage.reporter.forget("gone");
  stage.begin();
  await stage.end("warm");
  expect(stage.cluster.patches.map(({ name }) => name)).toEqual(["web", "web", "old", "gone"]);
});

test("a pod that was changed meanwhile is written as soon as its newest version is heard of", async () => {
  await using stage = new Stage();
  await stage.show("web", image);
  stage.cluster.put("web", { metadata: stage.cluster.pods.get("web")?.metadata });
  stage.begin();
  stage.reporter.imagesChanged();
  await stage.clock.pass(100);
  expect(stage.images()).toEqual({ [image]: { state: "wanted" } });
  await stage.showAgain("web");
  expect(stage.images()).toEqual({ [image]: { state: "fetching" } });
  expect(stage.cluster.patches).toHaveLength(3);
});

test("an API that is busy is asked again after pauses that grow, or that it names", async () => {
  await using stage = new Stage();
  const { cluster, clock } = stage;
  cluster.refusal = new PullError("unavailable", "later", { temporary: true });
  await stage.show("web", image);
  for (const ms of [750, 1_500, 3_000]) {
    const { length } = cluster.patches;
    await clock.pass(ms - 1);
    expect(cluster.patches).toHaveLength(length);
    await clock.pass(1);
    expect(cluster.patches).toHaveLength(length + 1);
  }
  cluster.refusal = new PullError("unavailable", "later", { cause: { retryAfterMs: 20_000 } });
  await clock.pass(6_000);
  cluster.refusal = undefined;
  await clock.pass(20_000);
  expect(stage.said()).toBeUndefined();
  await clock.pass(10_000);
  expect(stage.said()).toMatchObject({ status: "False" });
  cluster.refusal = new PullError("unavailable", "later", { temporary: true });
  stage.begin();
  stage.reporter.imagesChanged();
  await clock.pass(100);
  const { length } = cluster.patches;
  await clock.pass(750);
  expect(cluster.patches).toHaveLength(length + 1);
  expect(stage.troubles).toEqual([]);
});

test("an API that refuses is told of once, and once it does no more", async () => {
  await using stage = new Stage();
  stage.cluster.refusal = new PullError("refused", "the API refuses: forbidden");
  for (const name of ["one", "two"]) await stage.show(name, image);
  await stage.clock.pass(30_000);
  expect(stage.troubles).toEqual(["the API refuses: forbidden"]);
  stage.reporter.forget("one");
  expect(stage.troubles).toHaveLength(1);
  stage.cluster.refusal = undefined;
  const { length } = stage.cluster.patches;
  await stage.clock.pass(60_000);
  expect(stage.cluster.patches.slice(length).map(({ name }) => name)).toEqual(["two"]);
  expect(stage.said("two")).toMatchObject({ status: "False" });
  expect(stage.troubles).toEqual(["the API refuses: forbidden", undefined]);
});

test("a gate that nobody opens is opened once, and one that somebody minds never", async () => {
  await using stage = new Stage();
  const owned = (apiVersion: string) => ({ metadata: { ownerReferences: [{ apiVersion }] } });
  const pods = {
    web: { ...gated, ...owned("apps/v1") },
    kruise: { ...gated, ...owned("apps.kruise.io/v1beta1") },
    shut: { ...gated, status: { conditions: [{ type: gate, status: "False" }] } },
    ungated: { spec: { readinessGates: [{ conditionType: "example.com/other" }] } },
  };
  const show = async (name: string, more: object) => {
    stage.reporter.saw(name, stage.cluster.put(name, more), undefined);
    await settle();
  };
  for (const [name, pod] of Object.entries(pods)) await show(name, pod);
  expect(stage.cluster.patches).toEqual([
    { name: "web", conditions: [expect.objectContaining({ type: gate, status: "True" })] },
  ]);
  await stage.showAgain("web");
  // Whoever has taken it away again knows why.
  await show("web", { ...pods.web, status: {} });
  await stage.show("both", image, undefined, gated);
  expect(stage.cluster.patches.slice(1).flatMap(({ conditions }) => conditions)).toMatchObject([
    { type: gate, status: "True" },
    { type: "hawser.dev/Prewarmed", status: "False" },
  ]);
});

test("what another process has said stands until this one knows better, for the same request", async () => {
  await using stage = new Stage();
  await using next = new Stage();
  await stage.show("web", image, "r1");
  stage.begin();
  await stage.end("warm");
  const status = stage.cluster.pods.get("web")?.["status"];
  await next.show("web", image, "r1", { status });
  next.begin();
  await next.tell();
  expect(next.cluster.patches).toEqual([]);
  await next.end(missing);
  expect(next.images()).toEqual({ [image]: failed });
  await using third = new Stage();
  await third.show("web", image, "r1", { status });
  expect(third.images()).toEqual({ [image]: warm });
  await third.show("web", image, "r2", { status });
  await third.show("later", image, "r2", { status });
  for (const name of ["web", "later"]) expect(third.images(name)).toEqual({ [image]: { state: "wanted" } });
});

test("a thousand pods are written a few at a time, and looked at only for their own images", async () => {
  await using stage = new Stage();
  let looks = 0;
  const get = stage.queue.get.bind(stage.queue);
  stage.queue.get = (name) => {
    looks += 1;
    return get(name);
  };
  stage.cluster.before = settle;
  for (let index = 0; index < 1_000; index++) {
    const name = `r.example.com/many:v${index % 500}`;
    stage.queue.want(name, `pod-${index}`, want, 0);
    const annotations = { "hawser.dev/prewarm": name };
    stage.reporter.saw(
      `pod-${index}`,
      stage.cluster.put(`pod-${index}`, { metadata: { annotations } }),
      undefined,
    );
  }
  for (let rounds = 0; rounds < 1_000 && stage.cluster.patches.length < 1_000; rounds++) await settle();
  expect(stage.cluster.patches).toHaveLength(1_000);
  expect(stage.cluster.most).toBe(8);
  for (let rounds = 0; rounds < 100 && stage.cluster.underWay > 0; rounds++) await settle();
  looks = 0;
  stage.begin("r.example.com/many:v7");
  await stage.tell();
  await settle();
  expect(stage.cluster.patches.slice(1_000).map(({ name }) => name)).toEqual(["pod-7", "pod-507"]);
  expect(looks).toBeLessThan(520);
});

test("its end ends what goes on", async () => {
  const stage = new Stage();
  let seen: AbortSignal | undefined;
  stage.cluster.write = async (_change: Change, signal?: AbortSignal) =>
    await new Promise((_resolve, reject) => {
      seen = signal;
      signal?.addEventListener("abort", () => reject(new PullError("cancelled", "cancelled")));
    });
  await stage.show("web", image);
  expect(seen?.aborted).toBe(false);
  await stage[Symbol.asyncDispose]();
  expect(seen?.aborted).toBe(true);
  expect(stage.troubles).toEqual([]);
});
