// The new images are brought to the nodes of the pods before any pod is touched: each pod is given an annotation that names
// them, the Hawser of its node fetches them, and says on the pod what came of it.
//
// A node on which nobody answers is told soon, and so is an image that the registry does not have, or not for this pod;
// whatever may still come is waited for. With the annotation goes the mark of what the pod was, so that what was added can be taken
// away again whoever ends the upgrade.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { type ImageReport, prewarmAnnotation, reportOn, requestAnnotation } from "../cluster/marks.ts";
import { PullError } from "../errors.ts";
import { allOrFirstFailure, Turns } from "./crowd.ts";
import type { UpgradeEvent } from "./inplace.ts";
import {
  annotationOf,
  hasEnded,
  type Images,
  imagesAmong,
  isReady,
  type Mark,
  markOf,
  nodeOf,
  runningIn,
  uidOf,
  upgradeAnnotation,
} from "./pod.ts";
import type { Patch, Steady } from "./steady.ts";
import type { Watched } from "./watched.ts";

export interface WarmingOptions {
  readonly steady: Steady;
  readonly pods: Watched;
  readonly pathOf: (pod: KubernetesObject) => string;
  readonly images: Images;
  /** Of the workload, as it was when this began; undefined for a pod of nobody's. */
  readonly template: unknown;
  /** Told apart from former ones by this. */
  readonly request: string;
  readonly isPrewarmed: boolean;
  readonly timeoutMs: number;
  /** A node's daemon has said something by then. */
  readonly answerMs: number;
  readonly told: (event: UpgradeEvent) => void;
}

/** These are not had by asking again. */
const final = new Set(["invalid", "not_found", "refused", "unsupported", "corrupt"]);

export class Warming {
  readonly #options: WarmingOptions;
  readonly #done = new Map<string, Promise<void>>();
  readonly #turns = new Turns();

  constructor(options: WarmingOptions) {
    this.#options = options;
  }

  /** Of all of them; the first that fails ends it. */
  async all(pods: readonly KubernetesObject[], signal: AbortSignal): Promise<void> {
    await allOrFirstFailure(pods, async (pod, of) => await this.of(pod, of), signal);
  }

  /** Marks the pod, and waits until its node has the images; once for each pod. */
  async of(pod: KubernetesObject, signal: AbortSignal): Promise<void> {
    const uid = uidOf(pod);
    const warming = this.#done.get(uid) ?? this.#warm(pod, signal);
    this.#done.set(uid, warming);
    await warming;
  }

  async #warm(pod: KubernetesObject, signal: AbortSignal): Promise<void> {
    const { steady, pods, pathOf, isPrewarmed, told } = this.#options;
    const marked = await this.#turns.during(
      async () => await steady.amend(pathOf(pod), pod, (fresh) => this.#patchFor(fresh), signal),
    );
    pods.saw(marked);
    const node = nodeOf(marked);
    // One that has no node yet gets what it is made of where it comes to be.
    if (!isPrewarmed || node === undefined) return;
    const { name } = pod.metadata;
    told({ event: "pod", pod: name, node, step: "fetching" });
    await this.#untilWarm(uidOf(pod), name, node, signal);
    told({ event: "pod", pod: name, node, step: "warm" });
  }

  async #untilWarm(uid: string, name: string, node: string, signal: AbortSignal): Promise<void> {
    const { pods, images, request, timeoutMs, answerMs, told } = this.#options;
    const wanted = [...new Set(Object.values(images))];
    let said = "";
    let seen: KubernetesObject | undefined;
    const find = (isAnswered: boolean) => (): true | undefined => {
      const pod = pods.get(uid);
      // Whether it had them is of no more interest.
      if (pod === undefined) return true;
      // All of a crowd are asked whenever one of them changes.
      if (pod === seen) return undefined;
      seen = pod;
      const report = reportOn(pod);
      if (report?.request !== request) return undefined;
      if (isAnswered) return true;
      const all = wanted.map((image) => [image, report.images[image]] as const);
      for (const [image, one] of all) mustNotBeFinal(image, one, name, node);
      const detail = all.flatMap(([image, one]) => detailOf(image, one)).join("; ");
      if (detail !== said && detail !== "") told({ event: "pod", pod: name, node, step: "fetching", detail });
      said = detail;
      return all.every(([, one]) => one?.state === "warm") || undefined;
    };
    const otherwise =
      `no Hawser on node ${node} has answered (pod ${name}): is one there that follows its pods (prewarm.pods = true)? ` +
      "Without: --no-prewarm. Nothing came";
    await pods.until(find(true), { otherwise, timeoutMs: Math.min(answerMs, timeoutMs), signal });
    seen = undefined;
    const late = (): string => (said === "" ? "" : ` (${said})`);
    await pods
      .until(find(false), {
        otherwise: `node ${node} of pod ${name} did not have the images`,
        timeoutMs,
        signal,
      })
      .catch((error: unknown) => {
        const failure = PullError.from(error);
        throw failure.code === "slow" ? new PullError("slow", `${failure.message}${late()}`) : failure;
      });
  }

  /** The mark, and what the node is to have; what stands there already is kept. */
  #patchFor(pod: KubernetesObject): Patch | undefined {
    const { images, isPrewarmed, request, template } = this.#options;
    const left = markOf(pod);
    // One of an upgrade that has ended says nothing of this one, but what it added to what the node is to have.
    const earlier = left && hasEnded(pod, left, template) ? undefined : left;
    const listed = namesIn(annotationOf(pod, prewarmAnnotation));
    const added = isPrewarmed ? Object.values(images).filter((image) => !listed.includes(image)) : [];
    const mark: Mark = {
      // What it was before all that has not been ended yet.
      from: { ...imagesAmong(pod, images), ...earlier?.from },
      to: images,
      before: { ...runningIn(pod, Object.keys(images)), ...earlier?.before },
      wasReady: earlier?.wasReady ?? isReady(pod),
      prewarmed: [...new Set([...(left?.prewarmed ?? []), ...added])],
      request: left ? left.request : annotationOf(pod, requestAnnotation),
    };
    const annotations = {
      [upgradeAnnotation]: JSON.stringify(mark),
      ...(isPrewarmed && {
        [prewarmAnnotation]: [...listed, ...new Set(added)].join(","),
        [requestAnnotation]: request,
      }),
    };
    return { kind: "merge", patch: { metadata: { annotations } } };
  }
}

/** What takes away all that an upgrade has written on a pod; undefined where there is nothing of the kind. */
export function unmarked(pod: KubernetesObject): Patch | undefined {
  const mark = markOf(pod);
  if (annotationOf(pod, upgradeAnnotation) === undefined) return undefined;
  const kept = namesIn(annotationOf(pod, prewarmAnnotation)).filter(
    (name) => !mark?.prewarmed.includes(name),
  );
  const annotations = {
    [upgradeAnnotation]: null,
    [requestAnnotation]: mark?.request ?? null,
    [prewarmAnnotation]: kept.length > 0 ? kept.join(",") : null,
  };
  return { kind: "merge", patch: { metadata: { annotations } } };
}

function namesIn(text: string | undefined): readonly string[] {
  return (text ?? "").split(",").flatMap((one) => one.trim() || []);
}

function mustNotBeFinal(image: string, report: ImageReport | undefined, pod: string, node: string): void {
  if (report?.state !== "failed" || !final.has(report.code)) return;
  throw new PullError("not_found", `node ${node} cannot have ${image} for pod ${pod}: ${report.error}`);
}

function detailOf(image: string, report: ImageReport | undefined): string[] {
  return report?.state === "failed" ? [`${image}: ${report.error}`] : [];
}
