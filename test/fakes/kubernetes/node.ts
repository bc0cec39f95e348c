// What a kubelet does its work with: images, which are pulled for real or are those of a test's own, and containers, which
// containerd runs or which are only said to run.

import { randomUUID } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { PrivateContainerd } from "../../harness/containerd.ts";
import { type CriClient, fields, message, textOf } from "../../harness/cri.ts";
import type { ApiObject } from "./store.ts";

/** An image that the node has, as the status of a container tells of it. */
export interface NodeImage {
  /** What containers are made of. */
  readonly id: string;
  /** Its first name. */
  readonly image: string;
  /** With the digest of what its name stands for: "host/repository@sha256:..." */
  readonly imageID: string;
}

export interface Images {
  /** Undefined for what the node has not. */
  status(reference: string): Promise<NodeImage | undefined>;
  /** Throws what the runtime says. */
  pull(reference: string, signal: AbortSignal): Promise<NodeImage>;
}

export interface ContainerRequest {
  readonly name: string;
  /** How often it was started before. */
  readonly attempt: number;
  readonly image: NodeImage;
  readonly command: readonly string[];
  readonly args: readonly string[];
}

/** The containers of one pod. */
export interface Containers {
  /** How often to ask whether they still run; never without. */
  readonly pollMs?: number;
  makeSandbox(): Promise<void>;
  /** Starts one, and returns its id. */
  start(request: ContainerRequest): Promise<string>;
  /** What it has ended with; undefined as long as it runs. */
  exitCode(id: string): Promise<number | undefined>;
  /** Stops and removes it. */
  stop(id: string): Promise<void>;
  /** Everything that there is of the pod goes. */
  remove(): Promise<void>;
}

/** Answers with an imageID, or throws what a pull fails with. */
export type Pull = (reference: string) => Promise<string> | string;

/** Images that are there once they were pulled, which a test's own function does. */
export class MemoryImages implements Images {
  readonly #pull: Pull;
  readonly #present = new Map<string, NodeImage>();

  constructor(pull: Pull) {
    this.#pull = pull;
  }

  async status(reference: string): Promise<NodeImage | undefined> {
    return this.#present.get(reference);
  }

  async pull(reference: string): Promise<NodeImage> {
    const imageID = await this.#pull(reference);
    const image = { id: imageID, image: reference, imageID };
    this.#present.set(reference, image);
    return image;
  }
}

/** Images of a CRI socket. */
export class CriImages implements Images {
  readonly #cri: CriClient;

  constructor(cri: CriClient) {
    this.#cri = cri;
  }

  async status(reference: string): Promise<NodeImage | undefined> {
    const [bytes] = fields(await this.#cri.imageStatus(reference)).get(1) ?? [];
    if (!(bytes instanceof Uint8Array)) return undefined;
    const found = fields(bytes);
    const id = textOf(found, 1);
    return { id, image: textOf(found, 2) || reference, imageID: textOf(found, 3) || id };
  }

  async pull(reference: string, signal: AbortSignal): Promise<NodeImage> {
    const reply = await this.#cri.pull(reference, undefined, { signal });
    if (!("value" in reply)) throw new Error(`rpc error: code = ${reply.code} desc = ${reply.message}`);
    const image = await this.status(reply.value);
    if (image === undefined) throw new Error(`${reference} is not there after it was pulled`);
    return image;
  }
}

export class MemoryContainers implements Containers {
  async makeSandbox(): Promise<void> {}

  async start(): Promise<string> {
    return randomUUID();
  }

  async exitCode(): Promise<undefined> {
    return undefined;
  }

  async stop(): Promise<void> {}

  async remove(): Promise<void> {}
}

/** CRI's state of a container that has ended. */
const exited = 2n;

/** Containers that really run, on the host's network. */
export class CriContainers implements Containers {
  readonly pollMs = 200;
  readonly #containerd: PrivateContainerd;
  readonly #config: Uint8Array;
  readonly #logs: string;
  readonly #graceSeconds: number;
  #sandbox = "";

  constructor(containerd: PrivateContainerd, pod: ApiObject) {
    this.#containerd = containerd;
    const { name, namespace = "", uid } = pod.metadata;
    const spec = pod["spec"] as { terminationGracePeriodSeconds?: number };
    this.#graceSeconds = spec.terminationGracePeriodSeconds ?? 0;
    this.#logs = join(containerd.root, `pod-${String(uid)}`);
    const labels = Object.entries({
      "io.kubernetes.pod.name": name,
      "io.kubernetes.pod.namespace": namespace,
      "io.kubernetes.pod.uid": String(uid),
    }).map(([key, value]) => [6, message([1, key], [2, value])] as const);
    // NamespaceOption.network NODE: no CNI is needed.
    const security = message([1, message([1, 2])]);
    this.#config = message(
      [1, message([1, name], [2, String(uid)], [3, namespace])],
      [3, this.#logs],
      ...labels,
      [8, message([2, security])],
    );
  }

  async makeSandbox(): Promise<void> {
    await mkdir(this.#logs, { recursive: true });
    this.#sandbox = textOf(await this.#call("RunPodSandbox", message([1, this.#config])), 1);
  }

  async start({ name, attempt, image, command, args }: ContainerRequest): Promise<string> {
    const config = message(
      [1, message([1, name], [2, attempt])],
      [2, message([1, image.id])],
      ...command.map((word) => [3, word] as const),
      ...args.map((word) => [4, word] as const),
      [9, message([1, "io.kubernetes.container.name"], [2, name])],
      [11, `${name}-${attempt}.log`],
    );
    const request = message([1, this.#sandbox], [2, config], [3, this.#config]);
    const id = textOf(await this.#call("CreateContainer", request), 1);
    await this.#call("StartContainer", message([1, id]));
    return id;
  }

  async exitCode(id: string): Promise<number | undefined> {
    const status = await this.#call("ContainerStatus", message([1, id]));
    const inner = fields(status.get(1)?.[0] as Uint8Array);
    return inner.get(3)?.[0] === exited ? Number(inner.get(7)?.[0] ?? 0) : undefined;
  }

  async stop(id: string): Promise<void> {
    await this.#call("StopContainer", message([1, id], [2, this.#graceSeconds]));
    await this.#call("RemoveContainer", message([1, id]));
  }

  async remove(): Promise<void> {
    if (this.#sandbox === "") return;
    await this.#call("StopPodSandbox", message([1, this.#sandbox]));
    await this.#call("RemovePodSandbox", message([1, this.#sandbox]));
    this.#sandbox = "";
  }

  async #call(method: string, request: Uint8Array) {
    return await this.#containerd.cri.runtime(method, request);
  }
}
