// Who this node is to its cluster: kubelet's kubeconfig, where the usual installers put it, and the node's name.

import { access } from "node:fs/promises";
import { hostname } from "node:os";
import { PullError } from "../errors.ts";
import type { Cluster } from "./cluster.ts";

/** kubeadm and most others; the clouds; k3s, RKE2, Bottlerocket, k0s, MicroK8s. */
const usualPlaces = [
  "/etc/kubernetes/kubelet.conf",
  "/var/lib/kubelet/kubeconfig",
  "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
  "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
  "/etc/kubernetes/kubelet/kubeconfig",
  "/var/lib/k0s/kubelet.conf",
  "/var/snap/microk8s/current/credentials/kubelet.config",
] as const;

/** The first of the usual places that has one; throws `invalid` with what to do. */
export async function findKubeconfig(places: readonly string[] = usualPlaces): Promise<string> {
  for (const place of places) {
    const isThere = await access(place).then(
      () => true,
      () => false,
    );
    if (isThere) return place;
  }
  throw new PullError(
    "invalid",
    `kubelet's kubeconfig is in none of the usual places: set prewarm.kubeconfig`,
  );
}

const nodePrefix = "system:node:";

/**
 * The API is asked who is asking, which everybody may; a node is "system:node:NAME" to it. Where that is not to be had, the
 * name is the host's, as kubelet has it without being told otherwise. Throws `unavailable` while the API is away.
 */
export async function nodeNameOf(cluster: Cluster, signal: AbortSignal): Promise<string> {
  const path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
  const review = { apiVersion: "authentication.k8s.io/v1", kind: "SelfSubjectReview", metadata: {} };
  try {
    const { status } = (await cluster.write({ kind: "create", path, object: review }, signal)) as {
      status?: { userInfo?: { username?: unknown } };
    };
    const name = status?.userInfo?.username;
    if (typeof name === "string" && name.startsWith(nodePrefix)) return name.slice(nodePrefix.length);
  } catch (error) {
    // An API that is too old for that question, or an account that may not ask.
    const { code } = PullError.from(error);
    if (code !== "not_found" && code !== "refused") throw error;
  }
  return hostname().toLowerCase();
}
