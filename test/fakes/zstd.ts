// zstd frames, by its own program, or by hand from raw and run-length blocks (RFC 8878, 3.1): not every Node can pack
// zstd.

import { spawnSync } from "node:child_process";

/** A raw block, or a byte repeated. */
export type ZstdBlock = Uint8Array | readonly [byte: number, count: number];

/** Longest content of one block. */
const blockMax = 128 * 1024;

/** One frame without checksum, with a window of 1 MiB. */
export function zstdFrame(blocks: readonly ZstdBlock[]): {
  readonly packed: Buffer;
  readonly content: Buffer;
} {
  const parts: Buffer[] = [Buffer.from("28b52ffd0050", "hex")];
  const content: Buffer[] = [];
  for (const block of [...blocks, new Uint8Array(0)]) {
    const isLast = parts.length === blocks.length + 1;
    const isRun = !(block instanceof Uint8Array);
    const size = isRun ? block[1] : block.length;
    if (size > blockMax) throw new RangeError(`a block of ${size} bytes`);
    const head = Buffer.alloc(3);
    head.writeUIntLE((isLast ? 1 : 0) | ((isRun ? 1 : 0) << 1) | (size << 3), 0, 3);
    parts.push(Buffer.concat([head, isRun ? Buffer.from([block[0]]) : block]));
    content.push(isRun ? Buffer.alloc(size, block[0]) : Buffer.from(block));
  }
  return { packed: Buffer.concat(parts), content: Buffer.concat(content) };
}

/** A frame that says nothing (RFC 8878, 3.1.2). */
export function skippableFrame(bytes: Uint8Array): Buffer {
  const head = Buffer.from("5a2a4d1800000000", "hex");
  head.writeUInt32LE(bytes.length, 4);
  return Buffer.concat([head, bytes]);
}

/** What the program makes of these bytes. */
export function packZstd(bytes: Uint8Array, ...flags: readonly string[]): Buffer {
  const run = spawnSync("zstd", ["-q", "-c", ...flags], { input: bytes, maxBuffer: 2 ** 30 });
  if (run.status !== 0) throw new Error(`zstd: ${run.error?.message ?? run.stderr.toString()}`);
  return run.stdout;
}
