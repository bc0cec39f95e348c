// The data plane: spool, sha256, inflate in one lane; sha256, tar, apply in the other; right behind the watermark.
//
// A small layer goes through both in one thread, a large one through two threads with a ring between them. Memory is a few
// fixed buffers, whatever the layer's size. The stream is read to its very end, since bytes after the archive's end
// count for both digests. When both lanes fail it is the second's failure that counts: it came earlier in the stream.

import type { Binding } from "../native.ts";
import { layerPacking } from "../oci/media.ts";
import { stopwatch, type ThreadUsage } from "../usage.ts";
import { Applier } from "./apply.ts";
import { BlobCheck, TarCheck, wrongDiffID } from "./check.ts";
import { openNative, Sniffer } from "./decompress.ts";
import type { ImplicitDirectories, LayerJob } from "./layer.ts";
import { CallbackOutlet, type Outlet, type Room } from "./outlet.ts";
import { SpoolReader } from "./reader.ts";
import { type Ring, RingReader, RingWriter } from "./ring.ts";
import { TarParser } from "./tar.ts";
import { Tree } from "./tree.ts";

/** What the first lane has to tell in the end. */
export interface InflatedLayer {
  /** Of the tar stream. */
  readonly bytes: number;
  readonly waitedMs: number;
  /** See {@link SpoolReader.caughtUpAtMs}. */
  readonly caughtUpAtMs: number | undefined;
  /** Of the lane's thread; undefined where that is not known. */
  readonly usage: ThreadUsage | undefined;
}

/** What the second lane has to tell. */
export interface AppliedLayer {
  readonly entries: number;
  readonly implicitDirectories: ImplicitDirectories;
  readonly usage: ThreadUsage | undefined;
}

/** What one that is both has to tell. */
export type WholeLayer = InflatedLayer & AppliedLayer;

/** Both lanes in this thread. */
export function unpackNative(job: LayerJob, native: Binding, isCancelled: () => boolean): WholeLayer {
  const usage = stopwatch();
  using second = new ApplyLane(job, native, isCancelled);
  const outlet = new CallbackOutlet((buffer, start, end) => second.take(buffer, start, end));
  const inflated = inflateTo(outlet, job, native, isCancelled);
  const applied = second.finish();
  return { ...inflated, ...applied, usage: usage() };
}

/** The first lane, whose thread fills the ring. */
export function inflateLayer(
  job: LayerJob,
  ring: Ring,
  native: Binding,
  isCancelled: () => boolean,
): InflatedLayer {
  const usage = stopwatch();
  using writer = new RingWriter(ring, isCancelled);
  const inflated = inflateTo(writer, job, native, isCancelled);
  writer.end();
  return { ...inflated, usage: usage() };
}

/** The second lane, whose thread empties it. */
export function applyLayer(
  job: LayerJob,
  ring: Ring,
  native: Binding,
  isCancelled: () => boolean,
): AppliedLayer {
  const usage = stopwatch();
  using reader = new RingReader(ring, isCancelled);
  using lane = new ApplyLane(job, native, isCancelled);
  for (let room = reader.next(); room; room = reader.next()) lane.take(room.buffer, room.start, room.end);
  return { ...lane.finish(), usage: usage() };
}

function inflateTo(
  outlet: Outlet,
  job: LayerJob,
  native: Binding,
  isCancelled: () => boolean,
): Omit<InflatedLayer, "usage"> {
  const check = new BlobCheck(job.descriptor, job.limits);
  const counted = new CountedOutlet(outlet, check);
  using spool = new SpoolReader(job.spool, isCancelled);
  if (layerPacking(job.descriptor.mediaType) === "none") passOn(spool, counted, check);
  else inflate(spool, counted, check, native);
  check.finish();
  const { waitedMs, caughtUpAtMs } = spool;
  return { bytes: check.tarBytes, waitedMs, caughtUpAtMs };
}

/** A blob that is the tar stream is read to where the second lane looks at it. */
function passOn(spool: SpoolReader, outlet: Outlet, check: BlobCheck): void {
  for (;;) {
    const { buffer, start, end } = outlet.room();
    const read = spool.into(buffer, start, end);
    if (read === 0) break;
    check.blob(buffer.subarray(start, start + read));
    outlet.filled(read);
    outlet.flush();
  }
}

function inflate(spool: SpoolReader, outlet: Outlet, check: BlobCheck, native: Binding): void {
  using sniffer = new Sniffer("sniff", (compression) => openNative(native, compression, outlet));
  for (let chunk = spool.next(); chunk; chunk = spool.next()) {
    check.blob(chunk);
    sniffer.push(chunk, 0, chunk.length);
    outlet.flush();
  }
  sniffer.end();
  outlet.flush();
}

/** Keeps to the limits on what comes out. */
class CountedOutlet implements Outlet {
  readonly #outlet: Outlet;
  readonly #check: BlobCheck;

  constructor(outlet: Outlet, check: BlobCheck) {
    this.#outlet = outlet;
    this.#check = check;
  }

  room(): Room {
    return this.#outlet.room();
  }

  filled(bytes: number): void {
    this.#check.inflated(bytes);
    this.#outlet.filled(bytes);
  }

  flush(): void {
    this.#outlet.flush();
  }
}

class ApplyLane implements Disposable {
  /** Undefined when the blob is the tar stream, whose digest the first lane finds out. */
  readonly #check: TarCheck | undefined;
  readonly #tree: Tree;
  readonly #applier: Applier;
  readonly #parser: TarParser;

  /** Throws `corrupt` for a blob without packing that is announced under two digests. */
  constructor(
    { descriptor, diffID, staging, base, limits }: LayerJob,
    native: Binding,
    isCancelled: () => boolean,
  ) {
    const isPlain = layerPacking(descriptor.mediaType) === "none";
    if (isPlain && descriptor.digest !== diffID)
      throw wrongDiffID(descriptor.digest, descriptor.digest, diffID);
    this.#check = isPlain ? undefined : new TarCheck(descriptor.digest, diffID);
    this.#tree = new Tree(native, staging);
    this.#applier = new Applier(native, this.#tree, base, isCancelled);
    this.#parser = new TarParser(this.#applier, limits.entriesMax);
  }

  take(buffer: Buffer, start: number, end: number): void {
    this.#check?.tar(buffer.subarray(start, end));
    this.#parser.feed(buffer, start, end);
  }

  finish(): Omit<AppliedLayer, "usage"> {
    this.#parser.end();
    this.#check?.finish();
    this.#applier.complete();
    return { entries: this.#parser.entries, implicitDirectories: this.#tree.directories.implicit() };
  }

  [Symbol.dispose](): void {
    this.#applier[Symbol.dispose]();
    this.#tree[Symbol.dispose]();
  }
}
