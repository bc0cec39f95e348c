// The face of the inplace room: images of a workload's pods are exchanged in the pods that there are.
//
// Kubelet restarts a container whose image changes in its pod's spec, and leaves everything else of the pod as it is. Here
// the images are on the pods' nodes first, the pods are taken out of service one after another and put back, and the
// workload's template is brought in line at last; or OpenKruise is told to do it. What an upgrade is at stands on the pods
// (an annotation) and nowhere else, so that whoever comes next can go on or go back. Only one goes on at a time.
//
// Nothing here ever deletes a pod, or has more of them out of service than is allowed.

import type { Cluster } from "../cluster/cluster.ts";
import type { PullError } from "../errors.ts";
import type { Images } from "./pod.ts";

export type Kind = "cloneset" | "statefulset" | "daemonset" | "pod";

export interface Target {
  readonly kind: Kind;
  readonly name: string;
  readonly namespace: string;
}

/** Of the pods, or of a hundred of them. */
export type Share = { readonly count: number } | { readonly percent: number };

export interface UpgradeRequest extends Target {
  /** By container, as the pods' spec is to have them. */
  readonly images: Images;
  /** One, unless it is said; for a CloneSet what that has. */
  readonly maxUnavailable: Share | undefined;
  /** Between a pod's being out of service and its container's end: 10 s; for a CloneSet what that has. */
  readonly graceMs: number | undefined;
  /** Without any progress of a step. */
  readonly timeoutMs: number;
  /** The images are on the nodes before any pod is touched. */
  readonly isPrewarmed: boolean;
  /** Pods that are out of service from the first are not touched, and still count; of no meaning for a CloneSet. */
  readonly skipsUnready?: boolean;
}

/** Times that only tests have otherwise. */
export interface Pace {
  /** How long the API may be away before that is a failure. */
  readonly awayMs: number;
  /** Within so long a node's daemon says that it has heard what its pod wants. */
  readonly answerMs: number;
  /** Who does not renew a lock for so long has it no more. */
  readonly lockMs: number;
  /** Within so long kubelet tells of what it has seen, and a pod that is out of service for as long is taken for broken. */
  readonly settleMs: number;
}

export const usualPace: Pace = { awayMs: 60_000, answerMs: 60_000, lockMs: 20_000, settleMs: 5_000 };

export interface PlannedPod {
  readonly name: string;
  readonly node: string | undefined;
  readonly isReady: boolean;
  /** What it has, of the containers that are to have another image. */
  readonly from: Images;
  /** An earlier upgrade has begun with it. */
  readonly isBegun: boolean;
}

export interface Plan {
  readonly request: UpgradeRequest;
  /** In the order in which they are gone about; those that have the images already are left out. */
  readonly pods: readonly PlannedPod[];
  readonly podsInAll: number;
  /** For a CloneSet undefined where its own is kept. */
  readonly maxUnavailable: number | undefined;
  readonly graceMs: number | undefined;
  /** What is changed of the workload itself, in a line each. */
  readonly changes: readonly string[];
}

export type PodStep =
  | "waits"
  | "fetching"
  | "warm"
  | "leaving service"
  | "restarting"
  | "entering service"
  | "done"
  | "rolling back"
  | "rolled back"
  | "left";

/** Told as it happens. */
export type UpgradeEvent =
  | {
      readonly event: "pod";
      readonly pod: string;
      readonly node?: string | undefined;
      readonly step: PodStep;
      readonly detail?: string | undefined;
    }
  | { readonly event: "note"; readonly text: string }
  | { readonly event: "failure"; readonly pod?: string | undefined; readonly error: string };

export type Outcome =
  | { readonly kind: "upgraded"; readonly pods: number }
  /** All is as it was before. */
  | { readonly kind: "rolled back"; readonly failure: PullError; readonly pods: number }
  /** Something is not, and why. */
  | { readonly kind: "left"; readonly failure: PullError; readonly left: readonly string[] };

export interface UpgradeOptions {
  readonly cluster: Cluster;
  /** Who upgrades, for others to read. */
  readonly holder: string;
  readonly told: (event: UpgradeEvent) => void;
  readonly pace?: Pace;
}
