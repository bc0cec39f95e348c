// What a spool is on disk: its file, and the journal of it beside it under the same name.
//
// The journal is the claim and the file the bytes. Nothing here decides what becomes of either.

import { type Dirent, lstatSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { failpoint } from "../failpoint.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { type Range, Spool } from "../spool.ts";
import type { Journal, Keep, Recorded } from "./journal.ts";

/** A spool that nobody holds, with what is written in it. */
export interface Parked {
  readonly file: string;
  readonly sizeBytes: number;
  readonly written: readonly Range[];
  readonly bytes: number;
  readonly sinceMs: number;
}

/** A blob that a dead instance had found right and was about to put into the content store. */
export interface PendingAdoption {
  readonly descriptor: Descriptor;
  readonly file: string;
  readonly keep: Keep;
}

export const journalOf = (file: string): string => `${file}.journal`;

/** Opens the file of a spool, which is the former one's if there is one. When it throws the journal is closed. */
export async function openSpool(
  file: string,
  { size }: Descriptor,
  journal: Journal,
  former: Parked | undefined,
): Promise<Spool> {
  const wrote = (range: Range): void => {
    failpoint("range-written");
    journal.wrote(range);
  };
  try {
    if (former) {
      failpoint("unparking");
      await rename(former.file, file);
      await rm(journalOf(former.file), { force: true });
    }
    return await Spool.open(file, size, { ...(former && { written: former.written }), wrote });
  } catch (error) {
    await journal.close();
    throw error;
  }
}

export async function remove({ file }: { readonly file: string }): Promise<void> {
  await rm(file, { force: true });
  await rm(journalOf(file), { force: true });
}

export function isJournal(entry: Dirent): boolean {
  return entry.isFile() && entry.name.endsWith(journalOf(""));
}

/** Whether the file is what its journal says, as far as can be told without reading it. */
export function hasBytes(path: string, { written, sizeBytes }: Recorded): boolean {
  const status = lstatSync(path, { throwIfNoEntry: false });
  if (status === undefined || !status.isFile() || status.size > sizeBytes) return false;
  return written.every(({ end }) => end <= status.size);
}
