// Archives of images as "docker save" and makers of OCI layouts write them, with full control over what is in them.

import { createHash } from "node:crypto";
import { gunzipSync } from "node:zlib";
import { mediaTypes } from "../../src/oci/media.ts";
import { file, symlink, type TarEntry, tar } from "./tar.ts";

const architecture = process.arch === "arm64" ? "arm64" : "amd64";

export interface ArchiveImage {
  /** Each a tar stream, or one that gzip has compressed. */
  readonly layers: readonly Buffer[];
  /** Fields of the config. */
  readonly config?: Readonly<Record<string, unknown>>;
  /** For Docker's archive. */
  readonly tags?: readonly string[] | null;
  /** For an OCI layout: of its entry in index.json. */
  readonly annotations?: Readonly<Record<string, string>>;
  readonly platform?: Readonly<Record<string, string>>;
  /** What the config says of the layers instead of the truth. */
  readonly diffIDs?: readonly string[];
}

export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/** As Docker wrote them up to version 24: each layer in a folder of its own, and a link where one stands there already. */
export function dockerArchive(images: readonly ArchiveImage[]): Buffer {
  const entries: TarEntry[] = [];
  const paths = new Map<string, string>();
  const manifest = images.map((image, number) => {
    const config = configOf(image);
    const name = `${digestOf(config).slice(7)}.json`;
    entries.push(file(name, config));
    const names = image.layers.map((bytes, nth) => {
      const path = `image${number}layer${nth}/layer.tar`;
      const former = paths.get(digestOf(bytes));
      entries.push(former === undefined ? file(path, bytes) : symlink(path, `../${former}`));
      paths.set(digestOf(bytes), path);
      return path;
    });
    return { Config: name, RepoTags: image.tags ?? null, Layers: names };
  });
  // Behind all that it speaks of, as Docker has it.
  return tar([...entries, file("manifest.json", JSON.stringify(manifest))]);
}

interface BlobEntry {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
}

export interface Layout {
  readonly entries: TarEntry[];
  /** Of each image's manifest. */
  readonly manifests: readonly BlobEntry[];
}

/** Blobs of these images, and what index.json says of each. */
export function layoutOf(images: readonly ArchiveImage[]): Layout {
  const blobs = new Map<string, Buffer>();
  const add = (mediaType: string, bytes: Buffer): BlobEntry => {
    const digest = digestOf(bytes);
    blobs.set(`blobs/sha256/${digest.slice(7)}`, bytes);
    return { mediaType, digest, size: bytes.length };
  };
  const manifests = images.map((image) => {
    const layers = image.layers.map((bytes) => add(layerType(bytes), bytes));
    const config = add(mediaTypes.ociConfig, configOf(image));
    const manifest = { schemaVersion: 2, mediaType: mediaTypes.ociManifest, config, layers };
    return add(mediaTypes.ociManifest, Buffer.from(JSON.stringify(manifest)));
  });
  const indexed = manifests.map((one, nth) => {
    const { annotations, platform } = images[nth] ?? {};
    return { ...one, ...(annotations && { annotations }), ...(platform && { platform }) };
  });
  const index = { schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests: indexed };
  const entries = [
    file("oci-layout", JSON.stringify({ imageLayoutVersion: "1.0.0" })),
    file("index.json", JSON.stringify(index)),
    ...Array.from(blobs, ([name, bytes]) => file(name, bytes)),
  ];
  return { entries, manifests };
}

export function ociArchive(images: readonly ArchiveImage[]): Buffer {
  return tar(layoutOf(images).entries);
}

function layerType(bytes: Buffer): string {
  return `application/vnd.oci.image.layer.v1.tar${isGzip(bytes) ? "+gzip" : ""}`;
}

function isGzip(bytes: Buffer): boolean {
  return bytes[0] === 0x1f && bytes[1] === 0x8b;
}

function configOf({ layers, config, diffIDs }: ArchiveImage): Buffer {
  const truth = layers.map((bytes) => digestOf(isGzip(bytes) ? gunzipSync(bytes) : bytes));
  const rootfs = { type: "layers", diff_ids: diffIDs ?? truth };
  return Buffer.from(JSON.stringify({ architecture, os: "linux", rootfs, ...config }));
}
