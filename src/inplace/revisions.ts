// Which revision of its workload's template a pod counts as. A pod that was given the template's images in place is no
// different from one that is made of it now, if its own revision differs in those images alone: it gets the label of the
// present one, so that its controller counts it as updated, and does not make it anew if it is told to update by itself one
// day. By whom and when the template was changed does not matter.

import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import type { KubernetesObject } from "../cluster/cluster.ts";
import { type Fields, fieldsOf, numberOf, wordOf } from "../cluster/fields.ts";
import { PullError, throwIfAborted } from "../errors.ts";
import { controllerOf, differing, type Images, isServing, uidOf } from "./pod.ts";
import type { Patch } from "./steady.ts";
import { labelOf, listsWith, revisionLabel, templateOf } from "./template.ts";
import type { Work } from "./work.ts";
import { someOf } from "./workload.ts";

/** Controllers are quick; one that says nothing is not waited for. */
const revisionMs = 10_000;
const pollMs = 100;

/** Labels the pods. What fails of that is told, and fails nothing. */
export async function labelPods(work: Work): Promise<void> {
  const { pods, request, options, steady, pathOf, lost } = work;
  const name = `${request.kind}/${request.name}`;
  try {
    const found = await revisionsOf(work);
    const own = pods.all.filter((pod) => isServing(pod) && differing(pod, request.images).length === 0);
    const others: string[] = [];
    for (const pod of own) {
      const label = labelOf(pod) ?? "";
      if (label === found.present) continue;
      if (!found.alike.has(label)) others.push(pod.metadata.name);
      else
        pods.saw(await steady.amend(pathOf(pod), pod, (one) => labelPatch(one, label, found.present), lost));
    }
    if (others.length === 0) return;
    const text = `${someOf(others)} differ from the template of ${name} in more than these images, and count as not updated`;
    options.told({ event: "note", text });
  } catch (error) {
    const text = `the pods of ${name} count as not updated: ${PullError.from(error).message}`;
    options.told({ event: "note", text });
  }
}

function labelPatch(pod: KubernetesObject, from: string, to: string): Patch | undefined {
  if (labelOf(pod) !== from) return undefined;
  return { kind: "merge", patch: { metadata: { labels: { [revisionLabel]: to } } } };
}

interface Revisions {
  readonly present: string;
  /** Labels of pods of those that differ from the present one in images that were exchanged alone. */
  readonly alike: ReadonlySet<string>;
}

async function revisionsOf(work: Work): Promise<Revisions> {
  const { workload, request, options, lost } = work;
  const object = await observed(work);
  const path = `/apis/apps/v1/namespaces/${encodeURIComponent(request.namespace)}/controllerrevisions`;
  const all = (await options.cluster.list({ ...workload.collection, path }, lost)).filter(
    (revision) => controllerOf(revision)?.uid === uidOf(object),
  );
  const named = wordOf(fieldsOf(object["status"])["updateRevision"]);
  const latest = all.toSorted(
    (one, other) => numberOf(other["revision"], 0) - numberOf(one["revision"], 0),
  )[0];
  // A StatefulSet says which it is, and labels its pods with the name; a DaemonSet's is the latest, with a label.
  const present = named === undefined ? latest : all.find(({ metadata }) => metadata.name === named);
  if (present === undefined) throw new PullError("not_found", "its controller tells of no revision");
  const wanted = withImages(present, request.images);
  if (differing(templateOf(object), request.images).length > 0)
    throw new PullError("conflict", "its template has other images");
  const alike = all.filter((one) => isDeepStrictEqual(withImages(one, request.images), wanted));
  const ids = (one: KubernetesObject): string[] =>
    [one.metadata.name, labelOf(one)].flatMap((id) => id ?? []);
  return { present: named ?? labelOf(present) ?? present.metadata.name, alike: new Set(alike.flatMap(ids)) };
}

/** The workload once its controller has seen it as it is. */
async function observed({ workload, steady, lost }: Work): Promise<KubernetesObject> {
  const since = performance.now();
  for (;;) {
    throwIfAborted(lost);
    const object = await steady.get(workload.path, lost);
    const { observedGeneration } = fieldsOf(object["status"]);
    if (numberOf(observedGeneration, 0) >= numberOf(fieldsOf(object.metadata)["generation"], 0))
      return object;
    if (performance.now() - since > revisionMs)
      throw new PullError("slow", `its controller has not seen it within ${revisionMs / 1000} s`);
    await sleep(pollMs, undefined, { signal: lost }).catch(() => {});
  }
}

/** The template of a ControllerRevision, as if its containers had these images. */
function withImages(revision: KubernetesObject, images: Images): Fields {
  const template = fieldsOf(fieldsOf(fieldsOf(revision["data"])["spec"])["template"]);
  const spec = fieldsOf(template["spec"]);
  return { ...template, spec: { ...spec, ...listsWith(spec, images) } };
}
