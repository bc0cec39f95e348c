// The agent: one pod a node that has Hawser as a service of that node for as long as its DaemonSet is there.
//
// It installs or upgrades the node's service, relays what that measures, and when the DaemonSet is deleted gives kubelet
// back to containerd and takes everything away. No image is ever pulled through it: kubelet has to be able to start
// before any pod does.

import { setTimeout as sleep } from "node:timers/promises";
import { PullError } from "../errors.ts";
import { expose } from "../exposition.ts";
import type { Status } from "../front/admin.ts";
import { askAdmin, readAdmin } from "../front/client.ts";
import { places } from "../install/places.ts";
import type { Cluster, DaemonSetName, Presence } from "./cluster.ts";
import { copyFileToNode, copyToNode, mustSeeNode, onNode, removeFromNode, runOnNode } from "./node.ts";

export interface AgentOptions {
  /** Root of the bundle that is running; undefined when it is none. */
  readonly bundle: string | undefined;
  /** Options of "hawser install", and of "hawser uninstall" in the end. */
  readonly installing: readonly string[];
  readonly removing: readonly string[];
  /** A configuration for the node, a file of this container's. */
  readonly config: string | undefined;
  /** Whom this process is a pod of, and whom to ask for it; without it, nothing is ever taken away. */
  readonly owner: { readonly cluster: Cluster; readonly daemonSet: DaemonSetName } | undefined;
  readonly listen: { readonly host: string; readonly port: number } | undefined;
  /** Of the daemon, as the node's configuration names it; undefined when it has none. */
  readonly adminSocket: () => Promise<string | undefined>;
  readonly say: (line: string) => void;
  readonly warn: (line: string) => void;
  /** Aborted when the pod is to end. */
  readonly signal: AbortSignal;
}

/** Beside the places of an installation, on the same file system, for as long as it takes. */
const incoming = "/opt/hawser.incoming";
/** While the API does not answer, within what a pod is given to end. */
const askAgainMs = [1_000, 2_000, 4_000] as const;

/** Resolves once the pod may end; rejects when the node could not be had as it should be. */
export async function runAgent(options: AgentOptions): Promise<void> {
  const { listen, say, signal } = options;
  await mustSeeNode();
  const owner = await findOwner(options);
  await install(options);
  const exposition = listen && (await expose(relayOf(options), listen.host, listen.port));
  if (exposition) say(`the node's metrics are on ${listen.host}:${exposition.port}`);
  await untilAborted(signal);
  await exposition?.close();
  if (await isTakenOut(options, owner)) await remove(options);
  else say("the node's service stays");
}

async function install({ bundle, installing, config, say }: AgentOptions): Promise<void> {
  if (bundle === undefined)
    throw new PullError(
      "invalid",
      "this is no release of Hawser, and no image of one: there is nothing to install",
    );
  try {
    await copyToNode(bundle, incoming);
    const given = config === undefined ? [] : ["--config", `${incoming}/hawser.toml`];
    if (config !== undefined) await copyFileToNode(config, `${incoming}/hawser.toml`);
    const command = [`${incoming}/bin/hawser`, "install", "--upgrade", ...given, ...installing];
    for (const line of await runOnNode(command)) say(line);
  } finally {
    await removeFromNode(incoming);
  }
}

async function remove({ removing, say }: AgentOptions): Promise<void> {
  say("the DaemonSet is gone: kubelet is given back to containerd, and everything is taken away");
  for (const line of await runOnNode([places.command, "uninstall", ...removing])) say(line);
}

/** What was there when this pod began; undefined when it cannot be known, and so cannot be missed. */
async function findOwner({ owner, warn }: AgentOptions): Promise<Presence | undefined> {
  if (owner === undefined) return undefined;
  try {
    const presence = await owner.cluster.find(owner.daemonSet);
    if (presence.kind !== "refused") return presence;
    warn(
      "this account may not get the DaemonSet, so its end will not be noticed: see the Role in the manifests",
    );
  } catch (error) {
    warn(`${PullError.from(error).message}; it is asked again when this pod ends`);
  }
  return undefined;
}

/** When in doubt, the service stays: it harms nobody, and can be removed by hand. */
async function isTakenOut(options: AgentOptions, before: Presence | undefined): Promise<boolean> {
  const { owner, warn } = options;
  if (owner === undefined) return false;
  for (const pauseMs of [...askAgainMs, undefined]) {
    try {
      const { kind } = await owner.cluster.find(owner.daemonSet);
      // An account that could ask and no longer can was deleted together with the DaemonSet. One that was made anew
      // under the same name has pods of its own, which find the service as it is.
      return kind === "gone" || (kind === "refused" && before?.kind === "there");
    } catch (error) {
      if (pauseMs === undefined) warn(`${PullError.from(error).message}; when in doubt the service stays`);
      else await sleep(pauseMs);
    }
  }
  return false;
}

function relayOf({ adminSocket }: AgentOptions) {
  const socket = async (): Promise<string> => {
    const path = await adminSocket();
    if (path !== undefined) return onNode(path);
    throw new PullError("unavailable", "admin.listen is off on this node");
  };
  return {
    read: async () => await readAdmin(await socket(), "/metrics"),
    health: async () => {
      try {
        const status = (await askAdmin(await socket(), "GET", "/status")) as Status;
        return status.accelerating || status.switch.kind === "on" ? undefined : status.detail;
      } catch (error) {
        return PullError.from(error).message;
      }
    },
  };
}

async function untilAborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
