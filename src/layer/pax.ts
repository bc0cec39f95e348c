// Extended headers: what pax records and GNU long names say of the entry that follows them.

import { PullError } from "../errors.ts";
import type { Entry, EntryType, Time } from "./entry.ts";
import { corrupt, type RawHeader, size, text } from "./header.ts";

const xattrPrefix = "SCHILY.xattr.";
const epoch: Time = { seconds: 0, nanoseconds: 0 };
/** 2^63 - 1 nanoseconds, the last moment that containerd applies; others become 1970 (reference 4.2, step 8). */
const lastMoment: Time = { seconds: 9_223_372_036, nanoseconds: 854_775_807 };

const namingKeys = new Set(["path", "linkpath", "uname", "gname"]);
const decimalPattern = /^\+?\d+$/;

/** Collected from the extended headers in front of one entry, then applied to its own header. */
export class Overrides {
  #records = new Map<string, string>();
  #name = "";
  #linkName = "";

  add(typeflag: string, body: Buffer): void {
    if (typeflag === "L") this.#name = text(body, 0, body.length);
    else if (typeflag === "K") this.#linkName = text(body, 0, body.length);
    else this.#records = parseRecords(body);
  }

  apply(raw: RawHeader): Entry {
    const records = this.#records;
    for (const key of records.keys()) {
      if (key.startsWith("GNU.sparse."))
        throw new PullError("unsupported", `sparse file ${JSON.stringify(raw.name)}`);
    }
    const number = (key: string, own: number): number => {
      const value = records.get(key);
      return value ? decimal(value) : own;
    };
    const name = this.#name || records.get("path") || raw.name;
    const type = typeOf(raw.typeflag, name);
    const mtime = time(records.get("mtime")) ?? raw.mtime;
    const atime = time(records.get("atime")) ?? raw.atime ?? mtime;
    // Nothing can set it, but Go refuses one that is none.
    time(records.get("ctime"));
    return {
      type,
      name,
      linkName: this.#linkName || records.get("linkpath") || raw.linkName,
      mode: raw.mode & 0o7777,
      uid: number("uid", raw.uid),
      gid: number("gid", raw.gid),
      // Only files have content, whatever their header claims.
      sizeBytes: type === "file" ? size(number("size", raw.sizeBytes)) : 0,
      mtime: bounded(mtime),
      atime: bounded(isBefore(atime, mtime) ? mtime : atime),
      major: raw.major,
      minor: raw.minor,
      xattrs: xattrs(records),
    };
  }
}

/** "%d %s=%s\n" after one another; the number counts the whole record (POSIX.1-2017, pax, "pax Extended Header"). */
export function parseRecords(body: Buffer): Map<string, string> {
  const records = new Map<string, string>();
  for (let at = 0; at < body.length; ) {
    const space = body.indexOf(0x20, at);
    const length = Number(
      decimalPattern.exec(body.toString("latin1", at, Math.min(space, at + 8)))?.[0] ?? 0,
    );
    const end = at + length;
    const equals = body.indexOf(0x3d, space);
    if (space < 0 || equals < 0 || equals >= end || end > body.length || body[end - 1] !== 0x0a) {
      throw corrupt("a malformed pax record");
    }
    const key = body.toString("latin1", space + 1, equals);
    const value = body.toString("latin1", equals + 1, end - 1);
    // Go's reader: no NUL in what names something, nor in any other key.
    const named = namingKeys.has(key) ? value : key;
    if (key === "" || named.includes("\0")) throw corrupt("a malformed pax record");
    records.set(key, value);
    at = end;
  }
  return records;
}

function xattrs(records: ReadonlyMap<string, string>): (readonly [string, Buffer])[] {
  const found: (readonly [string, Buffer])[] = [];
  for (const [key, value] of records) {
    if (key.startsWith(xattrPrefix))
      found.push([key.slice(xattrPrefix.length), Buffer.from(value, "latin1")]);
  }
  return found;
}

function typeOf(typeflag: string, name: string): EntryType {
  switch (typeflag) {
    case "0":
      return "file";
    case "\0":
      return name.endsWith("/") ? "directory" : "file";
    case "1":
      return "hardlink";
    case "2":
      return "symlink";
    case "3":
      return "char";
    case "4":
      return "block";
    case "5":
      return "directory";
    case "6":
      return "fifo";
    default:
      throw corrupt(`an entry of unknown type ${JSON.stringify(typeflag)}`);
  }
}

function decimal(value: string): number {
  const number = /^[+-]?\d{1,19}$/.test(value) ? Number(value) : Number.NaN;
  if (!Number.isSafeInteger(number)) throw corrupt("a pax number that is out of range");
  return number;
}

/** Seconds with an optional fraction, of which nine digits count. */
function time(value: string | undefined): Time | undefined {
  if (!value) return undefined;
  const match = /^([+-]?\d{1,15})(?:\.(\d*))?$/.exec(value);
  if (!match) throw corrupt("a malformed pax time");
  const nanoseconds = Number((match[2] ?? "").slice(0, 9).padEnd(9, "0"));
  const seconds = Number(match[1]);
  // A fraction counts away from zero: -1.25 is three quarters of a second after -2.
  if (value.startsWith("-") && nanoseconds > 0) {
    return { seconds: seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds };
  }
  return { seconds, nanoseconds };
}

function bounded(moment: Time): Time {
  return isBefore(moment, epoch) || isBefore(lastMoment, moment) ? epoch : moment;
}

function isBefore(a: Time, b: Time): boolean {
  return a.seconds < b.seconds || (a.seconds === b.seconds && a.nanoseconds < b.nanoseconds);
}
