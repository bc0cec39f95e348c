// Layers made for measuring what one more of something costs: of any number of entries, and of any number of bytes.

import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { gzipSync } from "node:zlib";
import { dir, file, type TarEntry, tar } from "../test/fakes/tar.ts";
import type { TestLayer } from "../test/harness/images.ts";

/** A layer with one file that nothing compresses. */
export function noiseLayer(name: string, bytes: number): TestLayer {
  return { bytes: gzipSync(tar([file(name, randomBytes(bytes))]), { level: 1 }) };
}

/** Small files, a hundred in each directory, as packages of scripts have them. */
export function entriesLayer(count: number): TestLayer {
  const entries: TarEntry[] = [];
  for (let index = 0; entries.length < count; index++) {
    if (index % 100 === 0) entries.push(dir(`d${index / 100}`));
    if (entries.length < count)
      entries.push(file(`d${Math.floor(index / 100)}/f${index}`, `content of ${index}`));
  }
  return { bytes: gzipSync(tar(entries), { level: 1 }) };
}

const chunkBytes = 1024 * 1024;
const fileBytes = 1024 * 1024 * 1024;

/**
 * A layer of so many bytes of content, a whole number of MiB, in files of 1 GiB at most. It is never in memory as a whole,
 * and packs to about a tenth: of each MiB as much is noise.
 */
export async function bulkLayer(bytes: number): Promise<TestLayer> {
  const pigz = spawn("pigz", ["-1", "-c"], { stdio: ["pipe", "pipe", "inherit"] });
  const hash = createHash("sha256");
  const send = async (part: Buffer): Promise<void> => {
    hash.update(part);
    if (!pigz.stdin.write(part)) await once(pigz.stdin, "drain");
  };
  const packed: Buffer[] = [];
  pigz.stdout.on("data", (part: Buffer) => packed.push(part));
  const ended = once(pigz.stdout, "end");
  for (let left = bytes; left > 0; left -= fileBytes) {
    const size = Math.min(left, fileBytes);
    await send(tar([file(`bulk/${left}`, "", { size })], 0));
    for (let at = 0; at < size; at += chunkBytes) {
      const chunk = Buffer.alloc(chunkBytes, "text that packs well; ");
      randomBytes(Math.floor(chunkBytes / 10)).copy(chunk);
      await send(chunk);
    }
  }
  await send(Buffer.alloc(1024));
  pigz.stdin.end();
  await ended;
  return { bytes: Buffer.concat(packed), diffID: `sha256:${hash.digest("hex")}` };
}
