// CloneSets: the images are brought to the nodes, and OpenKruise exchanges them in the pods once it is told to by the
// template. What it does is followed to its end; if one of the pods does not come to run, the template goes back.
//
// OpenKruise sees to it that no more pods than maxUnavailable are out of service; nothing here does.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, numberOf } from "../cluster/fields.ts";
import { PullError } from "../errors.ts";
import type { Outcome, PodStep } from "./inplace.ts";
import {
  backPatch,
  expectedOf,
  formerOf,
  forwardPatch,
  isComplete,
  mustBeOurs,
  unmarkedPatch,
} from "./kruise.ts";
import { areContainersReady, differing, type Images, isReady, isServing, nodeOf, uidOf } from "./pod.ts";
import type { Patch } from "./steady.ts";
import { type Firsts, troubleOf } from "./trouble.ts";
import { unmarkAll, type Work } from "./work.ts";

/** Never throws; what has failed is in its outcome. */
export async function upgradeCloneSet(work: Work): Promise<Outcome> {
  const { workload, request, signal, pods } = work;
  const touched = { is: formerOf(workload.object) !== undefined };
  const former = new Map(pods.all.filter(isServing).map((pod) => [uidOf(pod), pod]));
  try {
    const open = [...former.values()].filter((pod) => differing(pod, request.images).length > 0);
    await work.warming.all(open, signal);
    touched.is = true;
    const patched = await patch(work, (object) => forwardPatch(object, request), signal);
    await new Following(work, request.images, patched).run(signal);
  } catch (error) {
    return await rollBack(work, PullError.from(error), touched.is);
  }
  await unmark(work);
  const isUpgraded = (pod: KubernetesObject): boolean => {
    const before = former.get(uidOf(pod));
    return (
      isServing(pod) &&
      differing(pod, request.images).length === 0 &&
      (!before || differing(before, request.images).length > 0)
    );
  };
  return { kind: "upgraded", pods: pods.all.filter(isUpgraded).length };
}

/** What was written for the upgrade itself goes; returns what of the CloneSet stays otherwise than it was, if that fails. */
async function unmark(work: Work): Promise<string | undefined> {
  await unmarkAll(work, work.lost, () => true);
  let fields: readonly string[] = [];
  const patchFor = (object: KubernetesObject): Patch | undefined => {
    fields = Object.keys(formerOf(object)?.strategy ?? {}).map((key) => `spec.updateStrategy.${key}`);
    return unmarkedPatch(object);
  };
  try {
    await patch(work, patchFor, work.lost);
    return undefined;
  } catch (error) {
    const what = ["an annotation of Hawser", ...fields].join(", ");
    const text = `not as it was: ${what}: ${PullError.from(error).message}`;
    work.options.told({ event: "note", text });
    return fields.length > 0 ? text : undefined;
  }
}

async function rollBack(work: Work, failure: PullError, isTouched: boolean): Promise<Outcome> {
  const { lost, options, request, pods, source } = work;
  const name = `${request.kind}/${request.name}`;
  if (lost.aborted) return { kind: "left", failure, left: [name] };
  options.told({ event: "failure", error: failure.message });
  for (const watched of [pods, source]) watched.forgive();
  try {
    for (const object of await work.steady.unsure(lost)) pods.saw(object);
    const count = isTouched ? await goBack(work) : 0;
    const stays = await unmark(work);
    if (stays !== undefined) return { kind: "left", failure, left: [`${name}: ${stays}`] };
    return { kind: "rolled back", failure, pods: count };
  } catch (error) {
    const { code, message } = PullError.from(error);
    // What somebody else has made of it is theirs; anything else may be gone on with.
    if (code === "conflict") await unmark(work);
    return { kind: "left", failure, left: [`${name}: ${message}`] };
  }
}

/** How many pods had come to have the images. */
async function goBack(work: Work): Promise<number> {
  const { lost, pods } = work;
  let images: Images = {};
  const patchFor = (object: KubernetesObject): Patch | undefined => {
    images = formerOf(object)?.images ?? {};
    return backPatch(object);
  };
  const patched = await patch(work, patchFor, lost);
  const count = pods.all.filter((pod) => isServing(pod) && differing(pod, images).length > 0).length;
  await new Following(work, images, patched).run(lost);
  return count;
}

async function patch(
  { workload, steady }: Work,
  patchFor: (object: KubernetesObject) => Patch | undefined,
  signal: AbortSignal,
): Promise<KubernetesObject> {
  const fresh = await steady.get(workload.path, signal);
  return await steady.amend(workload.path, fresh, patchFor, signal);
}

/** One wait for all that OpenKruise does after a change of the template. */
class Following {
  readonly #work: Work;
  readonly #images: Images;
  readonly #generation: number;
  readonly #firsts = new Map<string, Firsts>();
  readonly #steps = new Map<string, PodStep>();
  readonly #first: ReadonlySet<string>;

  constructor(work: Work, images: Images, patched: KubernetesObject) {
    this.#work = work;
    this.#images = images;
    this.#generation = numberOf(fieldsOf(patched.metadata)["generation"], 0);
    this.#first = new Set(work.pods.all.map(uidOf));
  }

  async run(signal: AbortSignal): Promise<void> {
    const { pods, source, request } = this.#work;
    const { timeoutMs } = request;
    const wait = {
      otherwise: `OpenKruise did not get on with ${request.kind}/${request.name}`,
      timeoutMs,
      signal,
    };
    for (let last = ""; last !== "done"; ) {
      // The pods are looked at again when the CloneSet has changed as well: which of the two is heard of first is chance.
      last = await pods.until(() => {
        if (source.lost) throw source.lost;
        this.#look();
        const now = this.#state();
        return now === last ? undefined : now;
      }, wait);
    }
  }

  /** "done", or anything else that changes with what comes of it. Throws `conflict` where it is not about this any more. */
  #state(): string | undefined {
    const { source, pods } = this.#work;
    const [object] = source.all;
    if (object === undefined) throw new PullError("not_found", "the CloneSet was deleted meanwhile");
    if (numberOf(fieldsOf(object.metadata)["generation"], 0) < this.#generation) return undefined;
    mustBeOurs(object, this.#images);
    const ready = pods.all.filter(
      (pod) => isServing(pod) && isReady(pod) && differing(pod, this.#images).length === 0,
    );
    if (isComplete(object) && ready.length >= expectedOf(object)) return "done";
    return JSON.stringify([ready.length, object["status"]]);
  }

  /** Throws what keeps a pod from running its new images. */
  #look(): void {
    const { pods, options } = this.#work;
    for (const pod of pods.all.filter(isServing)) {
      const uid = uidOf(pod);
      const { name } = pod.metadata;
      const step = this.#stepOf(pod);
      if (this.#steps.get(uid) !== step) {
        const detail = this.#first.has(uid) ? undefined : "made anew by OpenKruise";
        options.told({ event: "pod", pod: name, node: nodeOf(pod), step, detail });
        this.#steps.set(uid, step);
      }
      if (differing(pod, this.#images).length > 0) continue;
      const firsts = this.#firsts.get(uid) ?? (new Map() as Firsts);
      this.#firsts.set(uid, firsts);
      const trouble = troubleOf(pod, this.#images, firsts);
      if (trouble) throw new PullError("unsupported", `pod ${name}: ${trouble}`);
    }
  }

  #stepOf(pod: KubernetesObject): PodStep {
    if (differing(pod, this.#images).length > 0) return isReady(pod) ? "waits" : "leaving service";
    if (isReady(pod)) return "done";
    return areContainersReady(pod) ? "entering service" : "restarting";
  }
}
