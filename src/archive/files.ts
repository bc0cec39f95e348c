// The files of an archive: where in it each of them lies, so that they can be read in any order.
//
// Only headers are read to find that out. Nothing is unpacked here: a file of the archive is never a file of the node, and
// its name leads nowhere but into this list.

import { posix } from "node:path";
import { PullError, throwIfAborted } from "../errors.ts";
import type { Entry, EntrySink } from "../layer/entry.ts";
import { TarParser } from "../layer/tar.ts";
import { calls, openSource, readAll, type Source, type SourceOptions } from "./source.ts";

/** More than any archive of images has, and most bytes of their names and links together. */
const entriesMax = 500_000;
const namesBytesMax = 64 * 1024 * 1024;
const headerBytes = 64 * 1024;
const copyBytes = 1024 * 1024;
/** As the kernel follows links. */
const linksMax = 40;

/** A file's content within the archive. */
export interface Place {
  readonly offset: number;
  readonly sizeBytes: number;
}

export class Files implements AsyncDisposable {
  readonly #source: Source;
  readonly #index: Index;

  private constructor(source: Source, index: Index) {
    this.#source = source;
    this.#index = index;
  }

  /** Throws `invalid` for what cannot be opened or is no archive, `corrupt` for a broken one. */
  static async open(options: SourceOptions, signal: AbortSignal): Promise<Files> {
    const source = await openSource(options, signal);
    try {
      return new Files(source, await indexOf(source.fd, signal));
    } catch (error) {
      await source[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Where the content of a file is, through links within the archive; undefined when there is none of this name. */
  find(name: string): Place | undefined {
    let at = normal(name);
    for (let links = 0; links < linksMax; links++) {
      const target = this.#index.links.get(at);
      if (target === undefined) return this.#index.places.get(at);
      at = target;
    }
    return undefined;
  }

  /** The whole content. Throws `corrupt` when it is longer than this, or than the archive. */
  async read({ offset, sizeBytes }: Place, bytesMax: number): Promise<Buffer> {
    if (sizeBytes > bytesMax)
      throw new PullError("corrupt", `a file of ${sizeBytes} bytes where ${bytesMax} are the most`);
    const bytes = Buffer.alloc(sizeBytes);
    await readAll(this.#source.fd, bytes, offset);
    return bytes;
  }

  /** The content from a position on, in pieces that are valid until the next one is asked for. */
  async *pieces({ offset, sizeBytes }: Place, from = 0): AsyncGenerator<Buffer> {
    const buffer = Buffer.allocUnsafeSlow(Math.max(1, Math.min(copyBytes, sizeBytes - from)));
    for (let at = from; at < sizeBytes; ) {
      const piece = buffer.subarray(0, Math.min(buffer.length, sizeBytes - at));
      await readAll(this.#source.fd, piece, offset + at);
      yield piece;
      at += piece.length;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#source[Symbol.asyncDispose]();
  }
}

interface Index {
  readonly places: Map<string, Place>;
  readonly links: Map<string, string>;
}

/** Reads the headers, and goes over the contents without reading them. */
async function indexOf(fd: number, signal: AbortSignal): Promise<Index> {
  const indexer = new Indexer();
  const parser = new TarParser(indexer, entriesMax);
  const buffer = Buffer.allocUnsafeSlow(headerBytes);
  const { size } = await calls.fstat(fd);
  try {
    for (let position = 0; ; ) {
      throwIfAborted(signal);
      if (position > size) throw new PullError("corrupt", `the archive is truncated at byte ${size}`);
      const { bytesRead } = await calls.read(fd, buffer, 0, buffer.length, position);
      if (bytesRead === 0) break;
      indexer.position = position;
      if (parser.feed(buffer, 0, bytesRead) < bytesRead) break;
      position += bytesRead;
      indexer.position = position;
      const { contentLeftBytes } = parser;
      if (contentLeftBytes === 0) continue;
      parser.skipContent();
      position += contentLeftBytes;
    }
    parser.end();
  } catch (error) {
    const { code, message } = PullError.from(error);
    if (code !== "corrupt" || parser.entries > 0) throw error;
    throw new PullError("invalid", `it is no archive: ${message}`, { cause: error });
  }
  return indexer;
}

class Indexer implements EntrySink, Index {
  readonly places = new Map<string, Place>();
  readonly links = new Map<string, string>();
  /** Of the buffer that is being looked at, in the archive. */
  position = 0;
  #begun: { readonly name: string; readonly sizeBytes: number } | undefined;
  #namesBytes = 0;

  global(): void {}

  whole(entry: Entry, _buffer: Buffer, start: number): void {
    this.#count(entry);
    const name = normal(textOf(entry.name));
    this.places.delete(name);
    this.links.delete(name);
    const target = textOf(entry.linkName);
    if (entry.type === "file")
      this.places.set(name, { offset: this.position + start, sizeBytes: entry.sizeBytes });
    if (entry.type === "symlink") this.links.set(name, normal(posix.join(posix.dirname(name), target)));
    if (entry.type === "hardlink") this.links.set(name, normal(target));
  }

  begin(entry: Entry): void {
    this.#count(entry);
    this.#begun = { name: normal(textOf(entry.name)), sizeBytes: entry.sizeBytes };
  }

  piece(_buffer: Buffer, start: number): void {
    this.#place(this.position + start);
  }

  finish(): void {
    // Where nothing of the content was seen, it begins behind what was.
    this.#place(this.position);
  }

  #count({ name, linkName }: Entry): void {
    this.#namesBytes += name.length + linkName.length;
    if (this.#namesBytes > namesBytesMax)
      throw new PullError("exhausted", `its names are over ${namesBytesMax} bytes long together`);
  }

  #place(offset: number): void {
    if (this.#begun === undefined) return;
    const { name, sizeBytes } = this.#begun;
    this.links.delete(name);
    this.places.set(name, { offset, sizeBytes });
    this.#begun = undefined;
  }
}

function textOf(bytes: string): string {
  return Buffer.from(bytes, "latin1").toString("utf8");
}

/** `./blobs/x` and `/blobs/x` are `blobs/x`; nothing is above the archive. */
function normal(name: string): string {
  return posix.join("/", name).replace(/^\/|\/$/g, "");
}
