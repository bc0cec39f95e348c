// The node: which containerd it has, and what of the units has to be different for it.

import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { parse } from "smol-toml";
import { inspectContainerd } from "../containerd/client.ts";
import { rootsOf } from "../doctor/containerd.ts";
import { PullError } from "../errors.ts";
import type { Installation } from "./record.ts";

/** Stock, then k3s and RKE2, whose containerd is part of their own service. */
const usualSockets = ["/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"];
const usualRoot = "/var/lib/containerd";
const askMs = 10_000;

type Found = Installation["containerd"];

/** The containerd of a socket, or the one that there is; throws `unavailable` or `unsupported`. */
export async function findContainerd(named: string | undefined): Promise<Found> {
  const candidates = named === undefined ? usualSockets.filter((path) => existsSync(path)) : [named];
  if (candidates.length === 0) {
    const todo = "start it, or name its socket with --containerd SOCKET";
    throw new PullError("unavailable", `there is no containerd at ${usualSockets.join(" or ")}: ${todo}`);
  }
  if (candidates.length > 1) {
    const todo = "say with --containerd SOCKET which one kubelet uses";
    throw new PullError("invalid", `there are two containerds, at ${candidates.join(" and ")}: ${todo}`);
  }
  const [address = ""] = candidates;
  const { content, snapshots } = await askRoots(address);
  if (content === undefined || snapshots === undefined) {
    const what = content === undefined ? "a content store" : "the overlayfs snapshotter";
    throw new PullError("unsupported", `the containerd at ${address} has not got ${what} to work with`);
  }
  return { address, content, snapshots };
}

async function askRoots(address: string): Promise<ReturnType<typeof rootsOf>> {
  const options = { address, namespace: "k8s.io", snapshotter: undefined, configFile: "/dev/null" };
  try {
    return rootsOf(await inspectContainerd(options, AbortSignal.timeout(askMs)));
  } catch (error) {
    const why = existsSync(address) ? "does not answer" : "is not there";
    throw new PullError("unavailable", `containerd's socket ${address} ${why}`, { cause: error });
  }
}

/** What the service needs beside what the bundle's unit says; undefined for a usual node. */
export function dropInFor({ address, content, snapshots }: Found): string | undefined {
  const [usual = ""] = usualSockets;
  const roots = new Set([dirname(content), snapshots]);
  // Below one root they are one mount, and rename(2) works between them.
  if (snapshots.startsWith(`${dirname(content)}/`)) roots.delete(snapshots);
  if (address === usual && roots.size === 1 && roots.has(usualRoot)) return undefined;
  const lines = [
    "# Written by hawser install: this node's containerd is not where it usually is.",
    "",
    "[Service]",
  ];
  lines.push(`Environment=HAWSER_CONTAINERD=${address}`, "ReadWritePaths=");
  for (const root of roots) lines.push(`ReadWritePaths=${root}`);
  const isHidden = [...roots].some((root) => /^\/(?:home|root|run\/user)\//.test(root));
  if (isHidden) lines.push("ProtectHome=no");
  return `${lines.join("\n")}\n`;
}

const configHead = "# Hawser's configuration. Every key is optional: hawser config show lists them all.";

/** `given`, or settings for a node that has none yet, with what cannot be found out each time unless it is in there. */
export function configFor({ address, content }: Found, given: string = `${configHead}\n`): string {
  const [usual = ""] = usualSockets;
  const { containerd } = parse(given) as { readonly containerd?: Readonly<Record<string, unknown>> };
  if (address === usual || containerd?.["address"] !== undefined) return given;
  const lines = [`address = ${JSON.stringify(address)}`];
  // k3s and RKE2 keep it beside the root.
  const file = join(dirname(dirname(content)), "etc/containerd/config.toml");
  if (existsSync(file) && containerd?.["config_file"] === undefined)
    lines.push(`config_file = ${JSON.stringify(file)}`);
  const head = /^\s*\[\s*containerd\s*\].*$/m;
  if (head.test(given)) return given.replace(head, (line) => [line, ...lines].join("\n"));
  if (containerd !== undefined)
    throw new PullError("invalid", `the configuration needs containerd.address for this node: ${address}`);
  return `${[given.trimEnd(), "", "[containerd]", ...lines].join("\n")}\n`;
}
