// The face of the doctor room: looks at a node and says what is good, slow or broken there, and what to do about it.
//
// A check is one subject. It reads files below a root, asks sockets and registries, and yields what it finds as it goes.
// Checks are on their own: one that throws or runs out of time ends with `unknown` and the reason, and the others go
// on. This room changes nothing on the node: it writes no file, starts no pull, and calls only such methods of
// containerd as read. Credentials, users of proxies and values of headers never become part of a finding.

import type { Inspection } from "../containerd/containerd.ts";
import type { Reference } from "../oci/reference.ts";
import type { Credentials } from "../registry/registry.ts";
import type { KubeletSettings } from "./kubelet.ts";
import type { Processes } from "./processes.ts";
import type { Tree } from "./tree.ts";

/**
 * - `ok`: as it should be.
 * - `slow`: works, but something is lost: speed, or safety.
 * - `broken`: pulls fail, or Hawser cannot do what it is there for.
 * - `unknown`: could not be found out.
 */
export type State = "ok" | "slow" | "broken" | "unknown";

export interface Finding {
  readonly state: State;
  /** What was looked at, in a few words. */
  readonly what: string;
  /** What was found, in one line. */
  readonly finding: string;
  /** What to do about it, in one line. */
  readonly todo?: string;
}

export interface Report {
  readonly subject: string;
  readonly findings: readonly Finding[];
  /** The check ran out of time, and did not end when it was told to: it waits for something that cannot be given up. */
  readonly isStuck: boolean;
}

export interface Check {
  readonly subject: string;
  /** It is given up after this long. */
  readonly limitMs: number;
  readonly run: (context: Context, signal: AbortSignal) => AsyncIterable<Finding>;
}

/** A registry to be asked, named as in an image reference. */
export interface RegistryTarget {
  readonly host: string;
  /** What to ask it for; without, only its door is tried. */
  readonly reference: Reference | undefined;
  readonly credentials: Credentials | undefined;
}

export interface DoctorOptions {
  /** Version of this program. */
  readonly version: string;
  /** When this program was made; no clock can be right that is behind it. */
  readonly madeAt: Date;
  /** Below which the node's files are; `/` but in tests. */
  readonly root: string;
  readonly containerd: {
    readonly address: string;
    readonly namespace: string;
    readonly configFile: string;
    readonly snapshotter: string | undefined;
  };
  /** Hawser's CRI socket. */
  readonly socket: string;
  /** Where the daemon's metrics are; undefined when they are off. */
  readonly metrics: { readonly host: string; readonly port: number } | undefined;
  /** Hawser's configuration: its file, if there is one, and what is wrong with it. */
  readonly configuration: { readonly file: string | undefined; readonly problems: readonly string[] };
  readonly engine: "native" | "portable";
  /** Directories of certs.d; undefined for those of containerd. */
  readonly configPath: readonly string[] | undefined;
  /** Connections for one blob, and exceptions by host (host:port). */
  readonly streams: number;
  readonly hostStreams: ReadonlyMap<string, number>;
  readonly connectTimeoutMs: number;
  readonly registry: RegistryTarget | undefined;
  /** kubelet's configuration, when it is not looked for. */
  readonly kubeletConfig: string | undefined;
  /** This process's environment. */
  readonly environment: Readonly<Record<string, string | undefined>>;
}

/** What checks look at. Answers are shared by all of them: containerd is asked once. */
export interface Context {
  readonly options: DoctorOptions;
  readonly tree: Tree;
  readonly processes: Processes;
  /** What containerd says of itself; rejects when it does not answer. */
  readonly inspection: () => Promise<Inspection>;
  readonly kubelet: () => Promise<KubeletSettings>;
  /** The output of a command that only tells something; rejects when it cannot be run or fails. */
  readonly ask: (command: string, args: readonly string[]) => Promise<string>;
}
