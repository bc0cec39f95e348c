// Layers for tests, unpacked in this very thread: bytes in, a tree in a temporary folder out.

import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Compression, type Decompressor, type Output, openNative } from "../../src/layer/decompress.ts";
import type { LayerJob, LayerLimits } from "../../src/layer/layer.ts";
import { CallbackOutlet } from "../../src/layer/outlet.ts";
import { unpackNative, type WholeLayer } from "../../src/layer/unpack.ts";
import { type Binding, loadNative } from "../../src/native.ts";
import { sha256 } from "../../src/oci/digest.ts";
import { Spool } from "../../src/spool.ts";
import { type TarEntry, tar } from "../fakes/tar.ts";
import { type Node, readTree } from "../harness/tree.ts";

export const layerTypes = {
  gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
  zstd: "application/vnd.oci.image.layer.v1.tar+zstd",
  plain: "application/vnd.oci.image.layer.v1.tar",
  docker: "application/vnd.docker.image.rootfs.diff.tar.gzip",
} as const;

export const ample: LayerLimits = { entriesMax: 1_000_000, bytesMax: 2 ** 40, ratioMax: 1000 };

export function native(): Binding {
  const loaded = loadNative();
  if (loaded.kind === "missing") throw new Error(loaded.reason);
  return loaded.binding;
}

export interface LayerSpec {
  /** The blob. */
  readonly bytes: Buffer;
  /** What is in it, when that is not the blob itself. */
  readonly tar?: Buffer;
  readonly mediaType?: string;
  readonly base?: boolean;
  readonly limits?: Partial<LayerLimits>;
}

/** A temporary folder with a root per layer. */
export class Staging implements AsyncDisposable {
  readonly folder: string;
  #count = 0;

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async make(): Promise<Staging> {
    return new Staging(await mkdtemp(join(tmpdir(), "layer-")));
  }

  async root(): Promise<string> {
    this.#count += 1;
    const root = join(this.folder, `root-${this.#count}`);
    await mkdir(root, { mode: 0o755 });
    return root;
  }

  async spool(sizeBytes: number): Promise<Spool> {
    this.#count += 1;
    return await Spool.open(join(this.folder, `spool-${this.#count}`), sizeBytes);
  }

  /** A spool that holds all of it. */
  async filled(bytes: Buffer): Promise<Spool> {
    const spool = await this.spool(bytes.length);
    spool.write(0, bytes);
    spool.complete();
    return spool;
  }

  /** A job for a new root. */
  async job(spool: Spool, spec: LayerSpec): Promise<LayerJob> {
    const { bytes, mediaType = layerTypes.docker, base = false, limits } = spec;
    return {
      spool: spool.view,
      staging: await this.root(),
      descriptor: { mediaType, digest: sha256(bytes), size: bytes.length },
      diffID: sha256(spec.tar ?? bytes),
      base,
      limits: { ...ample, ...limits },
    };
  }

  async unpack(spec: LayerSpec): Promise<{ readonly root: string; readonly layer: WholeLayer }> {
    await using spool = await this.filled(spec.bytes);
    const job = await this.job(spool, spec);
    return { root: job.staging, layer: unpackNative(job, native(), () => false) };
  }

  /** The tree that these entries make, as an upper layer or as the bottom one. */
  async tree(entries: readonly TarEntry[], base = false): Promise<Map<string, Node>> {
    const { root } = await this.unpack({ bytes: tar(entries), base });
    return readTree(root);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.folder, { recursive: true });
  }
}

/** The native decompressor in front of a callback, which is called behind each push. */
export function nativeTo(compression: Compression, output: Output): Decompressor {
  const outlet = new CallbackOutlet(output);
  const inner = openNative(native(), compression, outlet);
  return {
    push(buffer, start, end) {
      inner.push(buffer, start, end);
      outlet.flush();
    },
    end: () => inner.end(),
    [Symbol.dispose]: () => inner[Symbol.dispose](),
  };
}
