// The portable engine: pako and tar-fs in the same worker threads, for machines where the addon cannot be loaded.
//
// It is slower and takes only plain archives: files, directories and links, each below a directory that the archive
// named before. Everything else is `unsupported`, so that containerd pulls the image. What it does take ends in the
// same tree as with the native engine.

import { once } from "node:events";
import { chmod, lchown, lutimes } from "node:fs/promises";
import { join } from "node:path";
import { Inflate } from "pako";
import { extract, type Headers } from "tar-fs";
import { PullError } from "../errors.ts";
import { layerPacking } from "../oci/media.ts";
import { split } from "./apply.ts";
import { Checks } from "./check.ts";
import { type Compression, type Decompressor, Sniffer } from "./decompress.ts";
import type { LayerJob, UnpackedLayer } from "./layer.ts";
import { SpoolReader } from "./unpack.ts";

/** What tar-fs hands out; its types leave out what it does not use itself. */
interface Header extends Omit<Headers, "type"> {
  readonly type: string;
  readonly linkname?: string | null;
  readonly pax?: Readonly<Record<string, string>> | null;
}

const plainTypes = new Set(["file", "contiguous-file", "directory", "link", "symlink"]);
/** What a decoder puts in place of bytes that are not UTF-8. */
const replacement = "\ufffd";

export async function unpackPortable(job: LayerJob, isCancelled: () => boolean): Promise<UnpackedLayer> {
  const began = performance.now();
  const checks = new Checks(job.descriptor, job.diffID, job.limits);
  const archive = new Archive(job);
  const pieces: Uint8Array[] = [];
  const output = (bytes: Uint8Array): void => {
    checks.tar(bytes);
    pieces.push(Buffer.from(bytes));
  };
  const sniffer = new Sniffer(layerPacking(job.descriptor.mediaType), (compression) =>
    open(compression, output),
  );
  const spool = new SpoolReader(job.spool, isCancelled);
  try {
    for (let chunk = spool.next(); chunk; chunk = spool.next()) {
      checks.blob(chunk);
      sniffer.push(chunk, 0, chunk.length);
      for (const piece of pieces.splice(0)) await archive.write(piece);
    }
    sniffer.end();
    for (const piece of pieces.splice(0)) await archive.write(piece);
    await archive.end();
  } finally {
    spool.close();
    archive.destroy();
  }
  checks.finish();
  await archive.describe();
  return {
    bytes: checks.tarBytes,
    entries: archive.entries,
    implicitDirectories: [],
    waitedMs: spool.waitedMs,
    elapsedMs: performance.now() - began,
  };
}

function open(compression: Compression, output: (bytes: Uint8Array) => void): Decompressor {
  switch (compression) {
    case "gzip":
      return new PakoInflate(output);
    case "zstd":
      throw new PullError("unsupported", "the portable engine cannot read zstd");
    case "none":
      return { push: (buffer, start, end) => output(buffer.subarray(start, end)), end: () => {} };
  }
}

/** gzip through pako, one member after another. */
class PakoInflate implements Decompressor {
  readonly #output: (bytes: Uint8Array) => void;
  #inflate: Inflate;

  constructor(output: (bytes: Uint8Array) => void) {
    this.#output = output;
    this.#inflate = this.#begin();
  }

  push(buffer: Buffer, start: number, end: number): void {
    // pako goes on by itself when a member ends inside of a chunk, but not when it ends together with one.
    if (this.#inflate.ended && this.#inflate.err === 0) this.#inflate = this.#begin();
    this.#inflate.push(new Uint8Array(buffer.subarray(start, end)));
    if (this.#inflate.err !== 0)
      throw new PullError("corrupt", `the layer is not valid gzip: ${this.#inflate.msg}`);
  }

  end(): void {
    if (!this.#inflate.ended) throw new PullError("corrupt", "the gzip stream is truncated");
  }

  #begin(): Inflate {
    // 15 bits of window, and 16 says that nothing but gzip is expected.
    const inflate = new Inflate({ windowBits: 15 + 16 });
    inflate.onData = this.#output;
    return inflate;
  }
}

/** tar-fs with a guard in front of it, and the attributes that it leaves out applied behind it. */
class Archive {
  readonly #job: LayerJob;
  readonly #stream: ReturnType<typeof extract>;
  readonly #headers = new Map<string, Header>();
  #failure: PullError | undefined;

  constructor(job: LayerJob) {
    this.#job = job;
    this.#stream = extract(job.staging, {
      umask: 0,
      validateSymlinks: false,
      ignore: (_name: string, header?: Headers) => header !== undefined && this.#refuses(header),
    } as Parameters<typeof extract>[1]);
    this.#stream.on("error", (error: Error) => {
      this.#failure ??= new PullError("corrupt", `tar-fs: ${error.message}`, { cause: error });
    });
  }

  get entries(): number {
    return this.#headers.size;
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (!this.#stream.write(bytes)) await this.#until("drain");
    if (this.#failure) throw this.#failure;
  }

  async end(): Promise<void> {
    const finished = this.#until("finish");
    this.#stream.end(undefined);
    await finished;
    if (this.#failure) throw this.#failure;
  }

  async #until(event: "drain" | "finish"): Promise<void> {
    if (this.#failure) return;
    // A stream that failed says so in #failure; once() then rejects or "close" comes, and either ends the wait.
    await Promise.race([once(this.#stream, event), once(this.#stream, "close")]).catch(() => {});
  }

  destroy(): void {
    this.#stream.destroy(null);
  }

  /** Owner, mode with setuid, and times of everything; of directories after all that is in them. */
  async describe(): Promise<void> {
    const all = [...this.#headers];
    const directories = all.filter(([, { type }]) => type === "directory");
    const others = all.filter(([, { type }]) => type !== "directory");
    for (const [path, { type, uid, gid, mode, mtime }] of [...others, ...directories]) {
      const file = join(this.#job.staging, path);
      await lchown(file, uid, gid);
      if (type !== "symlink") await chmod(file, mode & 0o7777);
      await lutimes(file, mtime, mtime);
    }
  }

  /** True for the root, and for everything once something was met that this engine does not do. */
  #refuses(header: Header): boolean {
    if (this.#failure) return true;
    const { parent, name } = split(header.name);
    if (name === "") return true;
    const path = parent === "" ? name : `${parent}/${name}`;
    const reason = this.#unsupported(header, path, parent);
    if (reason !== undefined) {
      this.#failure = new PullError(
        "unsupported",
        `the portable engine does not do ${reason}: ${JSON.stringify(path)}`,
      );
      return true;
    }
    this.#headers.set(path, header);
    if (this.#headers.size > this.#job.limits.entriesMax) {
      this.#failure = new PullError("exhausted", `the layer has over ${this.#job.limits.entriesMax} entries`);
    }
    return this.#failure !== undefined;
  }

  #unsupported(header: Header, path: string, parent: string): string | undefined {
    const { pax } = header;
    const target = split(header.linkname ?? "");
    const targetPath = target.parent === "" ? target.name : `${target.parent}/${target.name}`;
    if (!plainTypes.has(header.type)) return header.type;
    if (path.split("/").some((part) => part.startsWith(".wh."))) return "whiteouts";
    if (header.name.split("/").includes("..")) return "paths with ..";
    if (path.includes(replacement) || header.linkname?.includes(replacement))
      return "names that are not UTF-8";
    if (this.#headers.has(path)) return "entries that are named twice";
    if (parent !== "" && this.#headers.get(parent)?.type !== "directory")
      return "directories that are not named";
    if (header.type === "link" && this.#headers.get(targetPath)?.type !== "file")
      return "hard links to other than files";
    if (
      Object.keys(pax ?? {}).some((key) => key.startsWith("SCHILY.xattr.") || key.startsWith("GNU.sparse."))
    ) {
      return "extended attributes and sparse files";
    }
    // Node's calls for times lose nanoseconds, so only whole seconds are exact.
    if (/\.\d*[1-9]/.test(pax?.["mtime"] ?? "")) return "times with a fraction of a second";
    return undefined;
  }
}
