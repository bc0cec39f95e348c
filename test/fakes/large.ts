// Layers that are too large for a test to hold: pieces that repeat, made when a range of them is asked for.
//
// gzip members may follow one another, so a piece is compressed once however often it is there.

import { createHash, randomBytes } from "node:crypto";
import { gzipSync } from "node:zlib";
import { type Content, type FakeLayer, sha256 } from "./registry.ts";
import { dir, file, tar } from "./tar.ts";

interface Piece {
  readonly bytes: Buffer;
  readonly count: number;
}

class Repeated implements Content {
  readonly length: number;
  readonly digest: string;
  readonly #pieces: readonly Piece[];

  constructor(pieces: readonly Piece[]) {
    this.#pieces = pieces;
    this.length = pieces.reduce((sum, { bytes, count }) => sum + bytes.length * count, 0);
    const hash = createHash("sha256");
    for (const { bytes, count } of pieces) for (let done = 0; done < count; done++) hash.update(bytes);
    this.digest = `sha256:${hash.digest("hex")}`;
  }

  subarray(start: number, end: number): Buffer {
    const result = Buffer.allocUnsafe(end - start);
    let first = 0;
    for (const { bytes, count } of this.#pieces) {
      const last = first + bytes.length * count;
      for (let at = Math.max(start, first); at < Math.min(end, last); ) {
        const from = (at - first) % bytes.length;
        at += bytes.copy(result, at - start, from, from + Math.min(end, last) - at);
      }
      first = last;
    }
    return result;
  }
}

const mebibyte = 1024 * 1024;

/** One file of so many MiB that do not compress, so that blob, stream and file are equally large. */
export function fat(mebibytes: number): FakeLayer<Content> {
  const archive = tar([dir("fat"), file("fat/file", "", { size: mebibytes * mebibyte })]);
  const [head, end] = [archive.subarray(0, -1024), archive.subarray(-1024)];
  const pieces = [
    { bytes: head, count: 1 },
    { bytes: randomBytes(mebibyte), count: mebibytes },
    { bytes: end, count: 1 },
  ];
  const stored = pieces.map(({ bytes, count }) => ({ bytes: gzipSync(bytes, { level: 0 }), count }));
  const bytes = new Repeated(stored);
  return { bytes, digest: bytes.digest, diffID: new Repeated(pieces).digest };
}

/** Empty files, in folders of so many. */
export function many(files: number, perFolder: number): FakeLayer {
  const folders = Math.ceil(files / perFolder);
  const one = tar([file("many/000000/000000")]).subarray(0, 512);
  const archive = Buffer.alloc(512 * (files + folders + 1) + 1024);
  let at = tar([dir("many")]).copy(archive, 0, 0, 512);
  for (let folder = 0; folder < folders; folder++) {
    at += tar([dir(`many/${digits(folder)}`)]).copy(archive, at, 0, 512);
    for (let index = folder * perFolder; index < Math.min(files, (folder + 1) * perFolder); index++) {
      at += numbered(one, folder, index).copy(archive, at);
    }
  }
  return { bytes: gzipSync(archive, { level: 1 }), diffID: sha256(archive) };
}

const digits = (value: number): string => String(value).padStart(6, "0");

/** The same header with other numbers in its name, and the checksum that goes with them. */
function numbered(header: Buffer, folder: number, index: number): Buffer {
  const result = Buffer.from(header);
  const name = `${digits(folder)}/${digits(index)}`;
  let sum = Number.parseInt(header.toString("latin1", 148, 154), 8);
  for (const character of name) sum += character === "/" ? 0 : Number(character);
  result.write(name, "many/".length, "latin1");
  result.write(sum.toString(8).padStart(6, "0"), 148, "latin1");
  return result;
}
