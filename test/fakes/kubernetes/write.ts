// Writing to the API: creations, patches and removals, with what it refuses of them.

import { randomBytes } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import type { Identity } from "./access.ts";
import { isFields, mergePatch, strategicPatch } from "./patch.ts";
import { Refusal } from "./refusal.ts";
import type { ApiObject, ObjectStore } from "./store.ts";
import type { Target } from "./target.ts";

const strategicType = "application/strategic-merge-patch+json";
const mergeType = "application/merge-patch+json";
const changed = "the object has been modified; please apply your changes to the latest version and try again";
/** These have no status. */
const bare = new Set(["secrets", "configmaps", "events", "controllerrevisions", "leases"]);

/** What the object is then. */
export function create(store: ObjectStore, target: Target, body: unknown): ApiObject {
  if (!isFields(body)) throw Refusal.bad("the object provided is unrecognized");
  const { generateName, ...given } = (isFields(body["metadata"]) ? body["metadata"] : {}) as Record<
    string,
    unknown
  >;
  const name = given["name"] ?? (typeof generateName === "string" ? generateName + suffix() : undefined);
  if (typeof name !== "string" || name === "")
    throw Refusal.invalid(
      body["kind"],
      "",
      "metadata.name: Required value: name or generateName is required",
    );
  const { namespace } = target;
  if (given["namespace"] !== undefined && given["namespace"] !== namespace)
    throw Refusal.bad(
      "the namespace of the provided object does not match the namespace sent on the request",
    );
  if (store.read(target.collection, name, namespace)) throw Refusal.exists(target, name);
  const { uid: _, resourceVersion: __, generation: ___, ...more } = given;
  const metadata = { ...more, name, ...(namespace !== "" && { namespace }) };
  const { status: ____, ...rest } = body;
  const status = target.resource === "pods" ? { status: { phase: "Pending" } } : {};
  const object = { ...(bare.has(target.resource) ? body : rest), ...status, metadata };
  mustBePlain(object);
  return store.put(target.collection, object);
}

export function remove(store: ObjectStore, target: Target, body: unknown): void {
  const current = mustRead(store, target);
  const { preconditions } = Object(body) as { preconditions?: Record<string, string> };
  mustBeUid(target, current, preconditions?.["uid"]);
  const { resourceVersion: version } = preconditions ?? {};
  const { resourceVersion: actual } = current.metadata;
  if (version !== undefined && version !== actual) {
    const why = `ResourceVersion in precondition: ${version}, ResourceVersion in object meta: ${String(actual)}`;
    throw Refusal.conflict(target, `Precondition failed: ${why}`);
  }
  store.remove(target.collection, target.name, target.namespace);
}

export function patch(
  store: ObjectStore,
  target: Target,
  { body, contentType, identity }: { body: unknown; contentType: string; identity: Identity },
): ApiObject {
  const current = mustRead(store, target);
  if (target.subresource !== "" && (target.subresource !== "status" || bare.has(target.resource)))
    throw Refusal.unknown();
  const isStrategic = contentType === strategicType;
  if (!(isStrategic && isBuiltIn(target)) && contentType !== mergeType) throw unsupported();
  if (!isFields(body)) throw Refusal.bad("the patch is no object");
  const meant = isFields(body["metadata"]) ? body["metadata"] : {};
  mustBeUid(target, current, meant["uid"]);
  const version = meant["resourceVersion"];
  if (typeof version === "string" && version !== current.metadata["resourceVersion"])
    throw Refusal.conflict(target, changed);
  const merged = (isStrategic ? strategicPatch(current, body) : mergePatch(current, body)) as ApiObject;
  const next =
    target.subresource === "status" ? statusOnly(target, current, merged) : mainOnly(target, current, merged);
  mustBePlain(next);
  if (target.resource === "pods") {
    mustBeOfNode(target, current, next, identity);
    mustBeSamePod(current, next);
  }
  return isDeepStrictEqual(next, current) ? current : store.put(target.collection, next);
}

export function mustRead(store: ObjectStore, target: Target): ApiObject {
  const object = store.read(target.collection, target.name, target.namespace);
  if (object === undefined) throw Refusal.missing(target);
  return object;
}

function suffix(): string {
  return randomBytes(4).toString("hex").slice(0, 5);
}

function isBuiltIn({ group }: Target): boolean {
  return group === "" || !group.includes(".") || group.endsWith(".k8s.io");
}

function unsupported(): Refusal {
  const types = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
  const message = `the body of the request was in an unknown format - accepted media types include: ${types}`;
  return new Refusal(415, "UnsupportedMediaType", message);
}

function mustBeUid(target: Target, { metadata }: ApiObject, uid: unknown): void {
  if (uid === undefined || uid === metadata["uid"]) return;
  const why = `UID in precondition: ${uid as string}, UID in object meta: ${metadata["uid"] as string}`;
  throw Refusal.conflict(target, `Precondition failed: ${why}`);
}

/** Who it is stays, whatever a patch says. */
function fixed({ metadata: current }: ApiObject, { metadata }: ApiObject): ApiObject["metadata"] {
  const kept = ["name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp"];
  const own = Object.fromEntries(kept.flatMap((key) => (key in current ? [[key, current[key]]] : [])));
  return { ...metadata, ...own };
}

function mainOnly({ resource }: Target, current: ApiObject, merged: ApiObject): ApiObject {
  const { status: _, ...rest } = merged;
  const metadata = fixed(current, merged);
  if (bare.has(resource)) return { ...merged, metadata };
  return { ...rest, metadata, ...("status" in current && { status: current["status"] }) };
}

/** Labels and annotations of Kubernetes' own kinds pass as well; of others, nothing but the status. */
function statusOnly(target: Target, current: ApiObject, merged: ApiObject): ApiObject {
  const metadata = isBuiltIn(target) ? fixed(current, merged) : current.metadata;
  return { ...current, metadata, ...("status" in merged && { status: merged["status"] }) };
}

/** As it is decoded: labels and annotations are of strings. */
function mustBePlain({ metadata }: ApiObject): void {
  for (const key of ["labels", "annotations"])
    for (const value of Object.values(Object(metadata[key]) as object))
      if (typeof value !== "string")
        throw Refusal.bad(
          `json: cannot unmarshal ${typeof value} into Go struct field ObjectMeta.${key} of type string`,
        );
}

/** NodeRestriction's words. */
function mustBeOfNode(target: Target, current: ApiObject, next: ApiObject, { nodeName }: Identity): void {
  if (nodeName === undefined) return;
  if ((current["spec"] as { nodeName?: string } | undefined)?.nodeName !== nodeName)
    throw Refusal.forbidden(
      target,
      `node "${nodeName}" can only update pod status for pods with spec.nodeName set to itself`,
    );
  if (!isDeepStrictEqual(current.metadata["labels"], next.metadata["labels"]))
    throw Refusal.forbidden(target, `node "${nodeName}" cannot update labels through pod status`);
}

const lists = ["containers", "initContainers"] as const;
type Spec = Readonly<Partial<Record<(typeof lists)[number], readonly { image?: string }[]>>>;

function mustBeSamePod(current: ApiObject, next: ApiObject): void {
  const [former, spec] = [current["spec"] ?? {}, next["spec"] ?? {}] as [Spec, Spec];
  if (former === spec) return;
  const { name } = current.metadata;
  for (const list of lists) {
    if (former[list]?.length !== spec[list]?.length)
      throw Refusal.invalid(
        "Pod",
        name,
        `spec.${list}: Forbidden: pod updates may not add or remove containers`,
      );
    const index = (spec[list] ?? []).findIndex(({ image }) => typeof image !== "string" || image === "");
    if (index >= 0) throw Refusal.invalid("Pod", name, `spec.${list}[${index}].image: Required value`);
  }
  if (isDeepStrictEqual(withoutImages(former), withoutImages(spec))) return;
  const mutable =
    "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
  throw Refusal.invalid(
    "Pod",
    name,
    `spec: Forbidden: pod updates may not change fields other than ${mutable}`,
  );
}

function withoutImages(spec: Spec): Spec {
  const bared = lists.map((list) => [list, spec[list]?.map((one) => ({ ...one, image: "" }))]);
  return { ...spec, ...(Object.fromEntries(bared) as Spec) };
}
