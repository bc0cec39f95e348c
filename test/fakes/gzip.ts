// gzip members with any header (RFC 1952, 2.3), which no packer would write.

import { deflateRawSync, gzipSync } from "node:zlib";

export interface GzipHeader {
  readonly name?: string;
  readonly comment?: string;
  readonly extra?: Buffer;
  /** A checksum of the header itself. */
  readonly sum?: "right" | "wrong";
  /** More bits of the flags' byte. */
  readonly flags?: number;
  readonly method?: number;
}

export function gzipMember(content: Uint8Array, header: GzipHeader = {}): Buffer {
  // CRC and length of the content are as any packer writes them.
  return Buffer.concat([headerOf(header), deflateRawSync(content), gzipSync(content).subarray(-8)]);
}

function headerOf({ name, comment, extra, sum, flags = 0, method = 8 }: GzipHeader): Buffer {
  const announced =
    flags |
    (sum === undefined ? 0 : 2) |
    (extra === undefined ? 0 : 4) |
    (name === undefined ? 0 : 8) |
    (comment === undefined ? 0 : 16);
  const fields: Buffer[] = [Buffer.from([0x1f, 0x8b, method, announced, 0, 0, 0, 0, 0, 255])];
  if (extra !== undefined) fields.push(Buffer.from([extra.length & 0xff, extra.length >> 8]), extra);
  for (const text of [name, comment]) if (text !== undefined) fields.push(Buffer.from(`${text}\0`, "latin1"));
  const bytes = Buffer.concat(fields);
  if (sum === undefined) return bytes;
  // The lower half of its CRC-32, which gzip's own trailer begins with.
  const crc = Buffer.from(gzipSync(bytes).subarray(-8, -6));
  if (sum === "wrong") crc[0] = (crc[0] ?? 0) ^ 1;
  return Buffer.concat([bytes, crc]);
}
