// What a killed daemon left on disk, as its journals tell it.

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { parseJournal } from "../../src/pull/journal.ts";
import type { Asked } from "../fakes/registry.ts";
import type { PrivateContainerd } from "./containerd.ts";
import { namesBelow } from "./tree.ts";

export interface Left {
  readonly journal: string;
  /** The spool's file. */
  readonly file: string;
  readonly digest: string;
  readonly written: readonly { readonly start: number; readonly end: number }[];
  readonly isKept: boolean;
}

export function journals(containerd: PrivateContainerd): string[] {
  return namesBelow(`${containerd.root}/root/io.hawser/spool`).filter((name) => name.endsWith(".journal"));
}

/** Every journal that a new daemon of this boot would believe. */
export function readLeft(containerd: PrivateContainerd): Left[] {
  return journals(containerd).flatMap((journal) => {
    const text = readFileSync(journal, "utf8");
    const boot = /"boot":"([^"]+)"/.exec(text)?.[1] ?? "";
    const recorded = parseJournal(text, boot);
    const file = journal.slice(0, -".journal".length);
    if (!recorded) throw new Error(`${basename(journal)} cannot be read: ${text}`);
    return [
      {
        journal,
        file,
        digest: recorded.digest,
        written: recorded.written,
        isKept: recorded.keep !== undefined,
      },
    ];
  });
}

/** Bytes of a blob that these requests asked for. */
export function bytesAsked(
  asked: readonly Asked[],
  digest: string,
  sizeBytes: number,
): { start: number; end: number }[] {
  return asked
    .filter(({ method, path }) => method === "GET" && path.endsWith(`/blobs/${digest}`))
    .map(({ range }) => {
      const match = /^bytes=(\d+)-(\d+)$/.exec(range ?? "");
      return match ? { start: Number(match[1]), end: Number(match[2]) + 1 } : { start: 0, end: sizeBytes };
    });
}

/** Bytes that are in a range of both. */
export function overlapBytes(
  some: readonly { start: number; end: number }[],
  others: readonly { start: number; end: number }[],
): number {
  return some
    .flatMap((one) => others.map((two) => Math.min(one.end, two.end) - Math.max(one.start, two.start)))
    .reduce((sum, bytes) => sum + Math.max(0, bytes), 0);
}
