// What became of the images that pods' annotations name, said on those pods: as a condition of their status, which is all
// of its pods that a node may write. Beside it, readiness gates that nobody else opens are opened.
//
// A pod is looked at when it has changed or one of its images has, and written only where it says something else than it
// should: a few pods at a time, from their newest version that is known. Whatever the API has against it is tried again
// after pauses that grow. Nothing here ever fails or delays a fetch.

import { causeOf } from "../cluster/answer.ts";
import type { Cluster, KubernetesObject } from "../cluster/cluster.ts";
import {
  conditionFor,
  type ImageReport,
  prewarmedCondition,
  readinessGate,
  removalPatch,
  statusPatch,
} from "../cluster/marks.ts";
import { PullError } from "../errors.ts";
import { type Clock, realClock } from "./clock.ts";
import { failed, formerlyWarm, imageReport, imagesMax, type MarkedPod, markedPod } from "./marked.ts";
import { nameOf } from "./names.ts";
import type { Refused } from "./prewarm.ts";
import type { Queue } from "./queue.ts";

/** The engine, as far as it is asked. */
export interface Known {
  readonly known: Pick<Queue, "get" | "attempts">;
  hasten(reference: string, isAnew: true): void;
}

export interface ReporterOptions {
  readonly cluster: Cluster;
  readonly images: Known;
  /** Why pods cannot be written, or undefined when they can. */
  readonly trouble: (why: string | undefined) => void;
  readonly clock?: Clock | undefined;
}

type Phase =
  /** Nothing is to be said until something changes. */
  | { readonly kind: "idle" }
  /** In line, to be looked at. */
  | { readonly kind: "due" }
  | { readonly kind: "writing" }
  /** The API had something against it; where that was the pod's version, a newer one ends the pause. */
  | { readonly kind: "pausing"; readonly pause: Disposable; readonly isForNews: boolean }
  /** Of no interest any more. */
  | { readonly kind: "gone" };

interface Tracked {
  pod: MarkedPod;
  /** What the images are named by the engine, or what it or the parser has against them. */
  images: ReadonlyMap<string, string | PullError>;
  /** How many attempts had begun when the request was made; undefined where there is none that is still to be answered. */
  after: number | undefined;
  /** What another process has said in answer to the same request; it stands until this one knows better. */
  formerly: ReadonlyMap<string, ImageReport>;
  isGateOpened: boolean;
  phase: Phase;
  /** In a row. */
  failures: number;
}

interface Watched {
  readonly pods: Set<Tracked>;
  /** What its entry was like when it was last looked at. */
  looks: string;
}

const writesMax = 8;
/** Images change in bunches. */
const settleMs = 100;
const pauseMs = { first: 500, most: 60_000, refusedFirst: 5_000, refusedMost: 600_000 } as const;
const open = {
  type: readinessGate,
  status: "True",
  reason: "OpenedByHawser",
  message: "no controller opens this gate when the pod is made",
} as const;

export class Reporter implements AsyncDisposable {
  readonly #options: ReporterOptions;
  readonly #clock: Clock;
  readonly #abort = new AbortController();
  /** By source. */
  readonly #pods = new Map<string, Tracked>();
  /** By the engine's names. */
  readonly #watched = new Map<string, Watched>();
  readonly #due = new Set<Tracked>();
  readonly #writes = new Set<Promise<void>>();
  readonly #refused = new Set<Tracked>();
  #settling: Disposable | undefined;

  constructor(options: ReporterOptions) {
    this.#options = options;
    this.#clock = options.clock ?? realClock;
  }

  /** A pod as it is now; with what the engine refuses of its images, where it was asked for them. */
  saw(source: string, pod: KubernetesObject, refused: Refused | undefined): void {
    const marked = markedPod(pod);
    if (marked === undefined) {
      this.forget(source);
      return;
    }
    const known = this.#pods.get(source);
    const before = known?.pod;
    const tracked = known ?? track(marked, formerlyWarm(pod, marked.request));
    tracked.pod = marked;
    this.#pods.set(source, tracked);
    const isRenamed = before?.names.join() !== marked.names.join();
    if (isRenamed || refused) this.#nameImages(tracked, refused ?? new Map());
    const isAsked = before?.request !== marked.request;
    if (known && (isAsked || isRenamed)) known.formerly = new Map();
    if (isAsked || (isRenamed && marked.request !== undefined)) this.#ask(tracked);
    this.#touch(tracked, true);
  }

  /** It is gone, or over. */
  forget(source: string): void {
    const tracked = this.#pods.get(source);
    if (tracked === undefined) return;
    if (tracked.phase.kind === "pausing") tracked.phase.pause[Symbol.dispose]();
    tracked.phase = { kind: "gone" };
    this.#pods.delete(source);
    this.#due.delete(tracked);
    this.#unwatch(tracked);
    this.#mend(tracked);
  }

  /** Some images may have changed. */
  imagesChanged(): void {
    if (this.#settling || this.#watched.size === 0 || this.#abort.signal.aborted) return;
    this.#settling = this.#clock.at(this.#clock.now() + settleMs, () => {
      this.#settling = undefined;
      for (const [name, watched] of this.#watched) {
        const looks = this.#looksOf(name);
        if (looks !== watched.looks) for (const tracked of watched.pods) this.#touch(tracked, false);
        watched.looks = looks;
      }
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort();
    this.#settling?.[Symbol.dispose]();
    for (const source of this.#pods.keys()) this.forget(source);
    await Promise.all(this.#writes);
  }

  #nameImages(tracked: Tracked, refused: Refused): void {
    this.#unwatch(tracked);
    tracked.images = new Map(
      tracked.pod.names.map((name) => [name, refused.get(name) ?? nameOrFailure(name)]),
    );
    for (const name of tracked.images.values()) {
      if (typeof name !== "string") continue;
      const watched = this.#watched.get(name) ?? { pods: new Set(), looks: this.#looksOf(name) };
      watched.pods.add(tracked);
      this.#watched.set(name, watched);
    }
  }

  #unwatch(tracked: Tracked): void {
    for (const name of tracked.images.values()) {
      if (typeof name !== "string") continue;
      const watched = this.#watched.get(name);
      watched?.pods.delete(tracked);
      if (watched?.pods.size === 0) this.#watched.delete(name);
    }
  }

  /** What was found out so far is no answer to a request that is made now. */
  #ask(tracked: Tracked): void {
    const { images } = this.#options;
    tracked.after = tracked.pod.request === undefined ? undefined : images.known.attempts;
    for (const name of tracked.images.values()) if (typeof name === "string") images.hasten(name, true);
  }

  #looksOf(name: string): string {
    const entry = this.#options.images.known.get(name);
    return entry
      ? `${entry.condition.kind} ${entry.busySinceMs !== undefined} ${entry.endedAttempt}`
      : "absent";
  }

  #touch(tracked: Tracked, isNews: boolean): void {
    const { phase } = tracked;
    const isPauseOver = phase.kind === "pausing" && phase.isForNews && isNews;
    if (phase.kind !== "idle" && !isPauseOver) return;
    if (isPauseOver) phase.pause[Symbol.dispose]();
    this.#lineUp(tracked);
  }

  #lineUp(tracked: Tracked): void {
    tracked.phase = { kind: "due" };
    this.#due.add(tracked);
    this.#look();
  }

  #look(): void {
    for (const tracked of this.#due) {
      if (this.#writes.size >= writesMax) return;
      this.#due.delete(tracked);
      const patch = this.#patchFor(tracked);
      tracked.phase = { kind: patch === undefined ? "idle" : "writing" };
      if (patch === undefined) continue;
      const write = this.#write(tracked, patch).finally(() => {
        this.#writes.delete(write);
        this.#look();
      });
      this.#writes.add(write);
    }
  }

  /** The next thing to be said. */
  #patchFor({ pod, images, after, formerly, isGateOpened }: Tracked): unknown {
    if (pod.isShut && !isGateOpened) return statusPatch(pod, open, true);
    if (pod.names.length === 0) return pod.said && removalPatch(pod, prewarmedCondition);
    const { known } = this.#options.images;
    const reports = Array.from(images, ([given, name]): [string, ImageReport] => [
      given,
      typeof name === "string" ? imageReport(known.get(name), after, formerly.get(given)) : failed(name),
    ]);
    if (pod.beyond !== undefined) reports.push([pod.beyond, failed(tooMany)]);
    const condition = conditionFor({ request: pod.request, images: Object.fromEntries(reports) });
    const { status, reason, message } = pod.said ?? {};
    const isSame =
      status === condition.status && reason === condition.reason && message === condition.message;
    return isSame ? undefined : statusPatch(pod, condition, status !== condition.status);
  }

  /** Never rejects. */
  async #write(tracked: Tracked, patch: unknown): Promise<void> {
    const { cluster } = this.#options;
    const { pod } = tracked;
    const [namespace, name] = [pod.metadata.namespace ?? "", pod.metadata.name].map(encodeURIComponent);
    const path = `/api/v1/namespaces/${namespace}/pods/${name}/status`;
    try {
      const written = await cluster.write({ kind: "strategic", path, patch }, this.#abort.signal);
      if (tracked.phase.kind === "gone") return;
      tracked.failures = 0;
      tracked.isGateOpened ||= pod.isShut;
      this.#mend(tracked);
      // Whatever was heard meanwhile is newer.
      if (tracked.pod === pod) this.#wrote(tracked, written);
      this.#lineUp(tracked);
    } catch (error) {
      if (tracked.phase.kind !== "gone") this.#failed(tracked, pod, PullError.from(error));
    }
  }

  #wrote(tracked: Tracked, written: KubernetesObject): void {
    const { metadata, said, isShut } = markedPod(written) ?? {
      ...tracked.pod,
      said: undefined,
      isShut: false,
    };
    tracked.pod = { ...tracked.pod, metadata, said, isShut };
  }

  #failed(tracked: Tracked, pod: MarkedPod, failure: PullError): void {
    const { code } = failure;
    tracked.failures += 1;
    // Whoever follows the pods is about to hear that.
    if (code === "not_found") tracked.phase = { kind: "idle" };
    else if (code === "conflict" && tracked.pod !== pod) this.#lineUp(tracked);
    else {
      const isRefused = code === "refused" || code === "invalid";
      if (isRefused && this.#refused.size === 0) this.#options.trouble(failure.message);
      if (isRefused) this.#refused.add(tracked);
      const dueMs = this.#clock.now() + this.#pauseMs(tracked, failure, isRefused);
      const pause = this.#clock.at(dueMs, () => this.#lineUp(tracked));
      tracked.phase = { kind: "pausing", pause, isForNews: code === "conflict" };
    }
  }

  #pauseMs({ failures }: Tracked, failure: PullError, isRefused: boolean): number {
    const [first, most] = isRefused
      ? [pauseMs.refusedFirst, pauseMs.refusedMost]
      : [pauseMs.first, pauseMs.most];
    const longer = causeOf(failure).retryAfterMs ?? first * 2 ** Math.min(failures - 1, 20);
    // Not all pods, nor all nodes of a fleet, at once.
    return Math.min(most, longer) * (1 + this.#clock.random());
  }

  #mend(tracked: Tracked): void {
    if (this.#refused.delete(tracked) && this.#refused.size === 0) this.#options.trouble(undefined);
  }
}

const tooMany = new PullError(
  "exhausted",
  `a pod may name ${imagesMax} images; what comes behind is left out`,
);

function track(pod: MarkedPod, formerly: ReadonlyMap<string, ImageReport>): Tracked {
  return {
    pod,
    images: new Map(),
    after: undefined,
    formerly,
    isGateOpened: false,
    phase: { kind: "idle" },
    failures: 0,
  };
}

function nameOrFailure(reference: string): string | PullError {
  try {
    return nameOf(reference);
  } catch (error) {
    return PullError.from(error);
  }
}
