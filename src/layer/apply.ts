// Applies the entries of a layer to a directory as containerd does (reference 4.2), in the form that overlayfs reads.
//
// Two deliberate differences, both what OCI image-spec layer.md asks for: a whiteout beside an entry of the same layer
// does not fail the layer, and a directory that follows its own whiteout is opaque (reference 4.3).

import { constants } from "node:os";
import { PullError } from "../errors.ts";
import type { Binding } from "../native.ts";
import type { Times } from "./directories.ts";
import type { Entry, EntrySink } from "./entry.ts";
import { corrupt, unsupported } from "./header.ts";
import { check, type Directory, type Kind, parentOf, systemError, type Tree } from "./tree.ts";

const { EEXIST, ENOTSUP, EPERM } = constants.errno;
const whiteoutPrefix = ".wh.";
const opaqueWhiteout = ".wh..wh..opq";
/** The kernel's XATTR_NAME_MAX. */
const xattrKeyBytesMax = 255;
const nodeTypes = { char: 0o020000, block: 0o060000, fifo: 0o010000 } as const;

interface Place {
  readonly at: Directory;
  readonly name: string;
}

/** A regular file that is being written. */
interface OpenFile extends Place {
  readonly fd: number;
  readonly entry: Entry;
}

export class Applier implements EntrySink, Disposable {
  readonly #native: Binding;
  readonly #tree: Tree;
  readonly #isBase: boolean;
  readonly #isCancelled: () => boolean;
  #file: OpenFile | undefined;

  /** `isCancelled` is asked at each entry, of which a few compressed bytes may hold a great many. */
  constructor(native: Binding, tree: Tree, isBase: boolean, isCancelled: () => boolean) {
    this.#native = native;
    this.#tree = tree;
    this.#isBase = isBase;
    this.#isCancelled = isCancelled;
  }

  [Symbol.dispose](): void {
    if (this.#file) this.#native.close(this.#file.fd);
    this.#file = undefined;
  }

  whole(entry: Entry, buffer: Buffer, start: number, end: number): void {
    const place = this.#place(entry);
    if (place === undefined || this.#whiteout(entry, place)) return;
    if (entry.type === "file") this.#putFile(entry, place, buffer, start, end);
    else if (entry.type === "directory") this.#putDirectory(entry, place);
    else this.#putOther(entry, place);
  }

  /** containerd makes a global header's parents and clears its place before it passes the header over. */
  global(name: string): void {
    const { parent, name: last } = split(name);
    if (last === "") return;
    const isFree =
      parent === "" &&
      !last.startsWith(whiteoutPrefix) &&
      this.#tree.kind(this.#tree.root, last) === "absent";
    if (!isFree) throw unsupported("a global header named", name);
  }

  begin(entry: Entry): void {
    const place = this.#place(entry);
    // The content of a whiteout or of an entry for the root is of no interest; #file stays undefined and it is dropped.
    if (place === undefined || this.#whiteout(entry, place)) return;
    this.#file = {
      ...place,
      entry,
      fd: this.#make(place, () => this.#native.createFile(place.at.fd, place.name)),
    };
  }

  piece(buffer: Buffer, start: number, end: number): void {
    if (this.#file)
      check(this.#native.writeFile(this.#file.fd, buffer, start, end), describe("writing", this.#file));
  }

  finish(): void {
    const file = this.#file;
    if (file === undefined) return;
    this.#file = undefined;
    this.#native.close(file.fd);
    this.#describe(file.entry, file);
  }

  /** After the last entry, when nothing more is put into them: directories get the times that the archive gives them. */
  complete(): void {
    this.#tree.directories.forEachNamed((path, times) => {
      this.#next();
      this.#setTimes(times, this.#placeOf(path));
    });
  }

  #next(): void {
    if (this.#isCancelled()) throw new PullError("cancelled", "cancelled");
    this.#tree.trim();
  }

  #placeOf(path: string): Place {
    const parent = parentOf(path);
    const name = parent === "" ? path : path.slice(parent.length + 1);
    return { at: this.#tree.directory(parent, false), name };
  }

  /** Where an entry goes, or undefined for the root itself, whose attributes are not the archive's to set. */
  #place(entry: Entry): Place | undefined {
    this.#next();
    const { parent, name } = split(entry.name);
    if (name === "") return undefined;
    if (isUnset(entry.uid) || isUnset(entry.gid)) throw unsupported("no owner for", entry.name);
    const at = this.#tree.directory(parent, true);
    this.#tree.pathOf(at, name);
    return { at, name };
  }

  #putFile(entry: Entry, place: Place, buffer: Buffer, start: number, end: number): void {
    const { at, name } = place;
    const { uid, gid, mode, mtime, atime } = entry;
    // Attributes that must be set between chown and chmod take the long way.
    if (entry.xattrs.length > 0) {
      this.begin(entry);
      this.piece(buffer, start, end);
      this.finish();
      return;
    }
    this.#make(place, () =>
      this.#native.putFile(
        at.fd,
        name,
        buffer,
        start,
        end,
        uid,
        gid,
        mode,
        mtime.seconds,
        mtime.nanoseconds,
        atime.seconds,
        atime.nanoseconds,
      ),
    );
  }

  #putDirectory(entry: Entry, place: Place): void {
    const { at, name } = place;
    const made = this.#native.makeDirectory(at.fd, name, entry.mode);
    if (made === -EEXIST) this.#mergeDirectory(entry, place);
    else check(made, describe("making directory", place));
    this.#describe(entry, place);
    const { mtime, atime } = entry;
    this.#tree.name(at, name, split(entry.name).parent, { mtime, atime });
  }

  #mergeDirectory(entry: Entry, place: Place): void {
    const kind = this.#tree.kind(place.at, place.name);
    if (kind === "directory") return;
    this.#tree.remove(place.at, place.name);
    const made = this.#native.makeDirectory(place.at.fd, place.name, entry.mode);
    check(made, describe("making directory", place));
    if (kind === "whiteout" && !this.#isBase) this.#tree.makeOpaque(place.at, place.name);
  }

  #putOther(entry: Entry, place: Place): void {
    const { at, name } = place;
    // It would be a whiteout under another name, and could not be told from one.
    if (entry.type === "char" && (entry.major | entry.minor) === 0)
      throw unsupported("device 0:0 at", entry.name);
    this.#make(place, () => {
      switch (entry.type) {
        case "symlink":
          return this.#native.makeSymlink(at.fd, name, entry.linkName);
        case "hardlink":
          return this.#link(entry, place);
        case "char":
        case "block":
        case "fifo":
          return this.#native.makeNode(
            at.fd,
            name,
            nodeTypes[entry.type] | entry.mode,
            entry.major,
            entry.minor,
          );
        case "file":
        case "directory":
          throw new TypeError(`${entry.type} is put elsewhere`);
      }
    });
    this.#describe(entry, place);
  }

  /** The target must be of this layer; its last component is not followed. */
  #link(entry: Entry, place: Place): number {
    // containerd does not clean a target as it does a name, and follows a link behind which there is a slash.
    if (/(?:^|\/)\.\.(?:\/|$)|\/\.?$/.test(entry.linkName))
      throw unsupported("a hard link to", entry.linkName);
    const { parent, name } = split(entry.linkName);
    const target = this.#tree.directory(parent, false);
    return this.#native.makeLink(target.fd, name, place.at.fd, place.name);
  }

  /** Makes something; where something is already, that goes first. */
  #make(place: Place, make: () => number): number {
    let made = make();
    if (made === -EEXIST) {
      this.#tree.remove(place.at, place.name);
      made = make();
    }
    if (made < 0) throw systemError(made, describe("making", place));
    return made;
  }

  /** Owner, extended attributes, mode, times: chown clears setuid bits and capabilities, so it goes first. */
  #describe(entry: Entry, place: Place): void {
    const { at, name } = place;
    check(this.#native.setOwner(at.fd, name, entry.uid, entry.gid), describe("setting the owner of", place));
    for (const [key, value] of entry.xattrs) this.#setXattr(entry, place, key, value);
    if (!this.#isSymlink(entry, place)) {
      check(this.#native.setMode(at.fd, name, entry.mode), describe("setting the mode of", place));
    }
    // Whatever is put into a directory would change them again.
    if (entry.type !== "directory") this.#setTimes(entry, place);
  }

  #isSymlink(entry: Entry, place: Place): boolean {
    return (
      entry.type === "symlink" ||
      (entry.type === "hardlink" && this.#tree.kind(place.at, place.name) === "symlink")
    );
  }

  #setXattr(entry: Entry, place: Place, key: string, value: Buffer): void {
    if (key.length === 0 || key.length > xattrKeyBytesMax)
      throw corrupt("an extended attribute without a usable name");
    // trusted.* would speak to overlayfs in the archive's name.
    if (key.startsWith("trusted.")) return;
    const status = this.#native.setXattr(place.at.fd, place.name, key, value);
    const isSpecial = entry.type !== "file" && entry.type !== "directory";
    if (status === -ENOTSUP || (status === -EPERM && isSpecial && key.startsWith("user."))) return;
    check(status, describe(`setting ${JSON.stringify(key)} of`, place));
  }

  #setTimes({ mtime, atime }: Times, place: Place): void {
    const { at, name } = place;
    const status = this.#native.setTimes(
      at.fd,
      name,
      mtime.seconds,
      mtime.nanoseconds,
      atime.seconds,
      atime.nanoseconds,
    );
    check(status, describe("setting the times of", place));
  }

  /** True when the entry was a whiteout, which is done with then. */
  #whiteout(entry: Entry, place: Place): boolean {
    const { at, name } = place;
    if (!name.startsWith(whiteoutPrefix)) return false;
    if (name === opaqueWhiteout) {
      this.#opaque(at);
      return true;
    }
    const hidden = name.slice(whiteoutPrefix.length);
    if (hidden === "" || hidden === "." || hidden === "..")
      throw corrupt(`invalid whiteout name: ${JSON.stringify(name)}`);
    const kind = this.#tree.kind(at, hidden);
    if (this.#isBase) {
      if (kind !== "absent") this.#tree.remove(at, hidden);
    } else {
      this.#hide(entry, { at, name: hidden }, kind);
    }
    return true;
  }

  #hide(entry: Entry, place: Place, kind: Kind): void {
    const { at, name } = place;
    if (kind === "whiteout") throw unsupported("two whiteouts of", entry.name);
    if (kind === "directory") this.#tree.makeOpaque(at, name);
    if (kind !== "absent") return;
    check(this.#native.makeNode(at.fd, name, nodeTypes.char, 0, 0), describe("making a whiteout of", place));
    check(this.#native.setOwner(at.fd, name, entry.uid, entry.gid), describe("setting the owner of", place));
  }

  /** In the bottom layer nothing lies below, but containerd removes directories that no entry has named yet. */
  #opaque(at: Directory): void {
    if (!this.#isBase) this.#tree.makeOpaque(at, "");
    else if (this.#tree.directories.hasUnnamedBelow(at.path))
      throw unsupported("a whiteout of all that is in", at.path);
  }
}

/** To chown, -1 means that the owner stays, and what that is depends on more than the archive. */
function isUnset(id: number): boolean {
  return id >>> 0 === 0xffff_ffff;
}

/** Nearly every path of an archive is clean but for its ends: no component is empty or begins with a dot. */
const isClean = /^[^./][^/]*(?:\/[^./][^/]*)*$/;

/** A path as Go's filepath.Clean sees it, clamped at the root: the directory part and the last component. */
export function split(path: string): { readonly parent: string; readonly name: string } {
  const bare = path.slice(path.startsWith("./") ? 2 : 0, path.endsWith("/") ? -1 : undefined);
  if (isClean.test(bare)) {
    const slash = bare.lastIndexOf("/");
    return { parent: bare.slice(0, Math.max(0, slash)), name: bare.slice(slash + 1) };
  }
  const parts: string[] = [];
  for (const part of path.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  const name = parts.pop() ?? "";
  return { parent: parts.join("/"), name };
}

function describe(doing: string, place: Place): string {
  return `${doing} ${JSON.stringify(`${place.at.path}/${place.name}`)}`;
}
