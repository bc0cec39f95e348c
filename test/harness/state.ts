// Everything that containerd knows of its images, in a form that two containerds can be compared by.

import { randomUUID } from "node:crypto";
import { Channel } from "../../src/containerd/channel.ts";
import { snapshots } from "../../src/containerd/methods.ts";
import { snapshotter } from "../../src/containerd/snapshots.ts";
import type { PrivateContainerd } from "./containerd.ts";
import { type Fields, fields, message, textOf } from "./cri.ts";
import { type Node, namesBelow, readTree } from "./tree.ts";

export interface State {
  readonly images: readonly string[];
  readonly content: readonly string[];
  readonly snapshots: readonly string[];
  readonly leases: readonly string[];
  readonly listed: readonly string[];
}

export async function readState(containerd: PrivateContainerd): Promise<Omit<State, "listed">> {
  const [images, content, snapshotsOf, leases] = await Promise.all([
    readImages(containerd),
    readContent(containerd),
    readSnapshots(containerd),
    readLeases(containerd),
  ]);
  return { images, content, snapshots: snapshotsOf, leases };
}

/** Name, target and labels of each record. */
export async function readImages({ cri }: PrivateContainerd): Promise<string[]> {
  const [answer] = await cri.containerd("images.v1.Images/List");
  return messagesIn(answer, 1)
    .map((image) => {
      const target = fields(bytesIn(image, 3));
      const size = Number(target.get(3)?.[0] ?? 0n);
      const described = [textOf(target, 1), textOf(target, 2), size, mapIn(target, 5)].join(" ");
      return `${textOf(image, 1)} ${described} ${mapIn(image, 2)}`;
    })
    .sort();
}

/** Digest, size and labels of each blob. */
export async function readContent({ cri }: PrivateContainerd): Promise<string[]> {
  const answers = await cri.containerd("content.v1.Content/List");
  return answers
    .flatMap((answer) => messagesIn(answer, 1))
    .map((info) => `${textOf(info, 1)} ${Number(info.get(2)?.[0] ?? 0n)} ${mapIn(info, 5)}`)
    .sort();
}

const kinds = ["Unknown", "View", "Active", "Committed"];

/** Kind, name, parent and labels of each snapshot but for the views that were made to compare. */
export async function readSnapshots({ cri }: PrivateContainerd): Promise<string[]> {
  const answers = await cri.containerd("snapshots.v1.Snapshots/List", message([1, snapshotter]));
  return answers
    .flatMap((answer) => messagesIn(answer, 1))
    .filter((info) => !textOf(info, 1).startsWith("compare-"))
    .map((info) => {
      const kind = kinds[Number(info.get(3)?.[0] ?? 0n)];
      return `${kind} ${JSON.stringify([textOf(info, 1), textOf(info, 2)])} ${mapIn(info, 10)}`;
    })
    .sort();
}

/** Id and labels of each lease. */
export async function readLeases({ cri }: PrivateContainerd): Promise<string[]> {
  const [answer] = await cri.containerd("leases.v1.Leases/List");
  return messagesIn(answer, 1).map((lease) => `${textOf(lease, 1)} ${mapIn(lease, 3)}`);
}

/** Names of committed snapshots. */
async function committed(containerd: PrivateContainerd): Promise<string[]> {
  const all = await readSnapshots(containerd);
  return all.flatMap((line) => /^Committed \["([^"]+)"/.exec(line)?.[1] ?? []);
}

function messagesIn(bytes: Uint8Array | undefined, field: number): Fields[] {
  const found = fields(bytes ?? new Uint8Array()).get(field) ?? [];
  return found.map((value) => fields(value as Uint8Array));
}

function bytesIn(found: Fields, field: number): Uint8Array {
  return (found.get(field)?.[0] as Uint8Array | undefined) ?? new Uint8Array();
}

/** A map, whose entries come in any order. */
function mapIn(found: Fields, field: number): string {
  const entries = (found.get(field) ?? []).map((value) => fields(value as Uint8Array));
  return entries
    .map((entry) => `${textOf(entry, 1)}=${textOf(entry, 2)}`)
    .sort()
    .join(",");
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
  for (const parent of await committed(containerd)) {
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
    /\/parked\/[0-9a-f]{64}-\d+$/.test(name),
  );
}

/** Keys of active snapshots that a pull made and did not remove. */
export async function activeExtracts(containerd: PrivateContainerd): Promise<string[]> {
  const all = await readSnapshots(containerd);
  return all.filter((line) => line.startsWith('Active ["extract-'));
}
