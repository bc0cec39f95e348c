// The tree below a layer's root: paths of the archive are walked here, one component at a time, on directory
// descriptors, so that nothing can leave the root.
//
// Symbolic links that this layer has made are followed as if the root were "/", and ".." stops at the root; parents
// that are missing are made and remembered as implicit. Descriptors of directories are kept, since archives list a
// directory's entries one after another, and dropped whenever something is removed, since a path may then lead elsewhere.

import { constants } from "node:os";
import { PullError } from "../errors.ts";
import type { Binding } from "../native.ts";
import { Directories, type Times } from "./directories.ts";
import { corrupt, unsupported } from "./header.ts";

/** An open directory of the tree. */
export interface Directory {
  readonly fd: number;
  /** Where it really is: components below the root, joined by "/", empty for the root. */
  readonly path: string;
}

/** What is at a name. A whiteout is a character device 0:0. */
export type Kind = "absent" | "directory" | "symlink" | "file" | "other" | "whiteout";

/** Most symbolic links on one path, as in the kernel. */
export const linksMax = 40;
/** Most components on one path, those of links' targets included; more are only ever made to keep us busy. */
const stepsMax = 4096;
/** The kernel's PATH_MAX without its NUL byte. */
const pathBytesMax = 4095;
/** Directories that one layer keeps open from entry to entry, and paths that it remembers the way of. */
const openMax = 256;
const resolvedMax = 4096;

const { ELOOP, ENOENT, ENOTDIR } = constants.errno;
const fileTypes = { mask: 0o170000, directory: 0o040000, symlink: 0o120000, file: 0o100000, char: 0o020000 };

export class Tree implements Disposable {
  readonly #native: Binding;
  readonly root: Directory;
  /** By real path. */
  readonly #open = new Map<string, Directory>();
  /** By the archive's own path; emptied together with #open. */
  readonly #resolved = new Map<string, Directory>();
  readonly #stat = new Float64Array(8);
  readonly #pathBytesMax: number;
  readonly directories = new Directories();
  /** The archive has named a directory by a path that leads through a symbolic link. */
  #isNamedThroughLink = false;

  /** Throws `internal` when the root cannot be opened. */
  constructor(native: Binding, root: string) {
    this.#native = native;
    const path = Buffer.from(root).toString("latin1");
    const fd = native.openRoot(path);
    if (fd < 0) throw systemError(fd, "opening the staging directory");
    this.root = { fd, path: "" };
    this.#pathBytesMax = pathBytesMax - path.length - 1;
  }

  [Symbol.dispose](): void {
    this.#closeAll();
    this.#native.close(this.root.fd);
  }

  /**
   * The directory that an archive's path leads to. Missing directories are made if `make`; else, and where something
   * other than a directory is in the way, it throws `corrupt`.
   */
  directory(path: string, make: boolean): Directory {
    if (path === "") return this.root;
    const known = this.#resolved.get(path);
    if (known) return known;
    const found = this.#walk(path, make);
    this.#resolved.set(path, found);
    return found;
  }

  /** Between two entries, when no directory is in use: lets go of descriptors once there are many. */
  trim(): void {
    if (this.#open.size >= openMax || this.#resolved.size >= resolvedMax) this.#closeAll();
  }

  kind(at: Directory, name: string): Kind {
    const status = this.#native.status(at.fd, name, this.#stat);
    if (status === -ENOENT) return "absent";
    if (status < 0) throw systemError(status, "looking at an entry");
    switch ((this.#stat[0] ?? 0) & fileTypes.mask) {
      case fileTypes.directory:
        return "directory";
      case fileTypes.symlink:
        return "symlink";
      case fileTypes.file:
        return "file";
      case fileTypes.char:
        return this.#stat[3] === 0 ? "whiteout" : "other";
      default:
        return "other";
    }
  }

  /**
   * A path of the tree, as the system's calls on paths could take it below the root. A longer one could be made here
   * but not by containerd, and not be removed again by paths; it is `corrupt`.
   */
  pathOf(at: Directory, name: string): string {
    const path = at.path === "" ? name : `${at.path}/${name}`;
    if (path.length > this.#pathBytesMax) throw corrupt(`a path of ${path.length} bytes`);
    return path;
  }

  /** The archive has named this directory, and meant a parent of that path. */
  name(at: Directory, name: string, parent: string, times: Times): void {
    if (at.path !== parent) this.#isNamedThroughLink = true;
    this.directories.name(this.pathOf(at, name), times);
  }

  /**
   * Removes what is there, and forgets whatever was known of paths through it. Not a directory: in the end containerd
   * sets the times of all that were named, on whatever their names lead to by then, and those that were not named have
   * taken after lower layers already. An archive that is so untidy is left to it.
   */
  remove(at: Directory, name: string): void {
    const kind = this.kind(at, name);
    if (kind === "directory" || (kind === "symlink" && this.#isNamedThroughLink))
      throw unsupported("something else in place of", this.pathOf(at, name));
    if (kind === "symlink") this.#closeOthers(at);
    check(this.#native.removeFile(at.fd, name), "removing an entry that is replaced");
  }

  #walk(path: string, make: boolean): Directory {
    const pending = path.split("/").toReversed();
    let links = 0;
    let steps = 0;
    let current = this.root;
    for (let name = pending.pop(); name !== undefined; name = pending.pop()) {
      steps += 1;
      if (steps > stepsMax) throw corrupt(`a path of too many steps: ${JSON.stringify(path.slice(0, 100))}`);
      if (name === "" || name === ".") continue;
      if (name === "..") {
        current = this.#real(parentOf(current.path));
        continue;
      }
      const next = this.#enter(current, name, make);
      if (typeof next !== "string") {
        current = next;
        continue;
      }
      links += 1;
      if (links > linksMax) throw corrupt(`a path through too many symbolic links: ${JSON.stringify(path)}`);
      if (next.startsWith("/")) current = this.root;
      pending.push(...leadsTo(next, links === 1).toReversed());
    }
    return current;
  }

  /** A directory whose path has no links in it. */
  #real(path: string): Directory {
    let current = this.root;
    for (const name of path.split("/")) {
      if (name === "") continue;
      const next = this.#enter(current, name, false);
      if (typeof next === "string") throw new PullError("internal", "a real path leads through a link");
      current = next;
    }
    return current;
  }

  /** The directory of this name, or the target of the symbolic link that is there instead. */
  #enter(at: Directory, name: string, make: boolean): Directory | string {
    const path = this.pathOf(at, name);
    const known = this.#open.get(path);
    if (known) return known;
    let fd = this.#native.openDirectory(at.fd, name);
    if (fd === -ENOENT && make) {
      this.directories.imply(path);
      fd = this.#makeDirectory(at, name, false);
    }
    if (fd === -ENOTDIR || fd === -ELOOP) {
      const target = this.#native.readLink(at.fd, name);
      if (typeof target === "string") return target;
      if (!make || this.kind(at, name) !== "whiteout") {
        throw corrupt(`an entry below ${JSON.stringify(path)}, which is not a directory`);
      }
      // The spec hides what lies below a whiteout and shows what the same layer puts there: an opaque directory.
      check(this.#native.removeFile(at.fd, name), "replacing a whiteout");
      fd = this.#makeDirectory(at, name, true);
    }
    if (fd < 0) throw systemError(fd, `entering ${JSON.stringify(path)}`);
    return this.#keep({ fd, path });
  }

  /** Hides what lower layers have in this directory (kernel documentation, filesystems/overlayfs, "opaque directories"). */
  makeOpaque(at: Directory, name: string): void {
    const status = this.#native.setXattr(at.fd, name, "trusted.overlay.opaque", Buffer.from("y"));
    check(status, "making a directory opaque");
  }

  #makeDirectory(at: Directory, name: string, isOpaque: boolean): number {
    const made = this.#native.makeDirectory(at.fd, name, 0o755);
    if (made < 0) return made;
    // Below a setgid directory the kernel would have the bit passed on; containerd takes it away again.
    check(this.#native.setMode(at.fd, name, 0o755), "setting the mode of a directory");
    if (isOpaque) this.makeOpaque(at, name);
    return this.#native.openDirectory(at.fd, name);
  }

  #keep(directory: Directory): Directory {
    this.#open.set(directory.path, directory);
    return directory;
  }

  #closeAll(): void {
    for (const { fd } of this.#open.values()) this.#native.close(fd);
    this.#open.clear();
    this.#resolved.clear();
  }

  /** All but one, which the caller is about to use. */
  #closeOthers(kept: Directory): void {
    if (this.#open.get(kept.path) === kept) this.#open.delete(kept.path);
    this.#closeAll();
    if (kept !== this.root) this.#open.set(kept.path, kept);
  }
}

/**
 * The components of the target of a symbolic link that a path leads through. containerd takes each ".." in it together
 * with the name before it, links or not; where that may end elsewhere than the system would, the archive is left to it.
 */
export function leadsTo(target: string, isFirst: boolean): string[] {
  const parts = target.split("/").filter((part) => part !== "" && part !== ".");
  const climbs = parts.lastIndexOf("..") + 1;
  const isPlain = climbs === 0 || (isFirst && parts.slice(0, climbs).every((part) => part === ".."));
  if (!isPlain) throw unsupported("a path through a symbolic link to", target);
  return parts;
}

export function parentOf(path: string): string {
  return path.slice(0, Math.max(0, path.lastIndexOf("/")));
}

export function check(status: number, doing: string): void {
  if (status < 0) throw systemError(status, doing);
}

const names = new Map(Object.entries(constants.errno).map(([name, value]) => [-value, name]));

/** A negative errno in our words. Full disks and inode tables are `exhausted`; the rest is what the archive asked for. */
export function systemError(status: number, doing: string): PullError {
  const name = names.get(status) ?? String(status);
  const full =
    name === "ENOSPC" || name === "EDQUOT" || name === "EMFILE" || name === "ENFILE" || name === "ENOMEM";
  return new PullError(full ? "exhausted" : "corrupt", `${doing}: ${name}`);
}
