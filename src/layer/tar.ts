// A streaming tar parser with the judgement of Go's archive/tar, which is what containerd reads layers with.
//
// Chunks of any size go in, entries come out; headers are read from the chunk itself unless they straddle two. Formats
// v7, ustar, star, GNU and pax. Sparse files are `unsupported` (containerd reads them), everything malformed is
// `corrupt`. Memory is bounded by one header block and the largest extended header.

import { PullError } from "../errors.ts";
import type { Entry, EntrySink } from "./entry.ts";
import { isZeroBlock, type RawHeader, readHeader } from "./header.ts";
import { Overrides, parseRecords } from "./pax.ts";

const blockBytes = 512;
/** Go's limit on long names and pax headers. */
const extendedBytesMax = 1024 * 1024;
/** The kernel's PATH_MAX without its NUL byte; nothing with a longer name or target could ever be made. */
const nameBytesMax = 4095;

type State =
  /** Between entries; `zeroBlocks` is how many of the two that end an archive were seen. */
  | { readonly kind: "header"; readonly zeroBlocks: 0 | 1 }
  /** In the content of a file that the sink was told to begin. */
  | { readonly kind: "content"; leftBytes: number; readonly padBytes: number }
  | { readonly kind: "padding"; leftBytes: number }
  /** In an extended header, which describes the entry that follows it. */
  | {
      readonly kind: "extended";
      readonly raw: RawHeader;
      readonly body: Buffer;
      leftBytes: number;
    }
  /** Past the end; what follows belongs to the stream but not to the archive. */
  | { readonly kind: "ended" };

export class TarParser {
  readonly #sink: EntrySink;
  readonly #entriesMax: number;
  readonly #partial = Buffer.alloc(blockBytes);
  #partialBytes = 0;
  #state: State = { kind: "header", zeroBlocks: 0 };
  #overrides = new Overrides();
  #entries = 0;

  constructor(sink: EntrySink, entriesMax: number) {
    this.#sink = sink;
    this.#entriesMax = entriesMax;
  }

  get entries(): number {
    return this.#entries;
  }

  /**
   * Parses buffer[start, end); the buffer may be reused afterwards. Returns where the archive ends in it, or `end` when
   * it goes on.
   */
  feed(buffer: Buffer, start: number, end: number): number {
    let at = start;
    while (at < end && this.#state.kind !== "ended") at = this.#step(buffer, at, end);
    return at;
  }

  /** How much of a file's content is still to come. */
  get contentLeftBytes(): number {
    return this.#state.kind === "content" ? this.#state.leftBytes : 0;
  }

  /** Says that this content is not fed; what is fed next is what stands behind it. */
  skipContent(): void {
    if (this.#state.kind !== "content") return;
    const { padBytes } = this.#state;
    this.#sink.finish();
    this.#skipPadding(padBytes);
  }

  /** Says that the stream is over. Throws `corrupt` when it ended inside a header or an entry's content. */
  end(): void {
    switch (this.#state.kind) {
      case "ended":
      // Go does not miss the padding of the last entry.
      case "padding":
        return;
      case "header":
        // The end of the stream in a header's place is the end of the archive, if nothing of a header was read.
        if (this.#partialBytes === 0) return;
        break;
      case "content":
      case "extended":
        break;
    }
    throw new PullError("corrupt", "the archive is truncated");
  }

  #step(buffer: Buffer, at: number, end: number): number {
    const state = this.#state;
    switch (state.kind) {
      case "header":
        return this.#header(state.zeroBlocks, buffer, at, end);
      case "content": {
        const next = Math.min(end, at + state.leftBytes);
        this.#sink.piece(buffer, at, next);
        state.leftBytes -= next - at;
        if (state.leftBytes === 0) {
          this.#sink.finish();
          this.#skipPadding(state.padBytes);
        }
        return next;
      }
      case "padding": {
        const next = Math.min(end, at + state.leftBytes);
        state.leftBytes -= next - at;
        if (state.leftBytes === 0) this.#state = { kind: "header", zeroBlocks: 0 };
        return next;
      }
      case "extended": {
        const next = Math.min(end, at + state.leftBytes);
        buffer.copy(state.body, state.body.length - state.leftBytes, at, next);
        state.leftBytes -= next - at;
        if (state.leftBytes === 0) {
          this.#override(state.raw, state.body);
          this.#skipPadding(padding(state.body.length));
        }
        return next;
      }
      case "ended":
        return end;
    }
  }

  #header(zeroBlocks: 0 | 1, buffer: Buffer, at: number, end: number): number {
    let block = buffer;
    let offset = at;
    let next = at + blockBytes;
    if (this.#partialBytes > 0 || next > end) {
      next = Math.min(end, at + blockBytes - this.#partialBytes);
      this.#partialBytes += buffer.copy(this.#partial, this.#partialBytes, at, next);
      if (this.#partialBytes < blockBytes) return next;
      this.#partialBytes = 0;
      block = this.#partial;
      offset = 0;
    }
    if (isZeroBlock(block, offset)) {
      this.#state = zeroBlocks === 1 ? { kind: "ended" } : { kind: "header", zeroBlocks: 1 };
      return next;
    }
    if (zeroBlocks === 1) throw new PullError("corrupt", "the archive has a single zero block in its middle");
    return this.#describe(readHeader(block, offset), buffer, next, end);
  }

  /** Acts on a header; returns where to go on in the buffer. */
  #describe(raw: RawHeader, buffer: Buffer, at: number, end: number): number {
    switch (raw.typeflag) {
      case "x":
      case "g":
      case "L":
      case "K":
        return this.#extended(raw, at);
      case "S":
        throw new PullError("unsupported", `sparse file ${JSON.stringify(raw.name)}`);
      default:
        return this.#entry(this.#overrides.apply(raw), buffer, at, end);
    }
  }

  #extended(raw: RawHeader, at: number): number {
    if (raw.sizeBytes > extendedBytesMax)
      throw new PullError("corrupt", "an extended header is over 1 MiB long");
    const body = Buffer.allocUnsafe(raw.sizeBytes);
    if (body.length === 0) this.#override(raw, body);
    else this.#state = { kind: "extended", raw, body, leftBytes: body.length };
    return at;
  }

  /** A global header must be well-formed and changes nothing, but Go forgets what came before it. */
  #override({ typeflag, name }: RawHeader, body: Buffer): void {
    if (typeflag === "g") {
      this.#sink.global(parseRecords(body).get("path") || name);
      this.#overrides = new Overrides();
    } else {
      this.#overrides.add(typeflag, body);
    }
  }

  #entry(entry: Entry, buffer: Buffer, at: number, end: number): number {
    this.#entries += 1;
    if (this.#entries > this.#entriesMax) {
      throw new PullError("exhausted", `the layer has over ${this.#entriesMax} entries (unpack.max_entries)`);
    }
    if (entry.name.length > nameBytesMax || entry.linkName.length > nameBytesMax) {
      throw new PullError("corrupt", `a name in the archive is over ${nameBytesMax} bytes long`);
    }
    this.#overrides = new Overrides();
    const { sizeBytes } = entry;
    if (at + sizeBytes <= end) {
      this.#sink.whole(entry, buffer, at, at + sizeBytes);
      this.#skipPadding(padding(sizeBytes));
      return at + sizeBytes;
    }
    this.#sink.begin(entry);
    this.#state = { kind: "content", leftBytes: sizeBytes, padBytes: padding(sizeBytes) };
    return at;
  }

  #skipPadding(bytes: number): void {
    this.#state = bytes === 0 ? { kind: "header", zeroBlocks: 0 } : { kind: "padding", leftBytes: bytes };
  }
}

function padding(sizeBytes: number): number {
  return (blockBytes - (sizeBytes % blockBytes)) % blockBytes;
}
