// From a blob's bytes to the tar stream: gzip, zstd or nothing, decided by the media type and the first bytes.
//
// Compressed chunks are pushed in; the tar stream goes to an outlet, or in pieces to a callback.

import { PullError } from "../errors.ts";
import type { Binding, Inflater } from "../native.ts";
import type { Packing } from "../oci/media.ts";
import type { Outlet } from "./outlet.ts";

/** Takes buffer[start, end); must be done with it before it returns. */
export type Output = (buffer: Buffer, start: number, end: number) => void;

export interface Decompressor extends Disposable {
  push(buffer: Buffer, start: number, end: number): void;
  /** The blob is over. Throws `corrupt` when the compressed stream is not. */
  end(): void;
}

/** For a blob that is the tar stream itself. */
export class PassThrough implements Decompressor {
  readonly push: Output;

  constructor(output: Output) {
    this.push = output;
  }

  end(): void {}

  [Symbol.dispose](): void {}
}

/** How a stream is compressed. */
export type Compression = "gzip" | "zstd" | "none";

/** Bytes that a sniff wants to see, unless the blob is shorter. */
const magicBytes = 4;

/** A blob's compression by its first bytes (reference 4.5); unknown bytes pass through, as containerd lets them. */
export function sniff(head: Uint8Array): Compression {
  const [a, b, c, d] = head;
  if (a === 0x1f && b === 0x8b && c === 0x08) return "gzip";
  if (a === 0x28 && b === 0xb5 && c === 0x2f && d === 0xfd) return "zstd";
  // A skippable frame (RFC 8878, 3.1.2) may come before the first real one.
  if (a !== undefined && (a & 0xf0) === 0x50 && b === 0x2a && c === 0x4d && d === 0x18) return "zstd";
  return "none";
}

/** Collects the first bytes, then hands everything to the decompressor that they call for. */
export class Sniffer implements Decompressor {
  readonly #open: (compression: Compression) => Decompressor;
  #head: Buffer = Buffer.alloc(0);
  #inner: Decompressor | undefined;

  constructor(packing: Packing, open: (compression: Compression) => Decompressor) {
    this.#open = open;
    if (packing === "none") this.#inner = open("none");
  }

  push(buffer: Buffer, start: number, end: number): void {
    if (this.#inner) {
      this.#inner.push(buffer, start, end);
      return;
    }
    this.#head = Buffer.concat([this.#head, buffer.subarray(start, end)]);
    if (this.#head.length >= magicBytes) this.#decide();
  }

  end(): void {
    if (this.#inner === undefined) this.#decide();
    this.#inner?.end();
  }

  [Symbol.dispose](): void {
    this.#inner?.[Symbol.dispose]();
  }

  #decide(): void {
    const head = this.#head;
    this.#inner = this.#open(sniff(head));
    this.#head = Buffer.alloc(0);
    if (head.length > 0) this.#inner.push(head, 0, head.length);
  }
}

/** The native decompressors, which write straight into the outlet's room. */
export function openNative(native: Binding, compression: Compression, outlet: Outlet): Decompressor {
  switch (compression) {
    case "gzip":
      return new NativeInflate(native, native.createGzip(), compression, outlet);
    case "zstd":
      return new NativeInflate(native, native.createZstd(), compression, outlet);
    case "none":
      return new Copy(outlet);
  }
}

class NativeInflate implements Decompressor {
  readonly #native: Binding;
  readonly #inflater: Inflater;
  readonly #compression: Compression;
  readonly #outlet: Outlet;
  readonly #counts = new Float64Array(2);
  #atBoundary = false;

  constructor(native: Binding, inflater: Inflater, compression: Compression, outlet: Outlet) {
    this.#native = native;
    this.#inflater = inflater;
    this.#compression = compression;
    this.#outlet = outlet;
  }

  push(input: Buffer, start: number, end: number): void {
    const counts = this.#counts;
    for (let at = start; ; ) {
      const room = this.#outlet.room();
      const status = this.#native.inflate(
        this.#inflater,
        input,
        at,
        end,
        room.buffer,
        room.start,
        room.end,
        counts,
      );
      if (status < 0) throw new PullError("corrupt", `the layer is not valid ${this.#compression}`);
      const [consumed = 0, produced = 0] = counts;
      at += consumed;
      this.#outlet.filled(produced);
      this.#atBoundary = status === 1;
      // Full room may have left more inside of the decompressor, whose input is all consumed.
      if (at === end && produced < room.end - room.start) return;
      if (consumed === 0 && produced === 0)
        throw new PullError("corrupt", `the ${this.#compression} stream is stuck`);
    }
  }

  end(): void {
    if (!this.#atBoundary) throw new PullError("corrupt", `the ${this.#compression} stream is truncated`);
  }

  [Symbol.dispose](): void {
    this.#native.release(this.#inflater);
  }
}

/** For a blob that is the tar stream itself, although its type would let it be packed. */
class Copy implements Decompressor {
  readonly #outlet: Outlet;

  constructor(outlet: Outlet) {
    this.#outlet = outlet;
  }

  push(input: Buffer, start: number, end: number): void {
    for (let at = start; at < end; ) {
      const room = this.#outlet.room();
      const bytes = input.copy(room.buffer, room.start, at, Math.min(end, at + room.end - room.start));
      this.#outlet.filled(bytes);
      at += bytes;
    }
  }

  end(): void {}

  [Symbol.dispose](): void {}
}
