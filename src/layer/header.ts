// One 512-byte tar header block, read as Go's archive/tar reads it. Source of the layout: POSIX.1-2017, pax, "ustar
// Interchange Format", and the GNU tar manual, "Basic Tar Format".

import { PullError } from "../errors.ts";
import type { Time } from "./entry.ts";

/** A header before extended headers are applied to it. Strings are byte strings. */
export interface RawHeader {
  readonly typeflag: string;
  readonly name: string;
  readonly linkName: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly sizeBytes: number;
  readonly mtime: Time;
  readonly atime: Time | undefined;
  readonly major: number;
  readonly minor: number;
}

const zero = Buffer.alloc(512);

export function isZeroBlock(block: Buffer, at: number): boolean {
  return block[at] === 0 && block.compare(zero, 0, 512, at, at + 512) === 0;
}

/** Throws `corrupt` when the checksum or a number is wrong. */
export function readHeader(block: Buffer, at: number): RawHeader {
  checkSum(block, at);
  const magic = block.toString("latin1", at + 257, at + 265);
  const isUstar = magic.startsWith("ustar\0");
  const isGnu = magic === "ustar  \0";
  const isStar = isUstar && block.toString("latin1", at + 508, at + 512) === "tar\0";
  const name = text(block, at, 100);
  const gnu = isGnu ? gnuFields(block, at) : { prefix: "", atime: undefined };
  const prefix = isUstar ? text(block, at + 345, isStar ? 131 : 155) : gnu.prefix;
  const typeflag = String.fromCharCode(block[at + 156] ?? 0);
  const hasDevice = isUstar || isGnu;
  const atime = isStar ? { seconds: number(block, at + 476, 12), nanoseconds: 0 } : gnu.atime;
  // The ctime behind it is not used, but must be one.
  if (isStar) number(block, at + 488, 12);
  return {
    typeflag,
    name: prefix === "" ? name : `${prefix}/${name}`,
    linkName: text(block, at + 157, 100),
    mode: number(block, at + 100, 8),
    uid: number(block, at + 108, 8),
    gid: number(block, at + 116, 8),
    sizeBytes: size(number(block, at + 124, 12)),
    mtime: { seconds: number(block, at + 136, 12), nanoseconds: 0 },
    atime,
    major: hasDevice ? number(block, at + 329, 8) : 0,
    minor: hasDevice ? number(block, at + 337, 8) : 0,
  };
}

/**
 * GNU has times where ustar has its prefix. Go before 1.8 wrote prefixes there all the same, into images that are still
 * around; so what is no time and is ASCII is taken for one, as Go's reader does (golang.org/issue/12594).
 */
function gnuFields(block: Buffer, at: number): { readonly prefix: string; readonly atime: Time | undefined } {
  try {
    // The ctime behind it is not used, but tells a prefix from times.
    if (block[at + 357] !== 0) number(block, at + 357, 12);
    const atime =
      block[at + 345] === 0 ? undefined : { seconds: number(block, at + 345, 12), nanoseconds: 0 };
    return { prefix: "", atime };
  } catch {
    const prefix = text(block, at + 345, 155);
    return { prefix: isAscii(prefix) ? prefix : "", atime: undefined };
  }
}

function isAscii(value: string): boolean {
  for (let index = 0; index < value.length; index++) if (value.charCodeAt(index) >= 0x80) return false;
  return true;
}

/** A size that can be counted with; throws `corrupt` for a negative or absurd one. */
export function size(value: number): number {
  if (!Number.isSafeInteger(value) || value < 0) throw corrupt(`a size of ${value} bytes`);
  return value;
}

/** The bytes up to the first NUL. */
export function text(block: Buffer, at: number, length: number): string {
  let end = at;
  while (end < at + length && block[end] !== 0) end += 1;
  return block.toString("latin1", at, end);
}

/** The sum of all bytes with the checksum's own field as blanks; some old writers summed signed bytes. */
function checkSum(block: Buffer, at: number): void {
  const expected = octal(block, at + 148, 8);
  let unsigned = 0;
  for (let index = at; index < at + 512; index++) unsigned += block[index] ?? 0;
  for (let index = at + 148; index < at + 156; index++) unsigned += 32 - (block[index] ?? 0);
  if (unsigned === expected) return;
  let signed = 0;
  for (let index = at; index < at + 512; index++) {
    const inField = index >= at + 148 && index < at + 156;
    signed += inField ? 32 : ((block[index] ?? 0) << 24) >> 24;
  }
  if (signed !== expected) throw corrupt("a header with a wrong checksum");
}

/** Octal digits, or base-256 when the top bit of the first byte is set (a GNU extension for what octal cannot hold). */
function number(block: Buffer, at: number, length: number): number {
  const first = block[at] ?? 0;
  if ((first & 0x80) === 0) return octal(block, at, length);
  const isNegative = (first & 0x40) !== 0;
  let value = isNegative ? -1n : 0n;
  for (let index = at; index < at + length; index++) {
    const byte = block[index] ?? 0;
    // The marker bit of the first byte is not part of the number; sign-extend around it.
    const digit = index === at ? (isNegative ? byte | 0x80 : byte & 0x7f) : byte;
    value = index === at && isNegative ? BigInt((digit << 24) >> 24) : value * 256n + BigInt(digit);
  }
  const result = Number(value);
  if (!Number.isSafeInteger(result)) throw corrupt("a number that is out of range");
  return result;
}

function octal(block: Buffer, at: number, length: number): number {
  let [start, end] = [at, at + length];
  while (start < end && isBlank(block[start])) start += 1;
  while (end > start && isBlank(block[end - 1])) end -= 1;
  let value = 0;
  for (let index = start; index < end && block[index] !== 0; index++) {
    const digit = (block[index] ?? 0) - 0x30;
    if (digit < 0 || digit > 7) throw corrupt("a number that is not octal");
    value = value * 8 + digit;
  }
  return value;
}

function isBlank(byte: number | undefined): boolean {
  return byte === 0x20 || byte === 0;
}

export function corrupt(what: string): PullError {
  return new PullError("corrupt", `the archive holds ${what}`);
}

/** What containerd makes something of that is not ours to imitate; it then pulls the whole image. */
export function unsupported(what: string, where: string): PullError {
  return new PullError("unsupported", `left to containerd: ${what} ${JSON.stringify(where.slice(0, 200))}`);
}
