// One pod: out of service, other images, and back into service once its containers run them.
//
// Each step looks at the pod first and does what is still to be done, so that whoever goes on where another was broken off
// begins here as well. The gate is the only way in which service is taken or given: what follows from it, endpoints and
// all, is Kubernetes' own.

import { setTimeout as sleep } from "node:timers/promises";
import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, numberOf } from "../cluster/fields.ts";
import { type Condition, conditionOf, readinessGate, reportOn } from "../cluster/marks.ts";
import { abortError, PullError } from "../errors.ts";
import type { PodStep, UpgradeEvent } from "./inplace.ts";
import {
  areContainersReady,
  differing,
  type Images,
  imageFor,
  isReady,
  isServing,
  type Mark,
  markOf,
  nodeOf,
  observed,
  runningIn,
  specPatch,
  stateOf,
  uidOf,
} from "./pod.ts";
import type { Patch, Steady } from "./steady.ts";
import { type Firsts, troubleOf } from "./trouble.ts";
import type { Watched } from "./watched.ts";

export interface ExchangeOptions {
  readonly steady: Steady;
  readonly pods: Watched;
  readonly pathOf: (pod: KubernetesObject) => string;
  readonly graceMs: number;
  readonly timeoutMs: number;
  /** So long has a pod to stay ready before it counts. */
  readonly minReadyMs: number;
  /** Within so long kubelet tells of what it has seen. */
  readonly settleMs: number;
  readonly told: (event: UpgradeEvent) => void;
}

export interface Goal {
  readonly images: Images;
  /** To what the pod was before. */
  readonly isBack: boolean;
  /** One that was not ready before need not be when it is what it was again. */
  readonly mustBeReady: boolean;
}

/** Kubernetes' own, where a pod says nothing. */
const usualTerminationSeconds = 30;

/** What has ended one way or the other; a pod that goes meanwhile is its owner's affair. */
export type Exchanged = "done" | "gone";

/** Throws `slow`, `unavailable` or `unsupported` (its containers do not run) with the pod's name. */
export async function exchange(
  options: ExchangeOptions,
  pod: KubernetesObject,
  goal: Goal,
  signal: AbortSignal,
): Promise<Exchanged> {
  using work = new Exchange(options, pod, goal, signal);
  try {
    return await work.run();
  } catch (error) {
    const failure = PullError.from(error);
    if (failure.code === "not_found" || work.isGone) return "gone";
    throw failure;
  }
}

class Exchange implements Disposable {
  readonly #options: ExchangeOptions;
  readonly #goal: Goal;
  readonly #signal: AbortSignal;
  readonly #uid: string;
  readonly #name: string;
  readonly #first: KubernetesObject;
  readonly #names: readonly string[];
  /** Containers that get their images from us. */
  readonly #differed = new Set<string>();
  /** When they got them. */
  #patchedMs: number | undefined;
  #looking: NodeJS.Timeout | undefined;

  constructor(options: ExchangeOptions, pod: KubernetesObject, goal: Goal, signal: AbortSignal) {
    this.#options = options;
    this.#goal = goal;
    this.#signal = signal;
    this.#uid = uidOf(pod);
    this.#name = pod.metadata.name;
    this.#first = pod;
    this.#names = Object.keys(goal.images);
  }

  get isGone(): boolean {
    const pod = this.#options.pods.get(this.#uid);
    return pod === undefined || !isServing(pod);
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#looking);
  }

  async run(): Promise<Exchanged> {
    const { images } = this.#goal;
    const before = differing(this.#pod, images).length > 0 ? await this.#exchange() : this.#beforeAll();
    this.#tell("restarting");
    // What was broken before need not run for it to be what it was, and what has no node cannot.
    if (this.#goal.mustBeReady) await this.#untilRunning(before);
    await this.#setGate("True");
    this.#tell("entering service");
    if (this.#goal.mustBeReady) await this.#untilServing();
    this.#tell(this.#goal.isBack ? "rolled back" : "done");
    return "done";
  }

  get #pod(): KubernetesObject {
    return this.#options.pods.get(this.#uid) ?? this.#first;
  }

  #tell(step: PodStep, detail?: string): void {
    const shown = this.#goal.isBack && step !== "rolled back" ? "rolling back" : step;
    this.#options.told({
      event: "pod",
      pod: this.#name,
      node: nodeOf(this.#first),
      step: shown,
      ...((detail ?? (shown === step ? undefined : step)) && { detail: detail ?? step }),
    });
  }

  /** Out of service, and the images; returns what ran until then. */
  async #exchange(): Promise<Mark["before"]> {
    const { steady, pods, pathOf, graceMs } = this.#options;
    const wasServing = isReady(this.#pod);
    this.#tell("leaving service");
    await this.#setGate("False");
    await this.#until((pod) => !isReady(pod) || undefined, "did not leave service");
    if (wasServing) await this.#pause(graceMs);
    // Where the answer is lost, kubelet may have exchanged them before anybody looks again.
    let before = this.#beforeAll();
    const patchFor = (pod: KubernetesObject): Patch | undefined => {
      const patch = imagesPatch(pod, this.#goal.images);
      if (patch) before = runningIn(pod, this.#names);
      for (const { name } of differing(pod, this.#goal.images)) this.#differed.add(name);
      return patch;
    };
    const patched = await steady.amend(pathOf(this.#pod), this.#pod, patchFor, this.#signal);
    this.#patchedMs = performance.now();
    pods.saw(patched);
    return before;
  }

  /** What ran before anybody began: all that is known of a pod that another has left half way. */
  #beforeAll(): Mark["before"] {
    const mark = markOf(this.#pod);
    const { images } = this.#goal;
    const known = Object.entries(mark?.before ?? {});
    return Object.fromEntries(known.filter(([name]) => images[name] !== mark?.from[name]));
  }

  async #setGate(status: Condition["status"]): Promise<void> {
    const { steady, pods, pathOf } = this.#options;
    const patched = await steady.amend(
      pathOf(this.#pod),
      this.#pod,
      (pod) => gatePatch(pod, status),
      this.#signal,
      "/status",
    );
    pods.saw(patched);
  }

  async #untilRunning(before: Mark["before"]): Promise<void> {
    const firsts: Firsts = new Map();
    await this.#until(
      (pod) => {
        const trouble = troubleOf(pod, this.#goal.images, firsts);
        if (trouble !== undefined) throw new PullError("unsupported", `pod ${this.#name}: ${trouble}`);
        const isThere = this.#names.every(
          (name) => !this.#isExchanged(pod, name) || this.#runs(pod, name, before[name]),
        );
        return (isThere && areContainersReady(pod)) || undefined;
      },
      "did not come to run the images",
      this.#patchedMs === undefined ? 0 : 2 * this.#settledMs(this.#pod),
    );
  }

  /** Whether kubelet has exchanged the container, and it is ready. */
  #runs(pod: KubernetesObject, name: string, before: Mark["before"][string] | undefined): boolean {
    const state = stateOf(pod, name);
    const wanted = imageFor(this.#goal.images, name) ?? "";
    if (state === undefined || observed(pod) === "unseen" || !state.isRunning || !state.isReady) return false;
    const mark = markOf(pod);
    const former = mark?.from[name] === wanted ? mark.before[name] : undefined;
    // It has not even been stopped, since the images were what they were again before kubelet looked.
    if (former && former.containerID === state.containerID) return this.#isSettled(pod);
    if (before !== undefined && state.containerID === before.containerID) return false;
    const digest = this.#digestOf(pod, wanted);
    if (!former?.imageID && digest === undefined) return true;
    // One image may have many names, and kubelet tells of any of them; a name may have come to stand for another image.
    return (
      state.imageID === former?.imageID ||
      (digest !== undefined && digestIn(state.imageID) === digest) ||
      state.image === wanted ||
      (before !== undefined && state.imageID !== before.imageID)
    );
  }

  /** Whether a kubelet that does not say what it has seen would have told by now that it is stopping a container. */
  #isSettled(pod: KubernetesObject): boolean {
    if (this.#patchedMs === undefined || observed(pod) === "seen") return true;
    const leftMs = this.#patchedMs + this.#settledMs(pod) - performance.now();
    if (leftMs <= 0) return true;
    this.#looking ??= setTimeout(() => {
      this.#looking = undefined;
      this.#options.pods.poke();
    }, leftMs);
    return false;
  }

  #settledMs(pod: KubernetesObject): number {
    const { terminationGracePeriodSeconds } = fieldsOf(pod["spec"]);
    return 1000 * numberOf(terminationGracePeriodSeconds, usualTerminationSeconds) + this.#options.settleMs;
  }

  /** Others are named as well, and have had their images all the while. */
  #isExchanged(pod: KubernetesObject, name: string): boolean {
    const mark = markOf(pod);
    return this.#differed.has(name) || (mark !== undefined && mark.from[name] !== mark.to[name]);
  }

  #digestOf(pod: KubernetesObject, image: string): string | undefined {
    const report = reportOn(pod)?.images[image];
    return digestIn(image) ?? (report?.state === "warm" ? report.digest : undefined);
  }

  async #untilServing(): Promise<void> {
    const { minReadyMs, pods } = this.#options;
    await this.#until(
      (pod) => isReady(pod) || undefined,
      `did not become ready with its gate ${readinessGate} true`,
    );
    if (minReadyMs === 0) return;
    // It stays ready for as long as its workload wants it to.
    const wait = { otherwise: "", timeoutMs: minReadyMs, signal: this.#signal };
    const isBroken = await pods
      .until(() => (isReady(this.#pod) ? undefined : true), wait)
      .catch((error: unknown) => {
        if (PullError.from(error).code !== "slow") throw error;
        return false;
      });
    if (isBroken) throw new PullError("unsupported", `pod ${this.#name} did not stay ready`);
  }

  async #until(
    find: (pod: KubernetesObject) => true | undefined,
    otherwise: string,
    leastMs = 0,
  ): Promise<void> {
    const { pods } = this.#options;
    // Only where kubelet says nothing of what it has seen does it take as long as a container may take to end.
    const isSilent = observed(this.#pod) === "unknown";
    const timeoutMs = Math.max(this.#options.timeoutMs, isSilent ? leastMs : 0);
    const said = (): string => conditionOf(this.#pod, "Ready")?.message ?? "";
    await pods
      .until(
        () => {
          if (this.isGone) throw new PullError("not_found", `pod ${this.#name} is gone`);
          return find(this.#pod);
        },
        { otherwise: `pod ${this.#name} ${otherwise}`, timeoutMs, signal: this.#signal },
      )
      .catch((error: unknown) => {
        const failure = PullError.from(error);
        if (failure.code !== "slow" || said() === "") throw failure;
        throw new PullError("slow", `${failure.message}: ${said()}`);
      });
  }

  async #pause(ms: number): Promise<void> {
    if (ms <= 0) return;
    try {
      await sleep(ms, undefined, { signal: this.#signal });
    } catch {
      throw abortError(this.#signal);
    }
  }
}

/** Undefined where it says so already. */
function gatePatch(pod: KubernetesObject, status: Condition["status"]): Patch | undefined {
  if (conditionOf(pod, readinessGate)?.status === status) return undefined;
  const condition = {
    type: readinessGate,
    status,
    reason: status === "True" ? "UpgradeEnded" : "UpgradeBegun",
    lastTransitionTime: new Date().toISOString().replace(/\.\d+Z$/, "Z"),
  };
  return { kind: "strategic", patch: { status: { conditions: [condition] } } };
}

function imagesPatch(pod: KubernetesObject, images: Images): Patch | undefined {
  const spec = specPatch(pod, images);
  return spec && { kind: "strategic", patch: { spec } };
}

function digestIn(text: string | undefined): string | undefined {
  return /@(sha256:[0-9a-f]{64})$/.exec(text ?? "")?.[1];
}
