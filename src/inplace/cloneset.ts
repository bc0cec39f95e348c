// CloneSets: the images are brought to the nodes, and OpenKruise exchanges them in the pods once it is told to by the
// template. What it does is followed to its end; if one of the pods does not come to run, the template goes back.
//
// What stood in the CloneSet before is kept on it until the end, so that whoever goes on can go back as well. OpenKruise
// sees to it that no more pods than maxUnavailable are out of service.

import type { KubernetesObject } from "../cluster/cluster.ts";
import { fieldsOf, numberOf, wordOf } from "../cluster/fields.ts";
import { PullError } from "../errors.ts";
import type { Outcome, PodStep } from "./inplace.ts";
import {
  annotationOf,
  areContainersReady,
  areEqual,
  differing,
  type Images,
  imagesOf,
  isReady,
  isServing,
  nodeOf,
  uidOf,
  upgradeAnnotation,
} from "./pod.ts";
import type { Patch } from "./steady.ts";
import { templateOf } from "./template.ts";
import { type Firsts, troubleOf } from "./trouble.ts";
import { known, unmarkAll, type Work } from "./work.ts";
import { replicasOf } from "./workload.ts";

type Fields = Readonly<Record<string, unknown>>;

/** What stood in a CloneSet before; null for what did not. */
interface Former {
  readonly images: Images;
  readonly to: Images;
  readonly strategy: Fields;
}

/** Never throws; what has failed is in its outcome. */
export async function upgradeCloneSet(work: Work): Promise<Outcome> {
  const { workload, request, signal } = work;
  const touched = { is: formerOf(workload.object) !== undefined };
  try {
    await known(work);
    const open = work.pods.all.filter((pod) => isServing(pod) && differing(pod, request.images).length > 0);
    await work.warming.all(open, signal);
    touched.is = true;
    const patched = await patch(work, (object) => forwardPatch(object, work), signal);
    await new Following(work, request.images, patched).run(signal);
    await unmarkAll(work, signal, () => true);
    await patch(work, (object) => unmarkedPatch(object), signal);
    return { kind: "upgraded", pods: open.length };
  } catch (error) {
    return await rollBack(work, PullError.from(error), touched.is);
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
    let count = 0;
    if (isTouched) {
      const former = { images: {} as Images };
      const patched = await patch(
        work,
        (object) => {
          former.images = formerOf(object)?.images ?? {};
          return backPatch(object);
        },
        lost,
      );
      count = pods.all.filter((pod) => differing(pod, former.images).length > 0).length;
      await new Following(work, former.images, patched).run(lost);
      await patch(work, unmarkedPatch, lost);
    }
    await unmarkAll(work, lost, () => true);
    return { kind: "rolled back", failure, pods: count };
  } catch (error) {
    return { kind: "left", failure, left: [`${name}: ${PullError.from(error).message}`] };
  }
}

async function patch(
  { workload, steady }: Work,
  patchFor: (object: KubernetesObject) => Patch | undefined,
  signal: AbortSignal,
): Promise<KubernetesObject> {
  const fresh = await steady.get(workload.path, signal);
  return await steady.amend(workload.path, fresh, patchFor, signal);
}

function forwardPatch(object: KubernetesObject, { request }: Work): Patch | undefined {
  const earlier = formerOf(object);
  const isThere = differing(templateOf(object), request.images).length === 0;
  if (isThere && (earlier === undefined || areEqual(earlier.to, request.images))) return undefined;
  const strategy = strategyOf(object);
  const changed = strategyPatch(object, request);
  const former: Former = {
    images: { ...pick(imagesOf(templateOf(object)), request.images), ...earlier?.images },
    to: request.images,
    strategy: {
      ...Object.fromEntries(Object.keys(changed).map((key) => [key, strategy[key] ?? null])),
      ...earlier?.strategy,
    },
  };
  const annotations = { [upgradeAnnotation]: JSON.stringify(former) };
  const spec = { template: templateWith(object, request.images), updateStrategy: changed };
  return { kind: "merge", patch: { metadata: { annotations }, spec } };
}

/** What of spec.updateStrategy is changed: pods are not to be made anew, and what was asked for. */
export function strategyPatch(
  object: KubernetesObject,
  { maxUnavailable, graceMs }: Work["request"],
): Fields {
  const { type, inPlaceUpdateStrategy } = strategyOf(object);
  const isInPlace = type === "InPlaceIfPossible" || type === "InPlaceOnly";
  return {
    ...(!isInPlace && { type: "InPlaceIfPossible" }),
    ...(maxUnavailable && {
      maxUnavailable: "count" in maxUnavailable ? maxUnavailable.count : `${maxUnavailable.percent}%`,
    }),
    ...(graceMs !== undefined && {
      inPlaceUpdateStrategy: {
        ...fieldsOf(inPlaceUpdateStrategy),
        gracePeriodSeconds: Math.ceil(graceMs / 1000),
      },
    }),
  };
}

/** With the partition out of the way, since pods beyond it would stay what they have become. */
function backPatch(object: KubernetesObject): Patch | undefined {
  const former = formerOf(object);
  if (former === undefined || differing(templateOf(object), former.images).length === 0) return undefined;
  const { partition } = strategyOf(object);
  const kept: Former = { ...former, strategy: { ...(partition ? { partition } : {}), ...former.strategy } };
  const annotations = { [upgradeAnnotation]: JSON.stringify(kept) };
  const updateStrategy = partition ? { partition: 0 } : {};
  return {
    kind: "merge",
    patch: {
      metadata: { annotations },
      spec: { template: templateWith(object, former.images), updateStrategy },
    },
  };
}

/** At the end: what the strategy was comes back where the template did. */
function unmarkedPatch(object: KubernetesObject): Patch | undefined {
  if (annotationOf(object, upgradeAnnotation) === undefined) return undefined;
  const former = formerOf(object);
  const isBack = former !== undefined && differing(templateOf(object), former.images).length === 0;
  const spec = isBack ? { spec: { updateStrategy: former.strategy } } : {};
  return { kind: "merge", patch: { metadata: { annotations: { [upgradeAnnotation]: null } }, ...spec } };
}

/** Lists of containers are replaced as wholes, since the API knows no keys of a CloneSet's. */
function templateWith(object: KubernetesObject, images: Images): object {
  const spec = fieldsOf(fieldsOf(templateOf(object))["spec"]);
  const lists = ["containers", "initContainers"].flatMap((list) => {
    const all = spec[list];
    if (!Array.isArray(all)) return [];
    const changed = (all as readonly Fields[]).map((container) => {
      const image = images[wordOf(container["name"]) ?? ""];
      return image === undefined ? container : Object.assign({}, container, { image });
    });
    return [[list, changed]];
  });
  return { spec: Object.fromEntries(lists) as object };
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
    const { pods, request } = this.#work;
    const { timeoutMs } = request;
    const over = new AbortController();
    const both = AbortSignal.any([signal, over.signal]);
    const otherwise = `OpenKruise did not get on with ${request.kind}/${request.name}`;
    const longest = 2 ** 31 - 1;
    const look = (): undefined => this.#look();
    const failing = pods.until(look, { otherwise: "", timeoutMs: longest, signal: both });
    try {
      for (let last = ""; ; ) {
        const find = (): string | undefined => {
          const now = this.#state();
          return now === last ? undefined : now;
        };
        const next = this.#work.source.until(find, { otherwise, timeoutMs, signal: both });
        next.catch(() => {});
        last = (await Promise.race([next, failing])) ?? last;
        if (last === "done") return;
      }
    } finally {
      failing.catch(() => {});
      over.abort();
    }
  }

  /** "done", or anything else that changes with what comes of it. */
  #state(): string | undefined {
    const [object] = this.#work.source.all;
    if (object === undefined) throw new PullError("not_found", "the CloneSet was deleted meanwhile");
    const { observedGeneration, updatedReplicas, updatedReadyReplicas } = fieldsOf(object["status"]);
    if (numberOf(observedGeneration, 0) < this.#generation) return undefined;
    const counts = [numberOf(updatedReplicas, 0), numberOf(updatedReadyReplicas, 0)];
    const expected = expectedOf({ ...this.#work.workload, object });
    return counts.every((count) => count >= expected) ? "done" : counts.join(" of ");
  }

  /** Throws what keeps a pod from running its new images. */
  #look(): undefined {
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
    return undefined;
  }

  #stepOf(pod: KubernetesObject): PodStep {
    if (differing(pod, this.#images).length > 0) return isReady(pod) ? "waits" : "leaving service";
    if (isReady(pod)) return "done";
    return areContainersReady(pod) ? "entering service" : "restarting";
  }
}

/** Those that are not kept at what they are by the partition (a number, or a share that is rounded up). */
function expectedOf(workload: Work["workload"]): number {
  const replicas = replicasOf(workload);
  const { partition } = strategyOf(workload.object);
  const percent = /^(\d+)%$/.exec(String(partition))?.[1];
  const kept = percent === undefined ? numberOf(partition, 0) : Math.ceil((replicas * Number(percent)) / 100);
  return Math.max(0, replicas - kept);
}

function strategyOf(object: KubernetesObject): Fields {
  return fieldsOf(fieldsOf(object["spec"])["updateStrategy"]);
}

function formerOf(object: KubernetesObject): Former | undefined {
  try {
    const { images, to, strategy } = fieldsOf(JSON.parse(annotationOf(object, upgradeAnnotation) ?? ""));
    const words = (value: unknown): Images =>
      Object.fromEntries(Object.entries(fieldsOf(value)).map(([name, image]) => [name, String(image)]));
    return { images: words(images), to: words(to), strategy: fieldsOf(strategy) };
  } catch {
    return undefined;
  }
}

function pick(all: Images, names: Images): Images {
  return Object.fromEntries(Object.keys(names).map((name) => [name, all[name] ?? ""]));
}
