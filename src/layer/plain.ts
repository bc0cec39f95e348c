// What the portable engine takes of an archive: files, directories, symbolic links and hard links, each named once.
//
// Our own parser hands the entries in; here they are judged, remembered, and compared with what tar-fs makes of the same
// bytes, so that no difference between two parsers can end in a tree. Everything else is `unsupported`.

import { PullError } from "../errors.ts";
import { split } from "./apply.ts";
import type { Entry, EntrySink } from "./entry.ts";

/** What tar-fs says of an entry. */
export interface ForeignHeader {
  readonly name: string;
  readonly type: string;
  readonly size: number;
}

/** Entries are remembered until the end, at some 500 bytes each; layers with more of them are left to containerd. */
const entriesMax = 100_000;
/** Largest uid or gid that Node's calls take. */
const ownerMax = 2 ** 32 - 1;
const foreignTypes: Partial<Record<Entry["type"], string>> = {
  file: "file",
  directory: "directory",
  symlink: "symlink",
  hardlink: "link",
};

export class PlainArchive implements EntrySink {
  readonly #isBase: boolean;
  /** By path, in the archive's order. Paths are as Node writes them: text, no leading slash. */
  readonly #entries = new Map<string, Entry>();
  readonly #implied = new Set<string>();
  /** Judged here, and not yet met by tar-fs; at most what one piece of the stream holds. */
  readonly #waiting: { readonly path: string; readonly entry: Entry }[] = [];

  constructor(isBase: boolean) {
    this.#isBase = isBase;
  }

  get entries(): ReadonlyMap<string, Entry> {
    return this.#entries;
  }

  /** Directories that were made for what is in them. Only in a bottom layer: in others they take after lower layers. */
  get implied(): ReadonlySet<string> {
    return this.#implied;
  }

  whole(entry: Entry): void {
    const path = cleanPath(entry.name);
    if (path !== "") {
      const reason = unsupportedEntry(entry) ?? this.#unsupportedPlace(entry, path);
      if (reason !== undefined) {
        throw new PullError(
          "unsupported",
          `the portable engine does not do ${reason}: ${JSON.stringify(path)}`,
        );
      }
      this.#entries.set(path, entry);
    }
    this.#waiting.push({ path, entry });
  }

  global(name: string): void {
    const path = cleanPath(name);
    const isFree = !this.#entries.has(path) && !this.#implied.has(path) && !/\/|^\.wh\./.test(path);
    if (!isFree) throw new PullError("unsupported", "the portable engine does not do such global headers");
  }

  begin(entry: Entry): void {
    this.whole(entry);
  }

  piece(): void {}

  finish(): void {}

  /**
   * tar-fs is about to write an entry: true when it is to leave it out, as the root is. Throws `unsupported` when it is
   * not the entry that our parser has read.
   */
  meet(header: ForeignHeader): boolean {
    const next = this.#waiting.shift();
    const isSame =
      next !== undefined &&
      header.type === foreignTypes[next.entry.type] &&
      join(split(header.name)) === next.path &&
      (header.type !== "file" || header.size === next.entry.sizeBytes);
    if (!isSame) throw new PullError("unsupported", "tar-fs reads this archive differently");
    return next.path === "";
  }

  #unsupportedPlace(entry: Entry, path: string): string | undefined {
    if (this.#entries.size === entriesMax) return `more than ${entriesMax} entries`;
    if (this.#entries.has(path)) return "entries that are named twice";
    if (this.#implied.has(path) && entry.type !== "directory") return "entries in place of a directory";
    if (entry.type === "hardlink" && this.#entries.get(cleanPath(entry.linkName))?.type !== "file") {
      return "hard links to other than files";
    }
    const parts = path.split("/");
    if (parts.some((part) => part.startsWith(".wh."))) return "whiteouts";
    for (let depth = 1; depth < parts.length; depth++) {
      const reason = this.#unsupportedParent(parts.slice(0, depth).join("/"));
      if (reason !== undefined) return reason;
    }
    return undefined;
  }

  #unsupportedParent(path: string): string | undefined {
    const parent = this.#entries.get(path);
    if (parent?.type === "directory" || this.#implied.has(path)) return undefined;
    if (parent !== undefined) return "entries below other than directories";
    if (!this.#isBase) return "directories that are not named";
    const above = path.slice(0, Math.max(0, path.lastIndexOf("/")));
    // A directory's group may pass to what is made in it.
    if (((this.#entries.get(above)?.mode ?? 0) & 0o2000) !== 0) return "directories that are not named";
    this.#implied.add(path);
    return undefined;
  }
}

function unsupportedEntry({ type, name, uid, gid, mtime, xattrs }: Entry): string | undefined {
  if (foreignTypes[type] === undefined) return `entries of type ${type}`;
  if (name.split("/").includes("..")) return "names with ..";
  if (xattrs.length > 0) return "extended attributes";
  if (Math.min(uid, gid) < 0 || Math.max(uid, gid) > ownerMax) return "owners out of range";
  // Node's calls for times take floating-point seconds, which cannot hold nanoseconds.
  if (mtime.nanoseconds !== 0) return "times with a fraction of a second";
  return undefined;
}

function cleanPath(name: string): string {
  return join(split(decode(name)));
}

function join({ parent, name }: ReturnType<typeof split>): string {
  return parent === "" ? name : `${parent}/${name}`;
}

function decode(bytes: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Buffer.from(bytes, "latin1"));
  } catch {
    throw new PullError("unsupported", "the portable engine does not do names that are not UTF-8");
  }
}
