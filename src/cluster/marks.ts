// What Hawser leaves on pods and finds there: which images a pod's node is to have before anybody asks for them, what came
// of that, and the readiness gate of pods whose images are exchanged in place.
//
// A node may write no more of its pods than their status, so what came of it is a condition: its status says whether all
// is warm, for "kubectl wait" as well, and its message is a report for programs. A report is for the request that it
// names, so that nobody takes an old one for an answer.

import type { KubernetesObject } from "./cluster.ts";

/** Names images, with commas between them. */
export const prewarmAnnotation = "hawser.dev/prewarm";
/** Whatever it says is said in the report as well; with another value, what has failed is tried again at once. */
export const requestAnnotation = "hawser.dev/prewarm-request";
export const prewarmedCondition = "hawser.dev/Prewarmed";
/** As OpenKruise has it: false while an image of the pod is exchanged. */
export const readinessGate = "InPlaceUpdateReady";

/** What became of one image. */
export type ImageReport =
  | { readonly state: "wanted" | "fetching" }
  /** With the digest of what its name stands for, where that is known: a manifest's or an index's. */
  | { readonly state: "warm"; readonly digest?: string | undefined }
  /** The latest attempt's failure, by {@link ErrorCode}; it is tried again all the same. */
  | { readonly state: "failed"; readonly code: string; readonly error: string };

export interface PrewarmReport {
  readonly request: string | undefined;
  /** By the names that the annotation has. */
  readonly images: Readonly<Record<string, ImageReport>>;
}

export interface Condition {
  readonly type: string;
  readonly status: "True" | "False" | "Unknown";
  readonly reason?: string | undefined;
  readonly message?: string | undefined;
}

/** What a patch needs to know of a pod. */
type Marked = Pick<KubernetesObject, "metadata">;

const errorCharactersMax = 200;

export function conditionFor({ request, images }: PrewarmReport): Condition {
  const states = Object.values(images).map(({ state }) => state);
  const isWarm = states.every((state) => state === "warm");
  const reason = isWarm ? "Warm" : states.includes("failed") ? "Failed" : "Fetching";
  const short = Object.entries(images).map(([name, image]) => [
    name,
    image.state === "failed" ? { ...image, error: image.error.slice(0, errorCharactersMax) } : image,
  ]);
  const message = JSON.stringify({ request, images: Object.fromEntries(short) as PrewarmReport["images"] });
  return { type: prewarmedCondition, status: isWarm ? "True" : "False", reason, message };
}

/** Undefined where there is none, or none that can be read. */
export function reportOn(pod: KubernetesObject): PrewarmReport | undefined {
  try {
    const text = conditionOf(pod, prewarmedCondition)?.message ?? "";
    const { request, images } = JSON.parse(text) as { readonly request?: unknown; readonly images?: unknown };
    if (typeof images !== "object" || images === null) return undefined;
    return {
      request: typeof request === "string" ? request : undefined,
      images: images as PrewarmReport["images"],
    };
  } catch {
    return undefined;
  }
}

export function conditionOf(pod: KubernetesObject, type: string): Condition | undefined {
  const { conditions } = Object(pod["status"]) as { readonly conditions?: unknown };
  if (!Array.isArray(conditions)) return undefined;
  return (conditions as readonly (Condition | null)[]).find((one) => one?.type === type) ?? undefined;
}

/** Patch of a pod's status (strategic), with only this changed; the pod has to be of that version still. */
export function statusPatch(pod: Marked, condition: Condition, isChanged: boolean): unknown {
  const now = new Date().toISOString().replace(/\.\d+Z$/, "Z");
  return patchOf(pod, { ...condition, ...(isChanged && { lastTransitionTime: now }) });
}

/** Like {@link statusPatch}, without the condition of that type. */
export function removalPatch(pod: Marked, type: string): unknown {
  return patchOf(pod, { type, $patch: "delete" });
}

function patchOf({ metadata: { uid, resourceVersion } }: Marked, condition: object): unknown {
  return {
    metadata: { uid, ...(resourceVersion && { resourceVersion }) },
    status: { conditions: [condition] },
  };
}
