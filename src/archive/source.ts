// The bytes of an archive, as one file that can be read from anywhere.
//
// What is compressed, or comes through a pipe, is first written to a file without a name, which is gone with the process
// whatever happens to it. How much that becomes is not known before; it ends where the disk would have too little left. A
// pipe is read as a stream, since a read that waits in a thread could not be broken off.

import { close, constants, fstat, open, read, write } from "node:fs";
import { unlink } from "node:fs/promises";
import { Socket } from "node:net";
import { dirname } from "node:path";
import { addAbortSignal, type Readable } from "node:stream";
import { promisify } from "node:util";
import { PullError, throwIfAborted } from "../errors.ts";
import { openNative, Sniffer, sniff } from "../layer/decompress.ts";
import { CallbackOutlet } from "../layer/outlet.ts";
import type { Binding } from "../native.ts";

/** By descriptor, since one that this process was given has no FileHandle. */
export const calls = {
  open: promisify(open),
  close: promisify(close),
  fstat: promisify(fstat),
  read: promisify(read),
  write: promisify(write),
};

const inputBytes = 64 * 1024;
const pieceBytes = 1024 * 1024;
/** The disk is looked at each time that so much was written. */
const roomEveryBytes = 16 * 1024 * 1024;

export interface SourceOptions {
  /** A path, the descriptor of a file that is open already, and stays so, or what comes from somewhere. */
  readonly source: string | number | Readable;
  /** Where a file may be made, if one is needed; nothing is there yet. */
  readonly scratch: string;
  readonly native: Binding;
  /** Throws `exhausted` when the disk that `scratch` is on has too little left. */
  readonly mustHaveRoom: () => Promise<void>;
}

export interface Source extends AsyncDisposable {
  readonly fd: number;
}

/** Throws `invalid` for what cannot be opened or is empty, `corrupt` for what is not validly compressed. */
export async function openSource(options: SourceOptions, signal: AbortSignal): Promise<Source> {
  const { source } = options;
  if (typeof source === "object") return owned(await unpack(addAbortSignal(signal, source), options));
  await using given = typeof source === "number" ? lent(source) : owned(await openArchive(source));
  const kind = await calls.fstat(given.fd);
  if (kind.isDirectory())
    throw new PullError("invalid", "it is a folder, not an archive (tar -C FOLDER -cf FILE . makes one)");
  if (kind.isFIFO() || kind.isSocket()) {
    const stream = new Socket({ fd: given.keep().fd, readable: true, writable: false });
    return owned(await unpack(addAbortSignal(signal, stream), options));
  }
  const head = Buffer.alloc(6);
  if (kind.isFile()) await calls.read(given.fd, head, 0, head.length, 0);
  if (kind.isFile() && sniff(head) === "none") {
    mustBeKnown(head);
    if (kind.size === 0) throw empty();
    return given.keep();
  }
  return owned(await unpack(piecesOf(given.fd, kind.isFile(), signal), options));
}

function empty(): PullError {
  return new PullError("invalid", "it is empty");
}

/** Other ways to compress, by their magic. */
const foreign = [
  { name: "xz", magic: Buffer.from("fd377a585a00", "hex"), program: "xz -dc" },
  { name: "bzip2", magic: Buffer.from("BZh"), program: "bzip2 -dc" },
  { name: "zip", magic: Buffer.from("PK\x03\x04"), program: "unzip -p" },
] as const;

function mustBeKnown(head: Buffer): void {
  for (const { name, magic, program } of foreign)
    if (head.subarray(0, magic.length).equals(magic))
      throw new PullError("invalid", `it is compressed with ${name}: ${program} FILE | hawser load -`);
}

interface Held extends Source {
  /** For whoever has it from now on. */
  readonly keep: () => Source;
}

function lent(fd: number): Held {
  const held: Held = { fd, keep: () => held, [Symbol.asyncDispose]: async () => {} };
  return held;
}

function owned(fd: number): Held {
  let isKept = false;
  return {
    fd,
    keep: () => {
      isKept = true;
      return owned(fd);
    },
    [Symbol.asyncDispose]: async () => {
      if (!isKept) await calls.close(fd);
    },
  };
}

/** Nobody is waited for who would have to open the other end of a pipe. */
async function openArchive(path: string): Promise<number> {
  try {
    return await calls.open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : String(error);
    throw new PullError("invalid", `it cannot be opened: ${code}`, { cause: error });
  }
}

/** Throws `corrupt` when there is not as much. */
export async function readAll(fd: number, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesRead } = await calls.read(fd, bytes, done, bytes.length - done, position + done);
    if (bytesRead === 0) throw new PullError("corrupt", "the archive is truncated");
    done += bytesRead;
  }
}

/** Everything of it, decompressed, in a file of ours. */
async function unpack(
  from: AsyncIterable<Uint8Array>,
  { scratch, native, mustHaveRoom }: SourceOptions,
): Promise<number> {
  const fd = await calls.open(scratch, constants.O_CREAT | constants.O_EXCL | constants.O_RDWR, 0o600);
  try {
    await unlink(scratch);
    let pending: Buffer[] = [];
    const outlet = new CallbackOutlet((buffer, start, end) => {
      pending.push(Buffer.from(buffer.subarray(start, end)));
    });
    using decompressor = new Sniffer("sniff", (compression) => openNative(native, compression, outlet));
    let written = 0;
    let looked = 0;
    const drain = async (): Promise<void> => {
      outlet.flush();
      for (const bytes of pending) {
        if (written >= looked) {
          await mustHaveRoom();
          looked = written + roomEveryBytes;
        }
        await writeAll(fd, bytes, written);
        written += bytes.length;
      }
      pending = [];
    };
    let isFirst = true;
    for await (const bytes of from) {
      const piece = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      if (isFirst) mustBeKnown(piece);
      isFirst = false;
      // Little at a time, since it may become a thousand times as much.
      for (let at = 0; at < piece.length; at += inputBytes) {
        decompressor.push(piece, at, Math.min(piece.length, at + inputBytes));
        await drain();
      }
    }
    if (isFirst) throw empty();
    decompressor.end();
    await drain();
    return fd;
  } catch (error) {
    await calls.close(fd);
    const { code, message } = PullError.from(error);
    const isFull = code === "exhausted" && !(error instanceof PullError);
    const text = isFull ? `there is no room for it in ${dirname(scratch)}, where it is unpacked` : message;
    throw new PullError(code, text.replace("the layer", "the archive"), { cause: error });
  }
}

async function writeAll(fd: number, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await calls.write(fd, bytes, done, bytes.length - done, position + done);
    done += bytesWritten;
  }
}

/** From start to end. */
async function* piecesOf(fd: number, isFile: boolean, signal: AbortSignal): AsyncGenerator<Buffer> {
  const buffer = Buffer.allocUnsafeSlow(pieceBytes);
  for (let position = 0; ; ) {
    throwIfAborted(signal);
    const { bytesRead } = await calls.read(fd, buffer, 0, buffer.length, isFile ? position : null);
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
    position += bytesRead;
  }
}
