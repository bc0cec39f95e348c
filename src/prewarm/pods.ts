// Images of the pods that are bound to this node: fetched all at once as soon as that is known, where kubelet begins with
// the first, and with those of app containers only once the init containers have ended.
//
// The pods are followed through the cluster's API with kubelet's own identity, which may read them, the pull secrets that
// they name, and nothing of other nodes; what became of the images that a pod names itself is said on it (reporter.ts).
// What a pod is for is not looked at. An image stops being wanted when its
// container has it, when the pod is over, and when it is gone.

import type { Cluster, KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, listOf, wordOf } from "../cluster/fields.ts";
import { PullError } from "../errors.ts";
import { Keyring } from "./keyring.ts";
import { imagesMax, isOver, namesOn, requestOn } from "./marked.ts";
import { namesOf } from "./names.ts";
import type { Refused } from "./prewarm.ts";
import { type Known, Reporter } from "./reporter.ts";

export interface PodsOptions {
  readonly cluster: Cluster;
  readonly nodeName: string;
  /** Has exactly these images wanted for a pod, or for the node itself; what is refused is left out. */
  readonly want: (source: string, references: readonly string[]) => Refused;
  /** What has become of them. */
  readonly images: Known;
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
  /** Whoever waits for what becomes of the images that it names. */
  readonly request: string | undefined;
}

const secretsMax = 20;
const secretMs = 10_000;

export class Pods implements AsyncDisposable {
  readonly #options: PodsOptions;
  readonly #abort = new AbortController();
  readonly #over: Promise<unknown>;
  /** By source. */
  readonly #pods = new Map<string, PodImages>();
  readonly #reporter: Reporter;

  constructor(options: PodsOptions) {
    this.#options = options;
    const { cluster, images, nodeName } = options;
    this.#reporter = new Reporter({
      cluster,
      images,
      trouble: (why) => options.trouble("the status of the node's pods", why),
    });
    const pods = { path: "/api/v1/pods", fieldSelector: `spec.nodeName=${nodeName}` };
    const node = { path: "/api/v1/nodes", fieldSelector: `metadata.name=${nodeName}` };
    const { signal } = this.#abort;
    this.#over = Promise.all([
      cluster.follow(
        pods,
        {
          replaced: (objects) => this.#replaced(objects),
          changed: (pod) => this.#changed(pod),
          deleted: (pod) => this.#deleted(sourceOf(pod)),
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

  /** Some may have. */
  imagesChanged(): void {
    this.#reporter.imagesChanged();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort();
    await this.#over;
    await this.#reporter[Symbol.asyncDispose]();
  }

  #replaced(objects: readonly KubernetesObject[]): void {
    const present = new Set(objects.map(sourceOf));
    for (const source of this.#pods.keys()) if (!present.has(source)) this.#deleted(source);
    for (const pod of objects) this.#changed(pod);
  }

  #changed(pod: KubernetesObject): void {
    const source = sourceOf(pod);
    this.#reporter.saw(source, pod, this.#set(source, imagesOf(pod)));
  }

  #deleted(source: string): void {
    this.#set(source, undefined);
    this.#reporter.forget(source);
  }

  /** What is refused of its images, where they are asked for: since they are others, or somebody waits for them anew. */
  #set(source: string, pod: PodImages | undefined): Refused | undefined {
    const known = this.#pods.get(source);
    if (pod === undefined) this.#pods.delete(source);
    else this.#pods.set(source, pod);
    if (known && !pod)
      for (const name of secretsOf(known)) this.#options.trouble(`secret ${name}`, undefined);
    const [before, now] = [known?.images ?? [], pod?.images ?? []];
    const isSame = before.join(" ") === now.join(" ") && known?.request === pod?.request;
    return isSame ? undefined : this.#options.want(source, now);
  }

  #nodeChanged(node: KubernetesObject | undefined): void {
    this.#options.want("node", node ? namesOn(node).slice(0, imagesMax) : []);
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
  const { namespace = "default" } = pod.metadata;
  const spec = fieldsOf(pod["spec"]);
  const status = fieldsOf(pod["status"]);
  const secrets = listOf(spec["imagePullSecrets"]).flatMap(({ name }) => wordOf(name) ?? []);
  if (isOver(pod)) return { namespace, images: [], always: [], secrets, request: undefined };
  const statuses = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
  const started = new Set(
    statuses
      .flatMap((key) => listOf(status[key]))
      .flatMap(({ name, imageID }) => (imageID ? (wordOf(name) ?? []) : [])),
  );
  const containers = ["initContainers", "containers", "ephemeralContainers"]
    .flatMap((key) => listOf(spec[key]))
    .filter(({ name }) => !started.has(String(name)))
    .map(({ image, imagePullPolicy: policy }) => ({ image, policy }));
  // Mounted before any container starts.
  const volumes = started.size > 0 ? [] : listOf(spec["volumes"]).map(({ image }) => fieldsOf(image));
  const mounted = volumes.map(({ reference: image, pullPolicy: policy }) => ({ image, policy }));
  const pulled = [...containers, ...mounted].filter(({ policy }) => policy !== "Never");
  const own = pulled.flatMap(({ image }) => wordOf(image) ?? []).slice(0, imagesMax);
  const always = namesOf(
    pulled.filter(({ policy }) => policy === "Always").flatMap(({ image }) => wordOf(image) ?? []),
  );
  const images = [...new Set([...own, ...namesOn(pod).slice(0, imagesMax)])];
  return { namespace, images, always, secrets, request: requestOn(pod) };
}

/** A pull secret of either form. Throws `invalid`, with no word of what is in it. */
function keyringOf(secret: KubernetesObject): Keyring {
  const data = fieldsOf(secret["data"]);
  const [text] = [".dockerconfigjson", ".dockercfg"].flatMap((key) => wordOf(data[key]) ?? []);
  if (text === undefined) throw new PullError("invalid", "it is no pull secret");
  return Keyring.parse(Buffer.from(text, "base64").toString("utf8"));
}
