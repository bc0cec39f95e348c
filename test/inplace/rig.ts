// Upgrades in place as a whole, in one process: the API, kubelets and Hawser's daemons of two nodes are fakes that pull nothing.
//
// Watches at each change of any pod how many are out of service; a test says what images do, and what happens to requests.

import { readFileSync } from "node:fs";
import { parse } from "yaml";
import { createCluster } from "../../src/cluster/client.ts";
import {
  type Condition,
  conditionFor,
  conditionOf,
  type ImageReport,
  prewarmAnnotation,
  readinessGate,
  requestAnnotation,
} from "../../src/cluster/marks.ts";
import type {
  Outcome,
  Pace,
  UpgradeEvent,
  UpgradeOptions,
  UpgradeRequest,
} from "../../src/inplace/inplace.ts";
import { planUpgrade, upgrade } from "../../src/inplace/upgrade.ts";
import { type ApiRequest, FakeApi } from "../fakes/api.ts";
import { FakeControllers } from "../fakes/controllers.ts";
import { FakeKubelet } from "../fakes/kubelet.ts";
import type { Rule } from "../fakes/kubernetes/access.ts";
import type { ApiObject } from "../fakes/kubernetes/store.ts";
import { eventually } from "../harness/process.ts";

export const pods = "/api/v1/pods";
export const namespace = "shop";

const role = new URL("../../config/kubernetes/upgrade/role.yaml", import.meta.url);
export const roleRules = (parse(readFileSync(role, "utf8")) as { readonly rules: readonly Rule[] }).rules;

/** Short, so that tests of what takes long do not. */
export const quick: Pace = { awayMs: 1_500, answerMs: 3_000, lockMs: 2_000, settleMs: 100 };

const usual: UpgradeRequest = {
  kind: "statefulset",
  name: "web",
  namespace,
  images: { app: "app:2" },
  maxUnavailable: undefined,
  graceMs: 0,
  timeoutMs: 20_000,
  isPrewarmed: true,
};

/** What a node's Hawser says of an image; undefined for nothing at all. */
type Fetch = (image: string) => ImageReport | undefined;

export type WorkloadKind = "statefulset" | "daemonset" | "cloneset";

export const collections: Readonly<Record<WorkloadKind, string>> = {
  statefulset: "/apis/apps/v1/statefulsets",
  daemonset: "/apis/apps/v1/daemonsets",
  cloneset: "/apis/apps.kruise.io/v1alpha1/clonesets",
};

export class Rig implements AsyncDisposable {
  readonly api: FakeApi;
  readonly controllers: FakeControllers;
  readonly kubelets: readonly FakeKubelet[];
  readonly events: UpgradeEvent[] = [];
  readonly kubeconfig: string;
  readonly kind: WorkloadKind | "pod";
  /** Most pods that were not in service at once, since all were. */
  worst = 0;
  fetch: Fetch = (image) => ({ state: "warm", digest: digestOf(image) });
  /** As kubelets tell of what they run. */
  imageID = (image: string): string => `registry/${image}@${digestOf(image)}`;
  onEvent: (event: UpgradeEvent) => void = () => {};
  readonly #silence: () => void;

  private constructor(api: FakeApi, kind: WorkloadKind | "pod") {
    const nodes = ["node-1", "node-2"];
    this.api = api;
    this.kind = kind;
    this.kubeconfig = api.kubeconfigFor({ name: "operator", rules: roleRules });
    this.kubelets = nodes.map((nodeName) => {
      const kubelet = new FakeKubelet({
        api,
        nodeName,
        images: (image) => {
          if (image.includes("missing")) throw new Error("not found");
          return this.imageID(image);
        },
      });
      kubelet.behave = (image) => ({
        readyAfterMs: 5,
        ...(image.includes("crash") && { exitsWith: 1 }),
        ...(image.includes("never") && { neverReady: true }),
      });
      return kubelet;
    });
    this.#silence = api.listen(({ collection, object, type }) => {
      if (collection !== pods) return;
      if (type !== "DELETED") this.#answer(object);
      this.worst = Math.max(this.worst, this.unready.length);
    });
    this.controllers = new FakeControllers({ api, nodes, kruise: true });
  }

  static async open(
    replicas = 3,
    {
      kind = "statefulset",
      spec = {},
    }: { readonly kind?: WorkloadKind | "pod"; readonly spec?: object } = {},
  ): Promise<Rig> {
    const rig = new Rig(await FakeApi.start(), kind);
    if (kind === "pod")
      rig.api.put(pods, {
        metadata: { name: "web", namespace },
        spec: { ...podSpec(), ...spec, nodeName: rig.kubelets[0]?.nodeName },
      });
    else rig.putWorkload(kind, replicas, spec);
    await rig.untilReady(kind === "pod" ? 1 : kind === "daemonset" ? rig.kubelets.length : replicas);
    rig.worst = 0;
    return rig;
  }

  /** What was told, in short. */
  get steps(): string {
    const words = this.events.map((event) =>
      event.event === "pod"
        ? `${event.pod}: ${event.step}`
        : event.event === "note"
          ? event.text
          : event.error,
    );
    return words.join(", ");
  }

  get all(): readonly ApiObject[] {
    return this.api.list(pods, namespace);
  }

  get unready(): readonly string[] {
    const ready = (pod: ApiObject) => conditionOf(pod, "Ready")?.status === "True";
    return this.all.flatMap((pod) => (ready(pod) ? [] : [pod.metadata.name]));
  }

  /** Of every pod, by name; "app" of its spec. */
  get images(): Readonly<Record<string, string>> {
    return Object.fromEntries(this.all.map((pod) => [pod.metadata.name, imageOf(pod["spec"])]));
  }

  get workload(): ApiObject | undefined {
    return this.kind === "pod" ? undefined : this.api.read(collections[this.kind], "web", namespace);
  }

  get template(): string {
    const { template } = Object(this.workload?.["spec"]) as { readonly template: { readonly spec: unknown } };
    return imageOf(template.spec);
  }

  get annotations(): readonly string[] {
    return this.all.flatMap((pod) => Object.keys((pod.metadata["annotations"] as object | undefined) ?? {}));
  }

  async untilReady(count: number): Promise<void> {
    await eventually(async () => {
      const text = `${this.all.length} pods, not ready: ${this.unready.join(", ")}`;
      if (this.all.length !== count || this.unready.length > 0) throw new Error(text);
      await Promise.resolve();
    }, "all pods ready");
  }

  putWorkload(kind: WorkloadKind, replicas: number, more: object = {}): void {
    const labels = { app: "web" };
    const spec = {
      replicas,
      selector: { matchLabels: labels },
      updateStrategy: { type: kind === "cloneset" ? "ReCreate" : "OnDelete" },
      podManagementPolicy: "Parallel",
      template: { metadata: { labels }, spec: podSpec() },
      ...more,
    };
    this.api.put(collections[kind], { metadata: { name: "web", namespace }, spec });
  }

  get request(): UpgradeRequest {
    return { ...usual, kind: this.kind };
  }

  optionsWith(kubeconfig: string, pace: Pace = quick): UpgradeOptions {
    return {
      cluster: createCluster({ files: [kubeconfig] }),
      holder: "tester",
      told: (event) => {
        this.events.push(event);
        this.onEvent(event);
      },
      pace,
    };
  }

  async upgrade(
    more: Partial<UpgradeRequest> = {},
    signal: AbortSignal = new AbortController().signal,
    pace: Pace = quick,
  ): Promise<Outcome> {
    return await upgrade(this.optionsWith(this.kubeconfig, pace), { ...this.request, ...more }, signal);
  }

  async plan(more: Partial<UpgradeRequest> = {}) {
    const request = { ...this.request, ...more };
    return await planUpgrade(this.optionsWith(this.kubeconfig), request, new AbortController().signal);
  }

  /** Requests of whoever upgrades that change something. */
  isChange({ identity, method, path }: ApiRequest): boolean {
    return identity === "operator" && method !== "GET" && !path.endsWith("reviews");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#silence();
    this.controllers[Symbol.dispose]();
    for (const kubelet of this.kubelets) await kubelet[Symbol.asyncDispose]();
    await this.api[Symbol.asyncDispose]();
  }

  /** As the daemon of the pod's node does: what became of images, and a gate that nobody opens. */
  #answer(pod: ApiObject): void {
    const annotations = (pod.metadata["annotations"] ?? {}) as Readonly<Record<string, string>>;
    const images = (annotations[prewarmAnnotation] ?? "").split(",").flatMap((image) => {
      const report = image === "" ? undefined : this.fetch(image);
      return report ? [[image, report] as const] : [];
    });
    const report = { request: annotations[requestAnnotation], images: Object.fromEntries(images) };
    if (images.length > 0) this.#setCondition(pod, conditionFor(report));
    if (conditionOf(pod, readinessGate) === undefined)
      this.#setCondition(pod, { type: readinessGate, status: "True" });
  }

  #setCondition(pod: ApiObject, condition: Condition): void {
    if (conditionOf(pod, condition.type)?.message === condition.message && conditionOf(pod, condition.type))
      return;
    this.api.update(pods, pod.metadata.name, namespace, (fresh) => {
      const { conditions = [], ...status } = (fresh["status"] ?? {}) as { conditions?: { type: string }[] };
      const others = conditions.filter(({ type }) => type !== condition.type);
      return { ...fresh, status: { ...status, conditions: [...others, condition] } };
    });
  }
}

export function podSpec(): object {
  return {
    readinessGates: [{ conditionType: readinessGate }],
    containers: [
      { name: "app", image: "app:1" },
      { name: "side", image: "side:1" },
    ],
  };
}

function imageOf(spec: unknown): string {
  const { containers } = spec as { readonly containers: readonly { name: string; image: string }[] };
  return containers.find(({ name }) => name === "app")?.image ?? "";
}

export function digestOf(image: string): string {
  return `sha256:${Buffer.from(image).toString("hex").padEnd(64, "0").slice(0, 64)}`;
}
