// The data plane's loop, in a worker thread: spool, sha256, inflate, sha256, tar, apply, right behind the watermark.
//
// Memory is a few fixed buffers, whatever the layer's size. The stream is read to its very end, since bytes after the
// archive's end count for both digests.

import { closeSync, openSync, readSync } from "node:fs";
import type { Binding } from "../native.ts";
import { layerPacking } from "../oci/media.ts";
import { waitForBytes } from "../spool.ts";
import { Applier } from "./apply.ts";
import { Checks } from "./check.ts";
import { openNative, Sniffer } from "./decompress.ts";
import type { LayerJob, UnpackedLayer } from "./layer.ts";
import { TarParser } from "./tar.ts";
import { Tree } from "./tree.ts";

const inputBytes = 256 * 1024;

export function unpackNative(job: LayerJob, native: Binding, isCancelled: () => boolean): UnpackedLayer {
  const began = performance.now();
  const checks = new Checks(job.descriptor, job.diffID, job.limits);
  using tree = new Tree(native, job.staging);
  using applier = new Applier(native, tree, job.base);
  const parser = new TarParser(applier, job.limits.entriesMax);
  const output = (buffer: Buffer, start: number, end: number): void => {
    checks.tar(buffer.subarray(start, end));
    parser.feed(buffer, start, end);
  };
  const sniffer = new Sniffer(layerPacking(job.descriptor.mediaType), (compression) =>
    openNative(native, compression, output),
  );
  const spool = new SpoolReader(job.spool, isCancelled);
  try {
    for (let chunk = spool.next(); chunk; chunk = spool.next()) {
      checks.blob(chunk);
      sniffer.push(chunk, 0, chunk.length);
    }
  } finally {
    spool.close();
  }
  sniffer.end();
  parser.end();
  checks.finish();
  applier.complete();
  return {
    bytes: checks.tarBytes,
    entries: parser.entries,
    implicitDirectories: tree.implicitDirectories,
    waitedMs: spool.waitedMs,
    elapsedMs: performance.now() - began,
  };
}

/** Reads a spool from start to end behind its watermark. Blocks the thread; for workers only. */
export class SpoolReader {
  readonly #spool: LayerJob["spool"];
  readonly #isCancelled: () => boolean;
  readonly #fd: number;
  readonly #buffer = Buffer.allocUnsafeSlow(inputBytes);
  #position = 0;
  waitedMs = 0;

  constructor(spool: LayerJob["spool"], isCancelled: () => boolean) {
    this.#spool = spool;
    this.#isCancelled = isCancelled;
    this.#fd = openSync(spool.path, "r");
  }

  /** Some bytes, valid until the next call, or undefined at the end. */
  next(): Buffer | undefined {
    if (this.#position === this.#spool.sizeBytes) return undefined;
    const began = performance.now();
    const watermark = waitForBytes(this.#spool, this.#position, this.#isCancelled);
    this.waitedMs += performance.now() - began;
    const wanted = Math.min(inputBytes, watermark - this.#position);
    const read = readSync(this.#fd, this.#buffer, 0, wanted, this.#position);
    this.#position += read;
    return this.#buffer.subarray(0, read);
  }

  close(): void {
    closeSync(this.#fd);
  }
}
