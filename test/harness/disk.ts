// A disk of a test's own: ext4 on a loop device, which can be stopped as a disk that hangs, and let go on.

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export class Disk implements Disposable {
  readonly path: string;
  readonly #image: string;

  constructor(mebibytes: number) {
    this.path = mkdtempSync(join(tmpdir(), "disk-"));
    this.#image = `${this.path}.img`;
    writeFileSync(this.#image, "");
    truncateSync(this.#image, mebibytes * 2 ** 20);
    execFileSync("mkfs.ext4", ["-q", this.#image]);
    execFileSync("mount", ["-o", "loop", this.#image, this.path]);
  }

  /** Whoever writes stands still for so long. */
  async stop(ms: number): Promise<void> {
    execFileSync("fsfreeze", ["--freeze", this.path]);
    try {
      await sleep(ms);
    } finally {
      execFileSync("fsfreeze", ["--unfreeze", this.path]);
    }
  }

  [Symbol.dispose](): void {
    execFileSync("umount", ["-l", this.path]);
    rmSync(this.path, { recursive: true });
    rmSync(this.#image);
  }
}
