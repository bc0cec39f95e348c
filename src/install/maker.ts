// Makes an installation's files, each written down in the record first, and takes them away again.
//
// What is there already and is not in the record was made by somebody else: it is neither replaced nor removed.

import { execFile } from "node:child_process";
import { cp, lstat, mkdir, rename, rm, rmdir, symlink } from "node:fs/promises";
import { dirname } from "node:path";
import { promisify } from "node:util";
import { PullError } from "../errors.ts";
import { type Made, type Record, writeWhole } from "./record.ts";

export class Maker {
  readonly #record: Record;

  constructor(record: Record) {
    this.#record = record;
  }

  /** Writes a file, or writes it anew if it is ours. */
  async file(path: string, text: string): Promise<void> {
    await this.#begin("file", path);
    await writeWhole(path, text, 0o644);
  }

  /** A file that somebody may have written before, and may change: true when it was not there. */
  async fileUnlessThere(path: string, text: string): Promise<boolean> {
    if (await isThere(path)) return false;
    await this.file(path, text);
    return true;
  }

  /** Has the link lead there from now on, in one step. */
  async link(path: string, target: string): Promise<void> {
    await this.#begin("link", path);
    await rm(`${path}.new`, { force: true });
    await symlink(target, `${path}.new`);
    await rename(`${path}.new`, path);
  }

  /** A copy, whole or not there; one that is there already stays if it is what it should be. */
  async tree(path: string, from: string, isRight: (path: string) => Promise<boolean>): Promise<void> {
    if (from === path) return;
    await this.#begin("tree", path);
    if ((await isThere(path)) && (await isRight(path))) return;
    const beside = `${path}.new`;
    await rm(beside, { recursive: true, force: true });
    await cp(from, beside, { recursive: true, verbatimSymlinks: true, preserveTimestamps: true });
    // What kubelet is turned to must be there after a power failure too.
    await syncFileSystem(beside);
    const former = `${path}.old`;
    await rm(former, { recursive: true, force: true });
    if (await isThere(path)) await rename(path, former);
    await rename(beside, path);
    await syncFileSystem(path);
    await rm(former, { recursive: true, force: true });
  }

  /** Takes away what is in the record and for which `isToGo`, the last made first. */
  async unmake(isToGo: (made: Made) => boolean = () => true): Promise<void> {
    for (const made of this.#record.now.made.filter(isToGo).toReversed()) {
      await remove(made);
      await this.#record.set({ made: this.#record.now.made.filter((one) => one.path !== made.path) });
    }
  }

  async #begin(kind: Made["kind"], path: string): Promise<void> {
    const isOurs = this.#record.now.made.some((made) => made.path === path);
    if (!isOurs && (await isThere(path))) {
      const todo = "move it away and try again";
      throw new PullError(
        "invalid",
        `${path} is there already and is not of an installation of Hawser: ${todo}`,
      );
    }
    await this.#folder(dirname(path));
    if (!isOurs) await this.#note({ kind, path });
  }

  /** With those above it that are missing. */
  async #folder(path: string): Promise<void> {
    if (await isThere(path)) return;
    await this.#folder(dirname(path));
    await this.#note({ kind: "folder", path });
    await mkdir(path, { mode: 0o755 });
  }

  async #note(made: Made): Promise<void> {
    await this.#record.set({ made: [...this.#record.now.made, made] });
  }
}

async function remove({ kind, path }: Made): Promise<void> {
  // Written down, and never made: on a read-only file system even that could not be removed.
  const names = [path, `${path}.new`, `${path}.old`];
  const isMade = await Promise.all(names.map(isThere));
  if (!isMade.includes(true)) return;
  if (kind === "folder") {
    await rmdir(path).catch((error: NodeJS.ErrnoException) => {
      // Somebody has put something of their own there.
      if (!["ENOENT", "ENOTEMPTY", "EEXIST"].includes(error.code ?? "")) throw error;
    });
    return;
  }
  for (const one of names) await rm(one, { recursive: kind === "tree", force: true });
}

/** syncfs(2) by coreutils, since the addon is of the release that is being laid down. */
async function syncFileSystem(path: string): Promise<void> {
  await promisify(execFile)("sync", ["--file-system", path]);
}

async function isThere(path: string): Promise<boolean> {
  return await lstat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return false;
      throw error;
    },
  );
}
