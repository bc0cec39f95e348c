// What all kinds of upgrade share while they go on: the workload, its pods, the lock, and their failure's way back.

import { randomBytes } from "node:crypto";
import { setMaxListeners } from "node:events";
import type { KubernetesObject } from "../cluster/cluster.ts";
import { PullError } from "../errors.ts";
import { Turns } from "./crowd.ts";
import { type UpgradeOptions, type UpgradeRequest, usualPace } from "./inplace.ts";
import { Lock } from "./lock.ts";
import { annotationOf, uidOf, upgradeAnnotation } from "./pod.ts";
import { Steady } from "./steady.ts";
import { templateOf } from "./template.ts";
import { unmarked, Warming } from "./warm.ts";
import { Watched } from "./watched.ts";
import { someOf, type Workload } from "./workload.ts";

export interface Work extends AsyncDisposable {
  readonly options: UpgradeOptions;
  readonly request: UpgradeRequest;
  readonly workload: Workload;
  /** The workload as it is now; a pod is one of its own pods. */
  readonly source: Watched;
  readonly pods: Watched;
  readonly steady: Steady;
  readonly warming: Warming;
  readonly pathOf: (pod: KubernetesObject) => string;
  /** Aborted when it is to end, or somebody else has the lock. */
  readonly signal: AbortSignal;
  /** Aborted when somebody else has the lock: then nothing may be touched any more. */
  readonly lost: AbortSignal;
}

function watchedFor(
  { cluster, pace = usualPace }: UpgradeOptions,
  { collection, isOwn }: Pick<Workload, "collection" | "isOwn">,
): Watched {
  return new Watched(cluster, collection, isOwn, pace.awayMs);
}

/** The workload itself, to be watched. */
function selfOf({ path, object: { metadata } }: Workload): Pick<Workload, "collection" | "isOwn"> {
  const collection = {
    path: path.slice(0, path.lastIndexOf("/")),
    fieldSelector: `metadata.name=${metadata.name}`,
    isCurrent: true,
  };
  return { collection, isOwn: (object) => uidOf(object) === metadata.uid };
}

/** The workload as it is now. */
export function currentOf({ workload, source }: Work): Workload {
  return { ...workload, object: source.get(uidOf(workload.object)) ?? workload.object };
}

/** Takes the lock. Throws `exists` where another upgrade goes on. */
export async function begin(
  options: UpgradeOptions,
  request: UpgradeRequest,
  workload: Workload,
  signal: AbortSignal,
): Promise<Work> {
  const { cluster, holder, told, pace = usualPace } = options;
  const steady = new Steady(cluster, pace.awayMs);
  const { namespace, kind, name } = request;
  const waits = (other: string): void =>
    told({
      event: "note",
      text: `${kind}/${name} is locked by ${other}: waiting to see whether that goes on`,
    });
  const owner = workload.object;
  const lock = await Lock.take({ steady, namespace, owner, holder, lifeMs: pace.lockMs, waits }, signal);
  steady.ensure = async (of) => await lock.ensure(of);
  const pods = watchedFor(options, workload);
  const source = kind === "pod" ? pods : watchedFor(options, selfOf(workload));
  // How many pods there should be may have changed.
  if (source !== pods) source.onChange = () => pods.poke();
  const pathOf = ({ metadata }: KubernetesObject): string =>
    `/api/v1/namespaces/${encodeURIComponent(namespace)}/pods/${encodeURIComponent(metadata.name)}`;
  const { images, isPrewarmed, timeoutMs } = request;
  const warming = new Warming({
    steady,
    pods,
    pathOf,
    images,
    template: kind === "pod" ? undefined : templateOf(workload.object),
    request: randomBytes(8).toString("hex"),
    isPrewarmed,
    timeoutMs,
    answerMs: pace.answerMs,
    told,
  });
  return {
    options,
    request,
    workload,
    source,
    pods,
    steady,
    warming,
    pathOf,
    signal: forMany(AbortSignal.any([signal, lock.lost])),
    lost: forMany(lock.lost),
    [Symbol.asyncDispose]: async () => {
      for (const watched of new Set([pods, source])) await watched[Symbol.asyncDispose]();
      await lock[Symbol.asyncDispose]();
    },
  };
}

/** One signal that ends what is done for any number of pods; Node takes more than ten listeners for a leak. */
function forMany(signal: AbortSignal): AbortSignal {
  setMaxListeners(0, signal);
  return signal;
}

/** Waits until the workload and its pods are known. */
export async function known({ pods, source, request, signal }: Work): Promise<void> {
  const { timeoutMs } = request;
  await source.until(() => true, { otherwise: "the workload was not heard of", timeoutMs, signal });
  await pods.until(() => true, { otherwise: "the pods were not heard of", timeoutMs, signal });
}

/** Takes from the pods what was written on them. What fails of that fails nothing else, and is told. */
export async function unmarkAll(
  work: Work,
  signal: AbortSignal,
  which: (pod: KubernetesObject) => boolean,
): Promise<void> {
  const { pods, steady, pathOf, options } = work;
  const marked = pods.all.filter((pod) => annotationOf(pod, upgradeAnnotation) !== undefined && which(pod));
  const failed: string[] = [];
  const turns = new Turns();
  await Promise.all(
    marked.map(async (pod) => {
      try {
        await turns.during(async () => await steady.amend(pathOf(pod), pod, unmarked, signal));
      } catch (error) {
        if (PullError.from(error).code !== "not_found") failed.push(pod.metadata.name);
      }
    }),
  );
  if (failed.length > 0)
    options.told({
      event: "note",
      text: `annotations of Hawser stay on ${someOf(failed)}: the next upgrade takes them away`,
    });
}
