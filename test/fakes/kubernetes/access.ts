// Who asks, and what they may: rules as a Role has them, and what a node is held to.

import { Refusal } from "./refusal.ts";
import type { Target } from "./target.ts";

export interface Rule {
  readonly apiGroups: readonly string[];
  /** "pods", "pods/status", "*". */
  readonly resources: readonly string[];
  readonly verbs: readonly string[];
  readonly resourceNames?: readonly string[];
  /** As if it were of Roles in these namespaces; of all of them without. */
  readonly namespaces?: readonly string[];
}

export interface IdentityOptions {
  readonly name: string;
  /** Then it is this node's, whatever its name. */
  readonly nodeName?: string;
  /** Of the kubeconfig's context. */
  readonly namespace?: string;
  /** Without any, everything is allowed. */
  readonly rules?: readonly Rule[];
}

export interface Identity {
  readonly username: string;
  readonly nodeName: string | undefined;
  readonly rules: readonly Rule[] | undefined;
}

type Asked = Pick<Target, "group" | "resource" | "namespace" | "name" | "subresource">;

/** What nodes have beside reading: the status of pods, and the rest of what a kubelet does. */
const nodeRules: readonly Rule[] = [
  { apiGroups: ["*"], resources: ["*"], verbs: ["get", "list", "watch"] },
  { apiGroups: [""], resources: ["pods/status", "nodes", "nodes/status"], verbs: ["patch", "update"] },
  { apiGroups: [""], resources: ["events"], verbs: ["create", "patch", "update"] },
  {
    apiGroups: ["coordination.k8s.io"],
    resources: ["leases"],
    verbs: ["create", "patch", "update", "delete"],
    namespaces: ["kube-node-lease"],
  },
];

export function identityOf({ name, nodeName, rules }: IdentityOptions): Identity {
  const username = nodeName === undefined ? name : `system:node:${nodeName}`;
  return { username, nodeName, rules: rules ?? (nodeName === undefined ? undefined : nodeRules) };
}

function isAllowed({ rules }: Identity, verb: string, asked: Asked): boolean {
  if (rules === undefined) return true;
  const { group, namespace, name } = asked;
  const full = asked.subresource === "" ? asked.resource : `${asked.resource}/${asked.subresource}`;
  const has = (list: readonly string[], value: string): boolean => list.includes("*") || list.includes(value);
  return rules.some(
    (rule) =>
      has(rule.apiGroups, group) &&
      has(rule.resources, full) &&
      has(rule.verbs, verb) &&
      (rule.resourceNames === undefined || rule.resourceNames.includes(name)) &&
      (rule.namespaces === undefined || rule.namespaces.includes(namespace)),
  );
}

export function mustBeAllowed(identity: Identity, verb: string, target: Target): void {
  if (isAllowed(identity, verb, target)) return;
  const { resource, subresource, group, namespace } = target;
  const full = subresource === "" ? resource : `${resource}/${subresource}`;
  const where = namespace === "" ? "at the cluster scope" : `in the namespace "${namespace}"`;
  const user = `User "${identity.username}"`;
  throw Refusal.forbidden(
    target,
    `${user} cannot ${verb} resource "${full}" in API group "${group}" ${where}`,
  );
}

/** The status of a SelfSubjectAccessReview. */
export function reviewed(identity: Identity, review: unknown): { allowed: boolean } {
  const { spec } = Object(review) as { spec?: { resourceAttributes?: Record<string, string> } };
  const {
    verb = "",
    group = "",
    resource = "",
    subresource = "",
    name = "",
    namespace = "",
  } = spec?.resourceAttributes ?? {};
  return { allowed: isAllowed(identity, verb, { group, resource, subresource, name, namespace }) };
}
