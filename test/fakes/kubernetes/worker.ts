// What a kubelet does for one pod: one thing after another. The status is written when a round begins, so that a pull keeps
// it as it was: a container that was stopped because its image is exchanged is told as running until the pull is over, as
// it is by a real kubelet. Each round that did something is followed by another.

import { setTimeout as sleep } from "node:timers/promises";
import type { FakeApi } from "../api.ts";
import { type ContainerBehaviour, PodContainer } from "./container.ts";
import type { Containers, Images, NodeImage } from "./node.ts";
import { type ContainerSpec, isSidecar, specOf, withStatus } from "./podstatus.ts";
import type { ApiObject } from "./store.ts";

const pods = "/api/v1/pods";
const retryMs = 100;
/** As for a process that SIGKILL has ended. */
const killedCode = 137;

/** What the pods of a node share. */
export interface Host {
  readonly api: FakeApi;
  readonly images: Images;
  behaviourOf(image: string): ContainerBehaviour;
  holdsReadiness(): boolean;
  tellsGeneration(): boolean;
  stopMs(): number;
  /** Resolves when the kubelet is not paused. */
  untilResumed(): Promise<void>;
  record(event: string): void;
}

export class PodWorker {
  readonly #host: Host;
  readonly #name: string;
  readonly #namespace: string;
  readonly #uid: unknown;
  readonly #runtime: Containers;
  readonly #containers = new Map<string, PodContainer>();
  readonly #exits = new Map<string, number>();
  readonly #timers = new Set<NodeJS.Timeout>();
  readonly #abort = new AbortController();
  #hasSandbox = false;
  #isDirty = false;
  #isPolling = false;
  #busy: Promise<void> | undefined;
  #stopped: Promise<void> | undefined;

  constructor(host: Host, { metadata }: ApiObject, runtime: Containers) {
    this.#host = host;
    this.#name = metadata.name;
    this.#namespace = metadata.namespace ?? "";
    this.#uid = metadata["uid"];
    this.#runtime = runtime;
  }

  /** Has another round made, now or after the one that runs. */
  wake(): void {
    this.#isDirty = true;
    if (this.#isOver()) return;
    this.#busy ??= this.#rounds().finally(() => {
      this.#busy = undefined;
    });
  }

  /** Ends all that there is of the pod. */
  async stop(): Promise<void> {
    this.#stopped ??= this.#end();
    await this.#stopped;
  }

  async #end(): Promise<void> {
    this.#abort.abort();
    for (const timer of this.#timers) clearTimeout(timer);
    await this.#busy;
    await this.#host.untilResumed();
    for (const { id } of this.#containers.values()) if (id !== undefined) await this.#runtime.stop(id);
    await this.#runtime.remove();
  }

  async #rounds(): Promise<void> {
    // Whoever told of a change is not to see what follows from it before all others were told.
    await Promise.resolve();
    while (this.#isDirty && !this.#isOver()) {
      this.#isDirty = false;
      await this.#host.untilResumed();
      try {
        await this.#round();
      } catch (error) {
        if (this.#isOver()) return;
        this.#host.record(`Failed ${this.#name}: ${String(error)}`);
        this.#later(retryMs);
      }
    }
  }

  async #round(): Promise<void> {
    await this.#observe();
    const pod = this.#writeStatus();
    if (pod === undefined || this.#isOver()) return;
    const { initContainers = [], containers = [] } = specOf(pod);
    if (!this.#hasSandbox) {
      await this.#runtime.makeSandbox();
      this.#hasSandbox = true;
    }
    for (const spec of [...initContainers.filter(isSidecar), ...containers]) await this.#killChanged(spec);
    for (const spec of initContainers) {
      await this.#tend(spec);
      const container = this.#containerOf(spec);
      if (isSidecar(spec) ? container.id === undefined : !container.isComplete) return;
    }
    for (const spec of containers) await this.#tend(spec);
    const { pollMs } = this.#runtime;
    if (pollMs === undefined || this.#isPolling) return;
    this.#isPolling = true;
    this.#later(pollMs, () => {
      this.#isPolling = false;
    });
  }

  /** Who has ended, and who is ready by now. */
  async #observe(): Promise<void> {
    for (const container of this.#containers.values()) {
      const { id } = container;
      if (id === undefined) continue;
      const code = this.#exits.get(id) ?? (await this.#runtime.exitCode(id));
      if (code !== undefined) {
        await this.#runtime.stop(id);
        container.ended(code);
        if (code !== 0) container.backOff(container.reference ?? "");
      } else if (container.isDue && !this.#host.holdsReadiness()) {
        container.ready = true;
      }
    }
  }

  /** The pod as it is now; undefined when it is no more. */
  #writeStatus(): ApiObject | undefined {
    const written = this.#host.api.update(pods, this.#name, this.#namespace, (pod) => {
      if (!this.#isOf(pod)) return pod;
      const { initContainers = [], containers = [] } = specOf(pod);
      const statuses = (specs: readonly ContainerSpec[]) =>
        specs.map((spec) => this.#containerOf(spec).statusFor(spec));
      const told = withStatus(pod, statuses(initContainers), statuses(containers));
      if (this.#host.tellsGeneration()) return told;
      const { observedGeneration: _, ...status } = told["status"] as Record<string, unknown>;
      return { ...told, status };
    });
    return written && this.#isOf(written) ? written : undefined;
  }

  #isOf({ metadata }: ApiObject): boolean {
    return metadata["uid"] === this.#uid;
  }

  #isOver(): boolean {
    return this.#abort.signal.aborted;
  }

  async #killChanged(spec: ContainerSpec): Promise<void> {
    const container = this.#containerOf(spec);
    if (container.reference === undefined || container.reference === spec.image) return;
    container.forget();
    if (container.id === undefined) return;
    const why = `Container ${spec.name} definition changed, will be restarted`;
    this.#host.record(`Killing ${this.#name}/${spec.name}: ${why}`);
    await sleep(this.#host.stopMs(), undefined, { signal: this.#abort.signal });
    await this.#runtime.stop(container.id);
    container.ended(killedCode);
    this.#isDirty = true;
  }

  /** Has it running, unless that has to wait. */
  async #tend(spec: ContainerSpec): Promise<void> {
    const container = this.#containerOf(spec);
    const isDone = !isSidecar(spec) && container.isComplete && this.#isInit(spec);
    if (container.id !== undefined || isDone || this.#isOver()) return;
    const leftMs = container.notBefore - Date.now();
    if (leftMs <= 0) {
      await this.#start(container, spec);
      this.#isDirty = true;
      return;
    }
    this.#tellBackOff(container, spec, leftMs);
    this.#later(leftMs);
  }

  #isInit({ name }: ContainerSpec): boolean {
    const pod = this.#host.api.read(pods, this.#name, this.#namespace);
    const { initContainers = [] } = pod ? specOf(pod) : {};
    return initContainers.some((one) => one.name === name);
  }

  #tellBackOff(container: PodContainer, spec: ContainerSpec, leftMs: number): void {
    const { waiting } = container;
    if (waiting?.reason === "ErrImagePull") {
      const message = `Back-off pulling image "${spec.image}": ErrImagePull: ${waiting.message ?? ""}`;
      container.waits("ImagePullBackOff", message);
    } else if (container.isCrashed) {
      const message = `back-off ${Math.ceil(leftMs)}ms restarting failed container=${spec.name} pod=${this.#name}`;
      container.waits("CrashLoopBackOff", message);
    } else {
      return;
    }
    this.#isDirty = true;
  }

  async #start(container: PodContainer, spec: ContainerSpec): Promise<void> {
    const image = await this.#imageFor(container, spec);
    await this.#host.untilResumed();
    if (image === undefined || this.#isOver()) return;
    const { name, command = [], args = [] } = spec;
    let id: string;
    try {
      id = await this.#runtime.start({ name, attempt: container.starts, image, command, args });
    } catch (error) {
      container.waits("RunContainerError", String(error));
      container.backOff(spec.image);
      return;
    }
    container.started(id, spec.image, image);
    this.#host.record(`Started ${this.#name}/${name}`);
    const { exitsWith, neverReady, readyAfterMs } = this.#host.behaviourOf(spec.image);
    const isSimulatedInit = this.#runtime.pollMs === undefined && !isSidecar(spec) && this.#isInit(spec);
    const code = exitsWith ?? (isSimulatedInit ? 0 : undefined);
    if (code !== undefined) this.#exits.set(id, code);
    else if (neverReady) return;
    else if (readyAfterMs === undefined) container.isDue = true;
    else
      this.#later(readyAfterMs, () => {
        if (container.id === id) container.isDue = true;
      });
  }

  /** Undefined when it cannot be had, which the container then says. */
  async #imageFor(container: PodContainer, spec: ContainerSpec): Promise<NodeImage | undefined> {
    const { images } = this.#host;
    const policy = spec.imagePullPolicy ?? policyFor(spec.image);
    try {
      const present = policy === "Always" ? undefined : await images.status(spec.image);
      if (present) return present;
      if (policy === "Never")
        throw new Error(`Container image "${spec.image}" is not present with pull policy of Never`);
      this.#host.record(`Pulling ${this.#name}/${spec.name}: ${spec.image}`);
      return await images.pull(spec.image, this.#abort.signal);
    } catch (error) {
      container.failed(spec.image, error instanceof Error ? error.message : String(error));
      this.#host.record(`Failed ${this.#name}/${spec.name}: ${spec.image}`);
      return undefined;
    }
  }

  #containerOf({ name }: ContainerSpec): PodContainer {
    const container = this.#containers.get(name) ?? new PodContainer(name);
    this.#containers.set(name, container);
    return container;
  }

  #later(ms: number, act = (): void => {}): void {
    if (this.#isOver()) return;
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      act();
      this.wake();
    }, ms);
    this.#timers.add(timer);
  }
}

/** What the API makes of a container without any. */
function policyFor(image: string): string {
  const name = image.slice(image.lastIndexOf("/") + 1);
  return !name.includes(":") || name.endsWith(":latest") ? "Always" : "IfNotPresent";
}
