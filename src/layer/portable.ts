// The portable engine: pako and tar-fs in the same worker threads, for machines where the addon cannot be loaded.
//
// Our own parser reads the tar stream first and judges every entry (plain.ts); the same bytes then go to tar-fs, which
// writes. Owner, mode and times are set behind it, since tar-fs leaves some of them out. Whatever needs more than
// Node's file system calls is `unsupported`, so that containerd pulls the image; what is taken ends in the same tree
// as with the native engine.

import { Inflate } from "pako";
import { PullError } from "../errors.ts";
import { layerPacking } from "../oci/media.ts";
import { BlobCheck, TarCheck } from "./check.ts";
import { type Compression, type Decompressor, type Output, PassThrough, Sniffer } from "./decompress.ts";
import { noDirectories } from "./directories.ts";
import type { LayerJob } from "./layer.ts";
import { PlainArchive } from "./plain.ts";
import { SpoolReader } from "./reader.ts";
import { TarParser } from "./tar.ts";
import type { WholeLayer } from "./unpack.ts";
import { Writer } from "./writer.ts";

/** Small, because what a piece inflates to (up to 1032 times as much) waits in memory for tar-fs. */
const pieceBytes = 16 * 1024;

export async function unpackPortable(job: LayerJob, isCancelled: () => boolean): Promise<WholeLayer> {
  const blobCheck = new BlobCheck(job.descriptor, job.limits);
  const tarCheck = new TarCheck(job.descriptor.digest, job.diffID);
  const archive = new PlainArchive(job.base);
  const parser = new TarParser(archive, job.limits.entriesMax);
  const waiting: Buffer[] = [];
  const output: Output = (buffer, start, end) => {
    blobCheck.inflated(end - start);
    tarCheck.tar(buffer.subarray(start, end));
    const piece = Buffer.from(buffer.subarray(start, end));
    // tar-fs would read on behind the archive's end.
    waiting.push(piece.subarray(0, parser.feed(piece, 0, piece.length)));
  };
  using sniffer = new Sniffer(layerPacking(job.descriptor.mediaType), (compression) =>
    openPortable(compression, output),
  );
  using spool = new SpoolReader(job.spool, isCancelled);
  await using writer = new Writer(job.staging, archive);
  // tar-fs writes in this same thread, which must not block while it waits for bytes.
  await spool.ready();
  for (let chunk = spool.next(); chunk; chunk = spool.next()) {
    blobCheck.blob(chunk);
    for (let at = 0; at < chunk.length; at += pieceBytes) {
      sniffer.push(chunk, at, Math.min(chunk.length, at + pieceBytes));
      for (const piece of waiting.splice(0)) await writer.write(piece);
    }
    await spool.ready();
  }
  sniffer.end();
  parser.end();
  for (const piece of waiting.splice(0)) await writer.write(piece);
  await writer.end();
  blobCheck.finish();
  tarCheck.finish();
  await writer.describe();
  return {
    bytes: blobCheck.tarBytes,
    entries: parser.entries,
    implicitDirectories: noDirectories,
    waitedMs: spool.waitedMs,
    caughtUpAtMs: spool.caughtUpAtMs,
    usage: undefined,
  };
}

function openPortable(compression: Compression, output: Output): Decompressor {
  switch (compression) {
    case "gzip":
      return new PakoInflate(output);
    case "zstd":
      throw new PullError("unsupported", "the portable engine cannot read zstd");
    case "none":
      return new PassThrough(output);
  }
}

/** gzip through pako, one member after another. */
export class PakoInflate implements Decompressor {
  readonly #output: Output;
  #inflate: Inflate;

  constructor(output: Output) {
    this.#output = output;
    this.#inflate = this.#begin();
  }

  push(buffer: Buffer, start: number, end: number): void {
    if (start === end) return;
    // pako goes on by itself when a member ends inside of a chunk, but not when it ends together with one.
    if (this.#inflate.ended) this.#inflate = this.#begin();
    this.#inflate.push(new Uint8Array(buffer.subarray(start, end)));
    const { err, ended } = this.#inflate;
    // pako takes zeros behind a member for padding; Go does not. Only its inner state, typed private, tells.
    const { strm } = this.#inflate as unknown as { readonly strm: { readonly avail_in: number } };
    if (err !== 0 || (ended && strm.avail_in > 0))
      throw new PullError("corrupt", "the layer is not valid gzip");
  }

  end(): void {
    if (!this.#inflate.ended) throw new PullError("corrupt", "the gzip stream is truncated");
  }

  [Symbol.dispose](): void {}

  #begin(): Inflate {
    // 15 bits of window, and 16 says that nothing but gzip is expected.
    const inflate = new Inflate({ windowBits: 15 + 16 });
    inflate.onData = (chunk: Uint8Array): void => {
      this.#output(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length), 0, chunk.length);
    };
    return inflate;
  }
}
