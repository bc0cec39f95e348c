// A small file system of a test's own, which can be filled up, made read-only and taken away.

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmdirSync, statfsSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface VolumeOptions {
  readonly mebibytes: number;
  /** Most files and directories; unlimited without. */
  readonly inodes?: number;
}

export class Volume implements Disposable {
  readonly path: string;
  readonly #ballast: string;

  constructor({ mebibytes, inodes }: VolumeOptions) {
    this.path = mkdtempSync(join(tmpdir(), "volume-"));
    this.#ballast = join(this.path, "ballast");
    const options = `size=${mebibytes}m,mode=755${inodes === undefined ? "" : `,nr_inodes=${inodes}`}`;
    execFileSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", this.path]);
  }

  get freeBytes(): number {
    const { bavail, bsize } = statfsSync(this.path);
    return bavail * bsize;
  }

  get freeInodes(): number {
    return statfsSync(this.path).ffree;
  }

  /** Leaves so many bytes free, or fewer when somebody else writes at the same time. */
  fill(freeBytes: number): void {
    try {
      writeFileSync(this.#ballast, Buffer.alloc(this.freeBytes - freeBytes));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    }
  }

  async empty(): Promise<void> {
    await rm(this.#ballast, { force: true });
  }

  [Symbol.dispose](): void {
    execFileSync("umount", ["-l", this.path]);
    rmdirSync(this.path);
  }
}
