// A tar writer with full control, for layers that no tool would write: any header, any order, right checksums.

import { gzipSync } from "node:zlib";

export interface TarEntry {
  readonly name: string | Buffer;
  readonly type?: string;
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  readonly mtime?: number;
  readonly linkName?: string;
  readonly content?: string | Buffer;
  /** What the header says, when that is not the content's length. */
  readonly size?: number;
  readonly major?: number;
  readonly minor?: number;
  /** pax records in front of the entry; values may hold any bytes. */
  readonly pax?: Readonly<Record<string, string | Buffer>>;
  /** Bytes put into the header as they are, by offset, before the checksum is taken. */
  readonly raw?: Readonly<Record<number, string | Buffer>>;
  /** Bytes changed in the finished header, by offset; the checksum is then that of the unchanged one. */
  readonly damage?: Readonly<Record<number, number>>;
}

const block = 512;

/** The archive with its two zero blocks. */
export function tar(entries: readonly TarEntry[], end = 2): Buffer {
  return Buffer.concat([...entries.flatMap(write), Buffer.alloc(end * block)]);
}

export function tarGz(entries: readonly TarEntry[]): Buffer {
  return gzipSync(tar(entries));
}

export const dir = (name: string, more: Partial<TarEntry> = {}): TarEntry => ({
  name: `${name}/`,
  type: "5",
  mode: 0o755,
  ...more,
});
export const file = (
  name: string | Buffer,
  content: string | Buffer = "",
  more: Partial<TarEntry> = {},
): TarEntry => ({ name, content, ...more });
export const symlink = (name: string, linkName: string, more: Partial<TarEntry> = {}): TarEntry => ({
  name,
  linkName,
  type: "2",
  mode: 0o777,
  ...more,
});
export const hardlink = (name: string, linkName: string, more: Partial<TarEntry> = {}): TarEntry => ({
  name,
  linkName,
  type: "1",
  ...more,
});

/** The magic of GNU tar, which has no prefix field and times of its own. */
export const gnuMagic = { 257: "ustar  \0" } as const;
/** GNU tar's way to give the next entry a long name ("L") or link target ("K"). */
export const gnuLong = (type: "L" | "K", value: string | Buffer): TarEntry => ({
  name: "././@LongLink",
  type,
  raw: gnuMagic,
  content: Buffer.concat([Buffer.from(value), Buffer.from([0])]),
});
/** An extended header of pax records that end as the caller likes. */
export const paxHeader = (type: "x" | "g", body: string | Buffer): TarEntry => ({
  name: "pax",
  type,
  content: body,
});

function write(entry: TarEntry): Buffer[] {
  const parts: Buffer[] = [];
  const pax = { ...entry.pax };
  if (entry.name.length > 100) pax["path"] = entry.name;
  if ((entry.linkName?.length ?? 0) > 100) pax["linkpath"] = entry.linkName ?? "";
  if (Object.keys(pax).length > 0) {
    const body = Buffer.concat(Object.entries(pax).map(([key, value]) => record(key, value)));
    parts.push(header({ name: "pax", type: "x", size: body.length }), padded(body));
  }
  const content = Buffer.from(entry.content ?? "");
  parts.push(header({ ...entry, size: entry.size ?? content.length }), padded(content));
  return parts;
}

function header(entry: TarEntry & { readonly size: number }): Buffer {
  const bytes = Buffer.alloc(block);
  Buffer.from(entry.name).copy(bytes, 0, 0, 100);
  number(bytes, 100, 8, entry.mode ?? 0o644);
  number(bytes, 108, 8, entry.uid ?? 0);
  number(bytes, 116, 8, entry.gid ?? 0);
  number(bytes, 124, 12, entry.size);
  number(bytes, 136, 12, entry.mtime ?? 1_600_000_000);
  bytes.write(entry.type ?? "0", 156, "latin1");
  Buffer.from(entry.linkName ?? "").copy(bytes, 157, 0, 100);
  bytes.write("ustar\x0000", 257, "latin1");
  number(bytes, 329, 8, entry.major ?? 0);
  number(bytes, 337, 8, entry.minor ?? 0);
  for (const [offset, field] of Object.entries(entry.raw ?? {}))
    Buffer.from(field as Buffer).copy(bytes, Number(offset));
  bytes.fill(" ", 148, 156);
  const sum = bytes.reduce((total, byte) => total + byte, 0);
  bytes.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  for (const [offset, byte] of Object.entries(entry.damage ?? {})) bytes[Number(offset)] = byte;
  return bytes;
}

/** Octal where it fits, base-256 where not. */
function number(bytes: Buffer, at: number, length: number, value: number): void {
  if (value >= 0 && value < 8 ** (length - 1)) {
    bytes.write(`${value.toString(8).padStart(length - 1, "0")}\0`, at, "latin1");
    return;
  }
  const big = BigInt.asUintN(length * 8, BigInt(value));
  for (let index = 0; index < length; index++)
    bytes[at + index] = Number((big >> BigInt(8 * (length - 1 - index))) & 0xffn);
  bytes[at] = (bytes[at] ?? 0) | 0x80;
}

/** One pax record, its length included. */
export function record(key: string, value: string | Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from("\n")]);
  let length = rest.length;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

function padded(content: Buffer): Buffer {
  return Buffer.concat([content, Buffer.alloc((block - (content.length % block)) % block)]);
}
