// The data plane's loop, in a worker thread: spool, sha256, inflate, sha256, tar, apply, right behind the watermark.
//
// Memory is a few fixed buffers, whatever the layer's size. The stream is read to its very end, since bytes after the
// archive's end count for both digests.

import { closeSync, openSync, readSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import { PullError } from "../errors.ts";
import type { Binding } from "../native.ts";
import { layerPacking } from "../oci/media.ts";
import { isReady, waitForBytes } from "../spool.ts";
import { Applier } from "./apply.ts";
import { Checks } from "./check.ts";
import { openNative, Sniffer } from "./decompress.ts";
import type { LayerJob, UnpackedLayer } from "./layer.ts";
import { TarParser } from "./tar.ts";
import { Tree } from "./tree.ts";

const inputBytes = 256 * 1024;
const pollMs = 10;

export function unpackNative(job: LayerJob, native: Binding, isCancelled: () => boolean): UnpackedLayer {
  const began = performance.now();
  const checks = new Checks(job.descriptor, job.diffID, job.limits);
  using tree = new Tree(native, job.staging);
  using applier = new Applier(native, tree, job.base, isCancelled);
  const parser = new TarParser(applier, job.limits.entriesMax);
  const output = (buffer: Buffer, start: number, end: number): void => {
    checks.tar(buffer.subarray(start, end));
    parser.feed(buffer, start, end);
  };
  using sniffer = new Sniffer(layerPacking(job.descriptor.mediaType), (compression) =>
    openNative(native, compression, output),
  );
  using spool = new SpoolReader(job.spool, isCancelled);
  for (let chunk = spool.next(); chunk; chunk = spool.next()) {
    checks.blob(chunk);
    sniffer.push(chunk, 0, chunk.length);
  }
  sniffer.end();
  parser.end();
  checks.finish();
  applier.complete();
  return {
    bytes: checks.tarBytes,
    entries: parser.entries,
    implicitDirectories: tree.directories.implicit(),
    waitedMs: spool.waitedMs,
    elapsedMs: performance.now() - began,
  };
}

/** Reads a spool from start to end behind its watermark. Blocks the thread; for workers only. */
export class SpoolReader implements Disposable {
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

  /** Resolves once next() need not block. For what must let its thread's other work go on. */
  async ready(): Promise<void> {
    const began = performance.now();
    while (!isReady(this.#spool, this.#position) && !this.#isCancelled()) await setTimeout(pollMs);
    this.waitedMs += performance.now() - began;
  }

  /** Some bytes, valid until the next call, or undefined at the end. */
  next(): Buffer | undefined {
    if (this.#position === this.#spool.sizeBytes) return undefined;
    const began = performance.now();
    const watermark = waitForBytes(this.#spool, this.#position, this.#isCancelled);
    this.waitedMs += performance.now() - began;
    const wanted = Math.min(inputBytes, watermark - this.#position);
    const read = readSync(this.#fd, this.#buffer, 0, wanted, this.#position);
    if (read === 0) throw new PullError("internal", `the spool ends at ${this.#position} bytes`);
    this.#position += read;
    return this.#buffer.subarray(0, read);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}
