// A kubelet for one node, as far as it matters to who exchanges images of pods that run: containers are started, restarted
// when their image in the spec is another, told of in the pod's status, and stopped with their pod; pulls back off.
//
// Images come through a CRI socket, so that pulls are real, or from a function of the test's. Containers are real with a
// containerd, and only said to run without. It is told of its pods by the fake API in this process, and writes their
// status there. Its back-offs are thousands of times shorter than a real one's.

import type { PrivateContainerd } from "../harness/containerd.ts";
import { CriClient } from "../harness/cri.ts";
import type { FakeApi } from "./api.ts";
import type { ContainerBehaviour } from "./kubernetes/container.ts";
import {
  type Containers,
  CriContainers,
  CriImages,
  MemoryContainers,
  MemoryImages,
  type Pull,
} from "./kubernetes/node.ts";
import { specOf } from "./kubernetes/podstatus.ts";
import type { ApiChange, ApiObject } from "./kubernetes/store.ts";
import { type Host, PodWorker } from "./kubernetes/worker.ts";

const pods = "/api/v1/pods";

export interface KubeletOptions {
  readonly api: FakeApi;
  /** The node of the API's own kubeconfig without. */
  readonly nodeName?: string;
  /** Where images are pulled, or what is done instead: it answers with an imageID, or throws. */
  readonly images: CriClient | Pull;
  /** Runs the containers, which are only said to run without. */
  readonly containerd?: PrivateContainerd;
}

export class FakeKubelet implements AsyncDisposable {
  readonly nodeName: string;
  /** What it did, in order: "Pulling web-0/app: IMAGE", "Started web-0/app", "Killing web-0/app: ...". */
  readonly events: string[] = [];
  /** Says which version of a pod it has seen, as kubelets do since 1.34. */
  tellsGeneration = true;
  /** A container whose image is exchanged takes so long to end. */
  stopMs = 0;
  /** What containers of an image do. */
  behave: (image: string) => ContainerBehaviour | undefined = () => undefined;
  readonly #host: Host;
  readonly #containerd: PrivateContainerd | undefined;
  readonly #workers = new Map<unknown, PodWorker>();
  readonly #ending = new Set<Promise<void>>();
  readonly #silence: () => void;
  #resumed: Promise<void> = Promise.resolve();
  #resume = (): void => {};
  #isPaused = false;
  #isReadinessHeld = false;

  constructor({ api, nodeName = api.nodeName, images, containerd }: KubeletOptions) {
    this.nodeName = nodeName;
    this.#containerd = containerd;
    this.#host = {
      api,
      images: images instanceof CriClient ? new CriImages(images) : new MemoryImages(images),
      tellsGeneration: () => this.tellsGeneration,
      stopMs: () => this.stopMs,
      behaviourOf: (image) => this.behave(image) ?? {},
      holdsReadiness: () => this.#isReadinessHeld,
      untilResumed: async () => await this.#resumed,
      record: (event) => void this.events.push(event),
    };
    for (const pod of api.list(pods)) this.#see(pod);
    this.#silence = api.listen((change) => this.#hear(change));
  }

  /** From now on it is as if it were dead; what it has begun goes on no further than its next step. */
  pause(): void {
    if (this.#isPaused) return;
    this.#isPaused = true;
    this.#resumed = new Promise((resolve) => {
      this.#resume = resolve;
    });
  }

  resume(): void {
    this.#isPaused = false;
    this.#resume();
  }

  /** No container becomes ready any more; those that are stay so. */
  holdReadiness(): void {
    this.#isReadinessHeld = true;
  }

  releaseReadiness(): void {
    this.#isReadinessHeld = false;
    for (const worker of this.#workers.values()) worker.wake();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#silence();
    for (const uid of this.#workers.keys()) this.#end(uid);
    this.resume();
    await Promise.all(this.#ending);
  }

  #hear({ type, collection, object, former }: ApiChange): void {
    if (collection !== pods) return;
    const { uid } = object.metadata;
    if (type === "DELETED") this.#end(uid);
    else this.#see(object);
    if (former && former.metadata["uid"] !== uid) this.#end(former.metadata["uid"]);
  }

  #see(pod: ApiObject): void {
    if (specOf(pod).nodeName !== this.nodeName) return;
    const { uid } = pod.metadata;
    const worker = this.#workers.get(uid) ?? new PodWorker(this.#host, pod, this.#containersFor(pod));
    this.#workers.set(uid, worker);
    worker.wake();
  }

  #end(uid: unknown): void {
    const worker = this.#workers.get(uid);
    if (worker === undefined) return;
    this.#workers.delete(uid);
    // A containerd that is gone has nothing left to stop.
    const told = worker
      .stop()
      .catch((error: unknown) => void this.events.push(`Failed to stop: ${String(error)}`));
    const ended = told.then(() => void this.#ending.delete(ended));
    this.#ending.add(ended);
  }

  #containersFor(pod: ApiObject): Containers {
    return this.#containerd ? new CriContainers(this.#containerd, pod) : new MemoryContainers();
  }
}
