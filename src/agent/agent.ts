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
import type { Cluster, DaemonSetName } from "./cluster.ts";
import { followImages, forgetImages } from "./images.ts";
import {
  copyFileToNode,
  copyToNode,
  isOnNode,
  mustSeeNode,
  onNode,
  removeFromNode,
  runOnNode,
  untilIdle,
} from "./node.ts";

export interface AgentOptions {
  /** Root of the bundle that is running; undefined when it is none. */
  readonly bundle: string | undefined;
  /** Options of "hawser install", and of "hawser uninstall" in the end. */
  readonly installing: readonly string[];
  readonly removing: readonly string[];
  /** A configuration for the node, a file of this container's. */
  readonly config: string | undefined;
  /** A folder of this container's whose files name images for the node. */
  readonly images: string | undefined;
  /** Whom this process is a pod of, and whom to ask for it; without it, nothing is ever taken away. */
  readonly owner: { readonly cluster: Cluster; readonly daemonSet: DaemonSetName } | undefined;
  readonly listen: { readonly host: string; readonly port: number } | undefined;
  /** Of the daemon, as the node's configuration names it; undefined when it has none. */
  readonly adminSocket: () => Promise<string | undefined>;
  readonly say: (line: string) => void;
  readonly warn: (line: string) => void;
  /** Aborted when the pod is to end. A change that is under way then goes on to its end first. */
  readonly signal: AbortSignal;
}

/** While the API does not answer, within what a pod is given to end. */
const askAgainMs = [1_000, 2_000, 4_000] as const;
/** A change that failed is tried again after this long, doubling up to the maximum. */
const againMs = { first: 10_000, max: 300_000 } as const;

/** Resolves once the pod may end; rejects where there is no node to speak of, or nothing to install on it. */
export async function runAgent(options: AgentOptions): Promise<void> {
  const { bundle, listen, say } = options;
  await mustSeeNode();
  if (bundle === undefined)
    throw new PullError(
      "invalid",
      "this is no release of Hawser, and no image of one: there is nothing to install",
    );
  const owner = await findOwner(options);
  const state: State = { problem: "not installed yet" };
  const exposition = listen && (await expose(relayOf(options, state), listen.host, listen.port));
  if (exposition) say(`the node's metrics are on ${listen.host}:${exposition.port}`);
  await installUntilDone(bundle, options, state);
  await followUntilAborted(options);
  await exposition?.close();
  // Also where it could not be installed: an earlier version may serve, and kubelet ask it.
  if (await isTakenOut(options, owner)) await remove(options);
  else say("the node's service stays");
}

async function followUntilAborted({ images, warn, signal }: AgentOptions): Promise<void> {
  await using _following = images === undefined ? undefined : followImages(images, warn);
  await untilAborted(signal);
}

/** What the pod is at. */
interface State {
  /** Why the node is not as it should be; undefined once it was brought there. */
  problem: string | undefined;
}

/** A pod that ended with each failure would not be there to take anything away. */
async function installUntilDone(bundle: string, options: AgentOptions, state: State): Promise<void> {
  const { signal, warn } = options;
  for (let waitMs: number = againMs.first; !signal.aborted; waitMs = Math.min(2 * waitMs, againMs.max)) {
    try {
      await install(bundle, options);
      state.problem = undefined;
      return;
    } catch (error) {
      state.problem = PullError.from(error).message;
      warn(`${state.problem} (tried again in ${waitMs / 1000} s)`);
    }
    await sleep(waitMs, undefined, { signal }).catch(() => {});
  }
}

async function install(bundle: string, { installing, config, say }: AgentOptions): Promise<void> {
  const { incoming } = places;
  await untilIdle();
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
  await untilIdle();
  await forgetImages();
  if (!(await isOnNode(places.record))) return;
  for (const line of await runOnNode([places.command, "uninstall", ...removing])) say(line);
}

/** Whether the DaemonSet was found when this pod began; what was not cannot be missed. */
async function findOwner({ owner, warn }: AgentOptions): Promise<boolean> {
  if (owner === undefined) return false;
  const { namespace, name } = owner.daemonSet;
  const why = "so its end will not be noticed: see the Role in the manifests, and --daemonset";
  for (const pauseMs of [...askAgainMs, undefined]) {
    try {
      const { kind } = await owner.cluster.find(owner.daemonSet);
      if (kind === "there") return true;
      warn(
        kind === "gone"
          ? `there is no DaemonSet ${namespace}/${name}, ${why}`
          : `this account may not get the DaemonSet ${namespace}/${name}, ${why}`,
      );
      return false;
    } catch (error) {
      if (pauseMs === undefined) warn(`${PullError.from(error).message}, ${why}`);
      else await sleep(pauseMs);
    }
  }
  return false;
}

/** When in doubt, the service stays: it harms nobody, and can be removed by hand. */
async function isTakenOut({ owner, warn }: AgentOptions, wasThere: boolean): Promise<boolean> {
  if (owner === undefined || !wasThere) return false;
  for (const pauseMs of [...askAgainMs, undefined]) {
    try {
      const { kind } = await owner.cluster.find(owner.daemonSet);
      // An account that could ask and no longer can was deleted together with the DaemonSet. One that was made anew
      // under the same name has pods of its own, which find the service as it is.
      return kind !== "there";
    } catch (error) {
      if (pauseMs === undefined) warn(`${PullError.from(error).message}; when in doubt the service stays`);
      else await sleep(pauseMs);
    }
  }
  return false;
}

function relayOf({ adminSocket }: AgentOptions, state: State) {
  const socket = async (): Promise<string> => {
    const path = await adminSocket();
    if (path !== undefined) return onNode(path);
    throw new PullError("unavailable", "admin.listen is off on this node");
  };
  return {
    read: async () => await readAdmin(await socket(), "/metrics"),
    health: async () => {
      if (state.problem !== undefined) return state.problem;
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
