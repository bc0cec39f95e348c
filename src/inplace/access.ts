// Whether the API lets us do all that an upgrade does, asked before anything is done, so that none stops half way for the
// want of a permission.

import { setMaxListeners } from "node:events";
import type { Cluster } from "../cluster/cluster.ts";
import { fieldsOf } from "../cluster/fields.ts";
import { PullError } from "../errors.ts";
import { Turns } from "./crowd.ts";
import type { Kind, Target } from "./inplace.ts";

interface Need {
  readonly group: string;
  readonly resource: string;
  readonly subresource?: string;
  readonly verbs: readonly string[];
  /** Of the workload itself alone: a role may name it. */
  readonly isOwn?: boolean;
}

const always: readonly Need[] = [
  { group: "", resource: "pods", verbs: ["get", "list", "watch", "patch"] },
  { group: "coordination.k8s.io", resource: "leases", verbs: ["create", "get", "patch", "delete"] },
];
/** What the pods of a CloneSet are put in and out of service by is OpenKruise. */
const ofStatus: Need = { group: "", resource: "pods", subresource: "status", verbs: ["patch"] };
const revisions: Need = { group: "apps", resource: "controllerrevisions", verbs: ["list"] };
const byKind: Readonly<Record<Kind, readonly Need[]>> = {
  pod: [ofStatus],
  statefulset: [
    ofStatus,
    revisions,
    { group: "apps", resource: "statefulsets", isOwn: true, verbs: ["get", "list", "watch", "patch"] },
  ],
  daemonset: [
    ofStatus,
    revisions,
    { group: "apps", resource: "daemonsets", isOwn: true, verbs: ["get", "list", "watch", "patch"] },
  ],
  cloneset: [
    { group: "apps.kruise.io", resource: "clonesets", isOwn: true, verbs: ["get", "list", "watch", "patch"] },
  ],
};

/** Throws `refused` with all that is missing. An API that does not say is taken to allow it. */
export async function mustBeAllowed(
  cluster: Cluster,
  { kind, namespace, name: workload }: Target,
  signal: AbortSignal,
): Promise<void> {
  const asked = [...always, ...byKind[kind]].flatMap(({ verbs, ...need }) =>
    verbs.map((verb) => ({ ...need, verb })),
  );
  const turns = new Turns();
  const own = AbortSignal.any([signal]);
  // Node takes more than ten listeners for a leak.
  setMaxListeners(0, own);
  const answers = await Promise.all(
    asked.map(async ({ group, resource, subresource, verb, isOwn }) => {
      const only = { ...(subresource && { subresource }), ...(isOwn && { name: workload }) };
      const attributes = { namespace, verb, group, resource, ...only };
      const name = subresource ? `${resource}/${subresource}` : resource;
      return (await turns.during(async () => await isAllowed(cluster, attributes, own)))
        ? []
        : [`${verb} ${name}`];
    }),
  );
  const missing = answers.flat();
  if (missing.length === 0) return;
  throw new PullError(
    "refused",
    `you may not do this in namespace ${namespace}: ${missing.join(", ")} ` +
      `(config/kubernetes/upgrade has a role that may)`,
  );
}

async function isAllowed(
  cluster: Cluster,
  resourceAttributes: object,
  signal: AbortSignal,
): Promise<boolean> {
  const apiVersion = "authorization.k8s.io/v1";
  const object = { apiVersion, kind: "SelfSubjectAccessReview", metadata: {}, spec: { resourceAttributes } };
  const path = `/apis/${apiVersion}/selfsubjectaccessreviews`;
  try {
    const answer = await cluster.write({ kind: "create", path, object }, signal);
    return fieldsOf(answer["status"])["allowed"] === true;
  } catch (error) {
    const { code } = PullError.from(error);
    if (code === "not_found" || code === "refused") return true;
    throw error;
  }
}
