// Everything that containerd knows of its images, in a form that two containerds can be compared by.

import { randomUUID } from "node:crypto";
import { Channel } from "../../src/containerd/channel.ts";
import { snapshots } from "../../src/containerd/methods.ts";
import { snapshotter } from "../../src/containerd/snapshots.ts";
import type { PrivateContainerd } from "./containerd.ts";
import { fields, textOf } from "./cri.ts";
import { type Node, namesBelow, readTree } from "./tree.ts";

export interface State {
  readonly images: readonly string[];
  readonly content: readonly string[];
  readonly snapshots: readonly string[];
  readonly leases: readonly string[];
  readonly listed: readonly string[];
}

/** All of it, which takes a process for each snapshot; whoever looks at one part reads that alone. */
export function readState(containerd: PrivateContainerd): Omit<State, "listed"> {
  return {
    images: readImages(containerd),
    content: readContent(containerd),
    snapshots: readSnapshots(containerd),
    leases: readLeases(containerd),
  };
}

export function readImages(containerd: PrivateContainerd): string[] {
  return rowsOf(containerd, "images")
    .map((line) => line.replace(/\s+/g, " "))
    .sort();
}

export function readContent(containerd: PrivateContainerd): string[] {
  return rowsOf(containerd, "content")
    .map((line) => {
      const [digest = "", size = "", , ...rest] = line.split(/\t+/);
      return `${digest} ${size} ${(rest.at(-1) ?? "").split(",").sort().join(",")}`;
    })
    .sort();
}

export function readSnapshots(containerd: PrivateContainerd): string[] {
  return rowsOf(containerd, "snapshots")
    .filter((line) => !line.startsWith("compare-"))
    .map((line) => containerd.ctr("snapshots", "info", line.split(/\s+/)[0] ?? ""))
    .map((json) => JSON.stringify({ ...(JSON.parse(json) as object), Created: "", Updated: "" }))
    .sort();
}

export function readLeases(containerd: PrivateContainerd): string[] {
  return rowsOf(containerd, "leases");
}

function rowsOf(containerd: PrivateContainerd, what: string): string[] {
  const [, ...rows] = containerd.ctr(what, "ls").trim().split("\n");
  return rows.map((line) => line.trim()).filter(Boolean);
}

/** Answers of CRI that must not depend on who pulled. */
export async function readAnswers(
  containerd: PrivateContainerd,
  references: readonly string[],
): Promise<string[]> {
  const statuses: string[] = [];
  for (const reference of references) {
    const status = fields(await containerd.cri.imageStatus(reference));
    const image = status.get(1)?.[0];
    statuses.push(Buffer.from(image as Uint8Array).toString("hex"), textOf(status, 2));
  }
  const listed = fields(await containerd.cri.listImages()).get(1) ?? [];
  return [...statuses, ...listed.map((image) => Buffer.from(image as Uint8Array).toString("hex")).sort()];
}

/** The tree of each committed snapshot's own layer, by chainID. */
export async function readLayers(containerd: PrivateContainerd): Promise<Map<string, Map<string, Node>>> {
  const layers = new Map<string, Map<string, Node>>();
  const channel = new Channel({ address: containerd.address, namespace: "k8s.io" });
  const names = containerd
    .ctr("snapshots", "ls")
    .split("\n")
    .flatMap((line) => /^sha256:\S+/.exec(line)?.[0] ?? []);
  for (const parent of names) {
    // No lease holds the view, so that garbage collection removes it; the layer below stays where it is.
    const request = { snapshotter, key: `compare-${randomUUID()}`, parent, labels: {} };
    const { mounts } = await channel.call(snapshots.view, request);
    const [mount] = mounts;
    const lowers = mount?.options.find((option) => option.startsWith("lowerdir="))?.slice("lowerdir=".length);
    layers.set(parent, readTree(lowers?.split(":")[0] ?? mount?.source ?? ""));
  }
  channel.close();
  return layers;
}

/**
 * What Hawser has in its own folders beside containerd's: nothing but those of living instances, and those empty. What
 * broken-off pulls left to be gone on with is none of it; see parked().
 */
export function leftovers(containerd: PrivateContainerd): string[] {
  const folders = [
    `${containerd.snapshotterRoot}/io.hawser/staging`,
    `${containerd.root}/root/io.hawser/spool`,
  ];
  return folders.flatMap((folder) =>
    namesBelow(folder).filter((name) => /^[^/]*\/(?!parked(?:$|\/))/.test(name.slice(folder.length + 1))),
  );
}

/** Files of spools that broken-off pulls left. */
export function parked(containerd: PrivateContainerd): string[] {
  return namesBelow(`${containerd.root}/root/io.hawser/spool`).filter((name) =>
    /\/parked\/[0-9a-f]{64}$/.test(name),
  );
}

/** Keys of active snapshots that a pull made and did not remove. */
export function activeExtracts(containerd: PrivateContainerd): string[] {
  return containerd
    .ctr("snapshots", "ls")
    .split("\n")
    .filter((line) => line.startsWith("extract-"));
}
