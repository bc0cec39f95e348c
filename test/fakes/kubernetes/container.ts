// One container of a pod, over all of its restarts: what it is doing, and why it is not running.

import type { NodeImage } from "./node.ts";
import { type ContainerSpec, type ContainerState, type ContainerStatus, timeNow } from "./podstatus.ts";

/** What containers of an image do in the hands of a test; without any of these they are ready as soon as they run. */
export interface ContainerBehaviour {
  readonly readyAfterMs?: number;
  readonly neverReady?: boolean;
  /** Ends with this code as soon as it runs. */
  readonly exitsWith?: number;
}

const backOffMs = { first: 20, max: 500 };

export class PodContainer {
  readonly name: string;
  id: string | undefined;
  ready = false;
  /** It would be ready, were readiness not held. */
  isDue = false;
  /** Nothing is tried before this, in milliseconds since the epoch. */
  notBefore = 0;
  /** The image by the name that it was last started or tried with. */
  reference: string | undefined;
  #image: NodeImage | undefined;
  #state: ContainerState = { waiting: { reason: "ContainerCreating" } };
  #lastState: ContainerState = {};
  #startedAt = "";
  #lastId: string | undefined;
  #starts = 0;
  #failures = 0;

  constructor(name: string) {
    this.name = name;
  }

  /** How often it has been started. */
  get starts(): number {
    return this.#starts;
  }

  get isComplete(): boolean {
    return this.#state.terminated?.exitCode === 0;
  }

  get isCrashed(): boolean {
    return this.#state.terminated !== undefined;
  }

  started(id: string, reference: string, image: NodeImage): void {
    this.id = id;
    this.#lastId = id;
    this.reference = reference;
    this.#image = image;
    this.#starts += 1;
    if (this.#state.terminated) this.#lastState = this.#state;
    this.#startedAt = timeNow();
    this.#state = { running: { startedAt: this.#startedAt } };
    this.ready = false;
    this.isDue = false;
  }

  /** It has ended, or was stopped. */
  ended(exitCode: number): void {
    const reason = exitCode === 0 ? "Completed" : "Error";
    const containerID = `containerd://${this.id ?? ""}`;
    this.#state = {
      terminated: { exitCode, reason, startedAt: this.#startedAt, finishedAt: timeNow(), containerID },
    };
    this.id = undefined;
    this.ready = false;
    this.isDue = false;
  }

  /** A pull that fails; it is tried again, later each time. */
  failed(reference: string, why: string): void {
    this.waits("ErrImagePull", why);
    this.backOff(reference);
  }

  /** Later each time, but for another image. */
  backOff(reference: string): void {
    if (reference !== this.reference) this.#failures = 0;
    this.reference = reference;
    this.notBefore = Date.now() + Math.min(backOffMs.first * 2 ** this.#failures, backOffMs.max);
    this.#failures += 1;
  }

  /** As if nothing had ever failed; what happens to a container whose image is exchanged. */
  forget(): void {
    this.notBefore = 0;
    this.#failures = 0;
  }

  /** Why it does not run; what it ended with is kept as its last state. */
  waits(reason: string, message: string): void {
    if (this.#state.terminated) this.#lastState = this.#state;
    this.#state = { waiting: { reason, message } };
  }

  get waiting(): ContainerState["waiting"] {
    return this.#state.waiting;
  }

  statusFor(spec: ContainerSpec): ContainerStatus {
    return {
      name: this.name,
      // Until it is started anew these are of the container that was before.
      image: this.#image?.image ?? spec.image,
      imageID: this.#image?.imageID ?? "",
      ...(this.#lastId !== undefined && { containerID: `containerd://${this.#lastId}` }),
      ready: this.ready || (this.isComplete && spec.restartPolicy === undefined),
      started: this.id !== undefined,
      restartCount: Math.max(0, this.#starts - 1),
      state: this.#state,
      lastState: this.#lastState,
    };
  }
}
