// SELinux: folders of ours are labelled like the folders of containerd's that their content moves into.
//
// The kernel labels what is made after its folder, unless the policy has another rule for the process that makes it, and
// a rename or a link keeps the label. So a label on one folder of ours is a label on every tree that is ever unpacked
// below it, and no file is labelled by itself. Whether it is like that here is found out: one of each kind of file is
// made in the folder and its label read back. Nothing here labels what is not ours, and where SELinux is off nothing is
// done at all.

import { existsSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import { getSystemErrorName } from "node:util";
import { PullError } from "./errors.ts";
import { type Binding, loadNative } from "./native.ts";

/** The system calls behind labels. What may fail is a negative errno then, as in the addon. */
export interface LabelCalls {
  /** Whether the kernel labels files. */
  isOn(): boolean;
  /** The label of something in a folder, or for an empty name of the folder itself; links are not followed. */
  get(folder: string, name: string): string | number;
  /** Labels a folder. */
  set(folder: string, label: string): number;
}

/** Longest label that is read; the kernel's own limit is a page. */
const labelBytesMax = 4096;
const key = "security.selinux";
const directoryMode = 0o700;
const whiteout = { mode: 0o020000, major: 0, minor: 0 };

export class Selinux {
  readonly #calls: LabelCalls;

  constructor(calls: LabelCalls = kernelCalls()) {
    this.#calls = calls;
  }

  /**
   * Gives a folder of ours the label of one of containerd's, and proves that it passes to what is made inside. Throws
   * `unsupported` with the reason and what can be done about it.
   */
  adopt(ours: string, theirs: string): void {
    if (!this.#calls.isOn()) return;
    const label = this.#read(theirs);
    if (this.#read(ours) !== label) {
      const result = this.#calls.set(ours, label);
      if (result < 0) throw refused(`${ours} cannot be labelled ${label} (${nameOf(result)})`, ours, theirs);
      const actual = this.#read(ours);
      if (actual !== label) throw refused(`${ours} was labelled ${label} and shows ${actual}`, ours, theirs);
    }
    this.#tryOut(ours, theirs, label);
  }

  /** Throws `unsupported` unless a folder of ours has the same label as one of containerd's. */
  mustBeEqual(ours: string, theirs: string): void {
    if (!this.#calls.isOn()) return;
    const [own, expected] = [this.#read(ours), this.#read(theirs)];
    if (own !== expected)
      throw unsupported(`${ours} is labelled ${own}, and ${theirs} of containerd's ${expected}`);
  }

  #read(folder: string, name = ""): string {
    const label = this.#calls.get(folder, name);
    if (typeof label === "string") return label;
    throw unsupported(
      `the label of ${name === "" ? folder : `${folder}/${name}`} cannot be read (${nameOf(label)})`,
    );
  }

  /** Rules of a policy speak of kinds of files, so each kind that a layer can have is tried. */
  #tryOut(ours: string, theirs: string, label: string): void {
    using trial = new Trial(ours);
    for (const name of trial.names) {
      const actual = this.#read(trial.path, name);
      if (actual === label) continue;
      throw unsupported(
        `what Hawser makes in ${ours} is labelled ${actual} instead of ${label} as in ${theirs}: ` +
          "the policy has to let Hawser's process make files as containerd's does",
      );
    }
  }
}

/** A directory in one of our folders, with one of each kind of file in it. */
class Trial implements Disposable {
  readonly path: string;
  /** An empty one is the directory itself. */
  readonly names = ["", "directory", "file", "link", "whiteout"];
  readonly #native = addon();
  readonly #folder: number;

  constructor(folder: string) {
    const native = this.#native;
    this.path = `${folder}/label-trial`;
    this.#folder = native.openRoot(bytesOf(folder));
    must(this.#folder, `opening ${folder}`);
    // A trial that was killed may have left its directory.
    native.removeTree(this.#folder, "label-trial");
    try {
      must(native.makeDirectory(this.#folder, "label-trial", directoryMode), `making ${this.path}`);
      this.#fill();
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    this.#native.removeTree(this.#folder, "label-trial");
    this.#native.close(this.#folder);
  }

  #fill(): void {
    const native = this.#native;
    const inside = native.openDirectory(this.#folder, "label-trial");
    must(inside, `opening ${this.path}`);
    try {
      const file = native.createFile(inside, "file");
      must(file, `making ${this.path}/file`);
      native.close(file);
      const { mode, major, minor } = whiteout;
      must(native.makeDirectory(inside, "directory", directoryMode), `making ${this.path}/directory`);
      must(native.makeSymlink(inside, "link", "nowhere"), `making ${this.path}/link`);
      must(native.makeNode(inside, "whiteout", mode, major, minor), `making ${this.path}/whiteout`);
    } finally {
      native.close(inside);
    }
  }
}

/** Those of this machine. */
function kernelCalls(): LabelCalls {
  const at = <Result>(folder: string, act: (native: Binding, fd: number) => Result): Result | number => {
    const native = addon();
    const fd = native.openRoot(bytesOf(folder));
    if (fd < 0) return fd;
    try {
      return act(native, fd);
    } finally {
      native.close(fd);
    }
  };
  return {
    isOn,
    get: (folder, name) =>
      at(folder, (native, fd) => {
        const value = Buffer.alloc(labelBytesMax);
        const length = native.getXattr(fd, name, key, value);
        // The kernel counts the NUL character behind a label as part of it.
        return length < 0 ? length : value.toString("latin1", 0, length).replace(/\0+$/, "");
      }),
    set: (folder, label) =>
      at(folder, (native, fd) => native.setXattr(fd, "", key, Buffer.from(`${label}\0`, "latin1"))),
  };
}

/** A kernel with SELinux but without a policy calls every process "kernel", and labels nothing. */
function isOn(): boolean {
  if (!existsSync("/sys/fs/selinux/enforce")) return false;
  try {
    return !/^kernel\0?\n?$/.test(readFileSync("/proc/self/attr/current", "latin1"));
  } catch {
    return true;
  }
}

function addon(): Binding {
  const native = loadNative();
  if (native.kind === "missing") throw unsupported(`labels cannot be read, since ${native.reason}`);
  return native.binding;
}

function must(status: number, doing: string): void {
  if (status < 0) throw unsupported(`labels cannot be tried: ${doing} failed (${nameOf(status)})`);
}

function refused(what: string, ours: string, theirs: string): PullError {
  return unsupported(
    `${what}; "chcon --reference=${theirs} ${dirname(ours)}" labels all that Hawser makes there`,
  );
}

function unsupported(message: string): PullError {
  return new PullError("unsupported", `SELinux is on, and ${message}`);
}

function nameOf(status: number): string {
  return getSystemErrorName(status);
}

function bytesOf(path: string): string {
  return Buffer.from(path).toString("latin1");
}
