// Implicit directories take after the layers below: owner, mode, times and extended attributes of the nearest layer
// that has a directory at their path (reference 4.2, step 4).
//
// Runs on the main thread once the parent is committed, in slices, since an archive may imply many directories.

import { constants } from "node:os";
import { setImmediate as turn } from "node:timers/promises";
import { PullError } from "../errors.ts";
import type { Binding } from "../native.ts";
import type { ImplicitDirectory } from "./layer.ts";
import { check, systemError } from "./tree.ts";

const { ENODATA, ENOENT, ENOTSUP } = constants.errno;
const sliceLength = 64;
/** The kernel's XATTR_SIZE_MAX. */
const valueBytesMax = 64 * 1024;

export async function inheritNative(
  native: Binding,
  upper: string,
  lowers: readonly string[],
  directories: readonly ImplicitDirectory[],
): Promise<void> {
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
    for (const [index, directory] of directories.entries()) {
      if (index % sliceLength === sliceLength - 1) await turn();
      inheritance.apply(directory);
    }
  } finally {
    for (const fd of opened) native.close(fd);
  }
}

/** The portable engine leaves images alone in which a directory would have something to inherit. */
export async function inheritPortable(
  _upper: string,
  lowers: readonly string[],
  directories: readonly ImplicitDirectory[],
): Promise<void> {
  if (lowers.length > 0 && directories.length > 0) {
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

  constructor(native: Binding, upper: number, lowers: readonly number[]) {
    this.#native = native;
    this.#upper = upper;
    this.#lowers = lowers;
  }

  apply({ path, named }: ImplicitDirectory): void {
    const above = this.#native.openInRoot(this.#upper, path);
    // Something else of the same layer may have taken its place.
    if (above < 0) return;
    try {
      for (const lower of this.#lowers) {
        const below = this.#native.openInRoot(lower, path);
        if (below === -ENOENT) continue;
        // A file, a whiteout or a loop of links: containerd looks no further.
        if (below < 0) return;
        try {
          this.#copy(below, above, named);
          return;
        } finally {
          this.#native.close(below);
        }
      }
    } finally {
      this.#native.close(above);
    }
  }

  #copy(from: number, to: number, onlyMissingXattrs: boolean): void {
    const native = this.#native;
    check(native.status(from, "", this.#stat), "looking at a directory of a lower layer");
    const [mode = 0, uid = 0, gid = 0, , atime = 0, atimeNs = 0, mtime = 0, mtimeNs = 0] = this.#stat;
    // "." is the directory itself for calls that want a name; no link can be there.
    if (!onlyMissingXattrs) check(native.setOwner(to, ".", uid, gid), "setting a directory's owner");
    this.#copyXattrs(from, to, onlyMissingXattrs);
    if (onlyMissingXattrs) return;
    check(native.setMode(to, ".", mode & 0o7777), "setting a directory's mode");
    check(native.setTimes(to, ".", mtime, mtimeNs, atime, atimeNs), "setting a directory's times");
  }

  #copyXattrs(from: number, to: number, onlyMissing: boolean): void {
    const keys = this.#native.listXattrs(from, "");
    if (keys === -ENOTSUP) return;
    if (typeof keys === "number") throw systemError(keys, "listing a directory's attributes");
    for (const key of keys.split("\0")) {
      if (key === "" || key.startsWith("trusted.")) continue;
      if (onlyMissing && this.#native.getXattr(to, "", key, this.#value) !== -ENODATA) continue;
      const length = this.#native.getXattr(from, "", key, this.#value);
      if (length < 0) throw systemError(length, "reading a directory's attribute");
      const status = this.#native.setXattr(to, "", key, this.#value.subarray(0, length));
      if (status !== -ENOTSUP) check(status, "setting a directory's attribute");
    }
  }
}
