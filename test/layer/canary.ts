// A root with neighbours that nothing may touch: whatever an archive says, they are afterwards what they were before.

import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export class Canary implements Disposable {
  readonly folder: string;
  /** Holds a file, a folder and links; corpus entries aim at it by its absolute path. */
  readonly outside: string;
  readonly #before: readonly string[];
  #count = 0;

  constructor() {
    this.folder = mkdtempSync(join(tmpdir(), "canary-"));
    this.outside = join(this.folder, "outside");
    mkdirSync(join(this.outside, "folder"), { recursive: true });
    writeFileSync(join(this.outside, "file"), "untouched");
    chmodSync(join(this.outside, "file"), 0o640);
    writeFileSync(join(this.outside, "folder/file"), "untouched");
    symlinkSync("file", join(this.outside, "link"));
    // Neighbours whose names begin as a root's does.
    for (const name of ["root", "roots", "root-"]) mkdirSync(join(this.folder, name));
    mkdirSync(join(this.folder, "inner"));
    this.#before = this.#read();
  }

  /** A new empty root among the neighbours. */
  root(): string {
    this.#count += 1;
    const root = join(this.folder, "inner", `root-${this.#count}`);
    mkdirSync(root, { mode: 0o755 });
    return root;
  }

  /** What is not as it was. */
  changes(): string[] {
    const now = this.#read();
    return [
      ...now.filter((line) => !this.#before.includes(line)),
      ...this.#before.filter((line) => !now.includes(line)),
    ];
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true });
  }

  /** A line for each path. A change of anything, extended attributes included, changes its ctime. */
  #read(): string[] {
    const around = readdirSync(this.folder).filter((name) => name !== "inner");
    const below = readdirSync(this.outside, { recursive: true, encoding: "utf8" });
    return [...around, ...below.map((name) => join("outside", name))].map((path) => {
      const { ino, mode, uid, gid, size, nlink, mtimeNs, ctimeNs } = lstatSync(join(this.folder, path), {
        bigint: true,
      });
      return [path, ino, mode, uid, gid, size, nlink, mtimeNs, ctimeNs].join(" ");
    });
  }
}
