// Images of the pods that are bound to this node: fetched all at once as soon as that is known, where kubelet begins with
// the first, and with those of app containers only once the init containers have ended.
//
// The pods are followed through the cluster's API with kubelet's own identity, which may read them, the pull secrets that
// they name, and nothing of other nodes. What a pod is for is not looked at. An image stops being wanted when its
// container has it, when the pod is over, and when it is gone.

import type { Cluster, KubernetesObject } from "../cluster/cluster.ts";
import { PullError } from "../errors.ts";
import { Keyring } from "./keyring.ts";
import { namesOf } from "./names.ts";

export interface PodsOptions {
  readonly cluster: Cluster;
  readonly nodeName: string;
  /** Has exactly these images wanted for a pod, or for the node itself; what is no reference is left out. */
  readonly want: (source: string, references: readonly string[]) => void;
  readonly trouble: (place: string, why: string | undefined) => void;
}

/** What is read of a pod. */
interface PodImages {
  readonly namespace: string;
  readonly images: readonly string[];
  /** Names of those that kubelet asks the registry for even where the node has them. */
  readonly always: readonly string[];
  /** Names of its pull secrets. */
  readonly secrets: readonly string[];
}

/** Names images on a pod or on a node, with commas between them. */
const annotation = "hawser.dev/prewarm";
const imagesMax = 100;
const secretsMax = 20;
const secretMs = 10_000;

export class Pods implements AsyncDisposable {
  readonly #options: PodsOptions;
  readonly #abort = new AbortController();
  readonly #over: Promise<unknown>;
  /** By source. */
  readonly #pods = new Map<string, PodImages>();

  constructor(options: PodsOptions) {
    this.#options = options;
    const { cluster, nodeName } = options;
    const pods = { path: "/api/v1/pods", fieldSelector: `spec.nodeName=${nodeName}` };
    const node = { path: "/api/v1/nodes", fieldSelector: `metadata.name=${nodeName}` };
    const { signal } = this.#abort;
    this.#over = Promise.all([
      cluster.follow(
        pods,
        {
          replaced: (objects) => this.#replaced(objects),
          changed: (pod) => this.#changed(pod),
          deleted: (pod) => this.#set(sourceOf(pod), undefined),
          trouble: (why) => options.trouble("the node's pods", why),
        },
        signal,
      ),
      cluster.follow(
        node,
        {
          replaced: ([object]) => this.#nodeChanged(object),
          changed: (object) => this.#nodeChanged(object),
          deleted: () => this.#nodeChanged(undefined),
          trouble: (why) => options.trouble("the node's annotations", why),
        },
        signal,
      ),
    ]);
  }

  /** What may be shown to the registry for these sources' sake; read anew, since secrets change. Never rejects. */
  async keyrings(sources: Iterable<string>, signal: AbortSignal): Promise<readonly Keyring[]> {
    const pods = Array.from(sources).flatMap((source) => this.#pods.get(source) ?? []);
    const names = new Set(pods.flatMap(secretsOf));
    const found: Keyring[] = [];
    for (const name of [...names].slice(0, secretsMax)) {
      const keyring = await this.#read(name, AbortSignal.any([signal, AbortSignal.timeout(secretMs)]));
      if (keyring) found.push(keyring);
    }
    return found;
  }

  /** Whether nobody but pods wants it, which take what is on the node by that name (IfNotPresent). */
  areContent(sources: Iterable<string>, reference: string): boolean {
    return Array.from(sources).every((source) => {
      const pod = this.#pods.get(source);
      return pod !== undefined && !pod.always.includes(reference);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort();
    await this.#over;
  }

  #replaced(objects: readonly KubernetesObject[]): void {
    const present = new Set(objects.map(sourceOf));
    for (const source of this.#pods.keys()) if (!present.has(source)) this.#set(source, undefined);
    for (const pod of objects) this.#changed(pod);
  }

  #changed(pod: KubernetesObject): void {
    this.#set(sourceOf(pod), imagesOf(pod));
  }

  #set(source: string, pod: PodImages | undefined): void {
    const known = this.#pods.get(source);
    if (pod === undefined) this.#pods.delete(source);
    else this.#pods.set(source, pod);
    if (known && !pod)
      for (const name of secretsOf(known)) this.#options.trouble(`secret ${name}`, undefined);
    const [before, now] = [known?.images ?? [], pod?.images ?? []];
    if (before.join(" ") !== now.join(" ")) this.#options.want(source, now);
  }

  #nodeChanged(node: KubernetesObject | undefined): void {
    this.#options.want("node", node ? annotated(node) : []);
  }

  /** As kubelet does it, a secret that is missing or of no use is passed over, and the image asked for without. */
  async #read(name: string, signal: AbortSignal): Promise<Keyring | undefined> {
    const { cluster, trouble } = this.#options;
    const [namespace = "", secret = ""] = name.split("/").map(encodeURIComponent);
    try {
      const keyring = keyringOf(
        await cluster.get(`/api/v1/namespaces/${namespace}/secrets/${secret}`, signal),
      );
      trouble(`secret ${name}`, undefined);
      return keyring;
    } catch (error) {
      const isWanted = [...this.#pods.values()].some((pod) => secretsOf(pod).includes(name));
      if (!signal.aborted && isWanted) trouble(`secret ${name}`, PullError.from(error).message);
      return undefined;
    }
  }
}

/** NAMESPACE/NAME */
function secretsOf({ namespace, secrets }: PodImages): string[] {
  return secrets.map((name) => `${namespace}/${name}`);
}

/** Told apart by its uid: a pod of a StatefulSet comes again under its name. */
function sourceOf({ metadata: { namespace, name, uid } }: KubernetesObject): string {
  return `pod ${namespace}/${name} ${uid}`;
}

/** What kubelet is going to pull for a pod; nothing for one that is over or on its way out. */
function imagesOf(pod: KubernetesObject): PodImages {
  const { namespace = "default", deletionTimestamp } = pod.metadata as {
    namespace?: string;
    deletionTimestamp?: unknown;
  };
  const spec = record(pod["spec"]);
  const status = record(pod["status"]);
  const isOver =
    deletionTimestamp !== undefined || status["phase"] === "Succeeded" || status["phase"] === "Failed";
  const secrets = list(spec["imagePullSecrets"]).flatMap(({ name }) => word(name));
  if (isOver) return { namespace, images: [], always: [], secrets };
  const statuses = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
  const started = new Set(
    statuses.flatMap((key) => list(status[key])).flatMap(({ name, imageID }) => (imageID ? word(name) : [])),
  );
  const containers = ["initContainers", "containers", "ephemeralContainers"]
    .flatMap((key) => list(spec[key]))
    .filter(({ name }) => !started.has(String(name)))
    .map(({ image, imagePullPolicy: policy }) => ({ image, policy }));
  // Mounted before any container starts.
  const volumes = started.size > 0 ? [] : list(spec["volumes"]).map(({ image }) => record(image));
  const mounted = volumes.map(({ reference: image, pullPolicy: policy }) => ({ image, policy }));
  const pulled = [...containers, ...mounted].filter(({ policy }) => policy !== "Never");
  const names = [...pulled.flatMap(({ image }) => word(image)), ...annotated(pod)];
  const always = namesOf(
    pulled.filter(({ policy }) => policy === "Always").flatMap(({ image }) => word(image)),
  );
  return { namespace, images: [...new Set(names)].slice(0, imagesMax), always, secrets };
}

function annotated({ metadata }: KubernetesObject): string[] {
  const annotations = record((metadata as Readonly<Record<string, unknown>>)["annotations"]);
  return word(annotations[annotation])
    .flatMap((text) => text.split(","))
    .map((one) => one.trim())
    .filter((one) => one !== "")
    .slice(0, imagesMax);
}

/** A pull secret of either form. Throws `invalid`, with no word of what is in it. */
function keyringOf(secret: KubernetesObject): Keyring {
  const data = record(secret["data"]);
  const [text] = [".dockerconfigjson", ".dockercfg"].flatMap((key) => word(data[key]));
  if (text === undefined) throw new PullError("invalid", "it is no pull secret");
  return Keyring.parse(Buffer.from(text, "base64").toString("utf8"));
}

function record(value: unknown): Readonly<Record<string, unknown>> {
  const isRecord = typeof value === "object" && value !== null && !Array.isArray(value);
  return isRecord ? (value as Record<string, unknown>) : {};
}

function list(value: unknown): readonly Readonly<Record<string, unknown>>[] {
  return Array.isArray(value) ? value.map(record) : [];
}

/** A string that says something, or nothing. */
function word(value: unknown): string[] {
  return typeof value === "string" && value !== "" ? [value] : [];
}
