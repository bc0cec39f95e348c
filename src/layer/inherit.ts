// Implicit directories take after the layers below: owner, mode, times and extended attributes of the nearest layer
// that has a directory at their path (reference 4.2, step 4).
//
// Runs on the main thread once the parent is committed, in slices, since an archive may imply many directories.

import { constants } from "node:os";
import { posix } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { PullError, throwIfAborted } from "../errors.ts";
import type { Binding } from "../native.ts";
import { type ImplicitDirectory, implicitOnes } from "./directories.ts";
import { unsupported } from "./header.ts";
import type { ImplicitDirectories } from "./layer.ts";
import { check, leadsTo, linksMax, parentOf, systemError } from "./tree.ts";

const { ENODATA, ENOENT, ENOTSUP } = constants.errno;
const setgid = 0o2000;
const defaultAcl = "system.posix_acl_default";
const settingOwner = "setting a directory's owner";
/** How long the main thread may be kept from everything else; with many layers below a directory takes its time. */
const sliceMs = 1;
/** The kernel's XATTR_SIZE_MAX. */
const valueBytesMax = 64 * 1024;

export async function inheritNative(
  native: Binding,
  upper: string,
  lowers: readonly string[],
  directories: ImplicitDirectories,
  signal: AbortSignal,
): Promise<void> {
  if (lowers.length === 0 || directories.depths.length === 0) return;
  const opened: number[] = [];
  const open = (path: string): number => {
    const fd = native.openRoot(Buffer.from(path).toString("latin1"));
    if (fd < 0) throw systemError(fd, "opening a layer's root");
    opened.push(fd);
    return fd;
  };
  try {
    const root = open(upper);
    const roots = lowers.map(open);
    const inheritance = new Inheritance(native, root, roots);
    let began = performance.now();
    for (const directory of implicitOnes(directories)) {
      inheritance.apply(directory);
      if (performance.now() - began < sliceMs) continue;
      await turn();
      throwIfAborted(signal);
      began = performance.now();
    }
  } finally {
    for (const fd of opened) native.close(fd);
  }
}

/** The portable engine leaves images alone in which a directory would have something to inherit. */
export async function inheritPortable(
  _upper: string,
  lowers: readonly string[],
  directories: ImplicitDirectories,
): Promise<void> {
  if (lowers.length > 0 && directories.depths.length > 0) {
    throw new PullError(
      "unsupported",
      "the portable engine cannot copy a directory's attributes from lower layers",
    );
  }
}

class Inheritance {
  readonly #native: Binding;
  readonly #upper: number;
  readonly #lowers: readonly number[];
  readonly #stat = new Float64Array(8);
  readonly #value = Buffer.allocUnsafe(valueBytesMax);
  /** Directories that pass on their group to what is made in them, by path. */
  readonly #passing = new Map<string, { readonly gid: number; readonly named: boolean }>();

  constructor(native: Binding, upper: number, lowers: readonly number[]) {
    this.#native = native;
    this.#upper = upper;
    this.#lowers = lowers;
  }

  apply({ path, named }: ImplicitDirectory): void {
    const above = this.#native.openBelow(this.#upper, path);
    if (above < 0) throw systemError(above, `entering ${JSON.stringify(path)}`);
    try {
      const below = this.#nearest(path);
      if (below === undefined) {
        if (!named) this.#takeGroup(above, parentOf(path));
        return;
      }
      try {
        this.#copy(below, above, { path, named });
      } finally {
        this.#native.close(below);
      }
    } finally {
      this.#native.close(above);
    }
  }

  /** What containerd makes in a directory that passes on its group gets that from the kernel. */
  #takeGroup(directory: number, parent: string): void {
    const from = this.#passing.get(parent);
    if (from === undefined) return;
    if (from.named) throw unsupported("a group that may have been passed on by", parent);
    check(this.#native.setOwner(directory, ".", 0, from.gid), settingOwner);
  }

  /** A descriptor of the nearest lower layer's directory at this path. Anything else there ends containerd's search. */
  #nearest(path: string): number | undefined {
    for (const lower of this.#lowers) {
      const opened = this.#native.openBelow(lower, path);
      if (opened >= 0) return opened;
      if (opened === -ENOENT) continue;
      const real = this.#resolve(lower, path);
      if (real === "absent") continue;
      if (real === "other") return undefined;
      const followed = this.#native.openBelow(lower, real.at);
      if (followed < 0) throw systemError(followed, "entering a directory of a lower layer");
      return followed;
    }
    return undefined;
  }

  /**
   * Where a path with links in it leads to in a lower layer, or that something else is there. Below something else
   * containerd gives up the layer, which is left to it.
   */
  #resolve(lower: number, path: string): { readonly at: string } | "absent" | "other" {
    const pending = path.split("/").toReversed();
    let at = ".";
    let links = 0;
    for (let name = pending.pop(); name !== undefined; name = pending.pop()) {
      const found = name === ".." ? "directory" : this.#look(lower, at, name);
      if (found === "absent") return "absent";
      if (found === "directory") {
        at = name === ".." ? posix.dirname(at) : posix.join(at, name);
        continue;
      }
      if (found === "other" && pending.length === 0) return "other";
      links += 1;
      if (found === "other" || links > linksMax) throw unsupported("something else on the way to", path);
      if (found.target.startsWith("/")) at = ".";
      pending.push(...leadsTo(found.target, links === 1).toReversed());
    }
    return { at };
  }

  #look(
    lower: number,
    parent: string,
    name: string,
  ): "directory" | "absent" | "other" | { readonly target: string } {
    const native = this.#native;
    const at = native.openBelow(lower, parent);
    if (at < 0) throw systemError(at, "entering a directory of a lower layer");
    try {
      const opened = native.openDirectory(at, name);
      if (opened >= 0) native.close(opened);
      if (opened >= 0) return "directory";
      if (opened === -ENOENT) return "absent";
      const target = native.readLink(at, name);
      return typeof target === "string" ? { target } : "other";
    } finally {
      native.close(at);
    }
  }

  #copy(from: number, to: number, { path, named }: ImplicitDirectory): void {
    const native = this.#native;
    check(native.status(from, "", this.#stat), "looking at a directory of a lower layer");
    const [mode = 0, uid = 0, gid = 0, , atime = 0, atimeNs = 0, mtime = 0, mtimeNs = 0] = this.#stat;
    // "." is the directory itself for calls that want a name; no link can be there.
    if (!named) check(native.setOwner(to, ".", uid, gid), settingOwner);
    if ((mode & setgid) !== 0) this.#passing.set(path, { gid, named });
    this.#copyXattrs(from, to, path);
    if (named) return;
    check(native.setMode(to, ".", mode & 0o7777), "setting a directory's mode");
    check(native.setTimes(to, ".", mtime, mtimeNs, atime, atimeNs), "setting a directory's times");
  }

  /** Like containerd's, which sets them with XATTR_CREATE: what is there stays, and so does an SELinux label. */
  #copyXattrs(from: number, to: number, path: string): void {
    const keys = this.#native.listXattrs(from, "");
    if (keys === -ENOTSUP) return;
    if (typeof keys === "number") throw systemError(keys, "listing a directory's attributes");
    for (const key of keys.split("\0")) {
      if (key === "" || key.startsWith("trusted.")) continue;
      // The kernel would have passed it on to what is in the directory by now.
      if (key === defaultAcl) throw unsupported("an ACL that is passed on by", path);
      if (this.#native.getXattr(to, "", key, this.#value) !== -ENODATA) continue;
      const length = this.#native.getXattr(from, "", key, this.#value);
      if (length < 0) throw systemError(length, "reading a directory's attribute");
      const status = this.#native.setXattr(to, "", key, this.#value.subarray(0, length));
      if (status !== -ENOTSUP) check(status, "setting a directory's attribute");
    }
  }
}
