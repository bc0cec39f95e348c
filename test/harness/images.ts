// Images for tests, made on the spot: of layers that a test writes itself, and a small one that can run.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";
import { mediaTypes } from "../../src/oci/media.ts";
import { dir, file, symlink, tarGz } from "../fakes/tar.ts";
import type { BlobRef, PrivateRegistry } from "./registry.ts";

export const layerTypes = {
  ociGzip: "application/vnd.oci.image.layer.v1.tar+gzip",
  ociZstd: "application/vnd.oci.image.layer.v1.tar+zstd",
  ociPlain: "application/vnd.oci.image.layer.v1.tar",
  dockerGzip: "application/vnd.docker.image.rootfs.diff.tar.gzip",
} as const;

export interface TestLayer {
  readonly mediaType?: string;
  readonly bytes: Buffer;
  /** The uncompressed stream, when it is not gzip of this. */
  readonly tar?: Buffer;
  /** What the config says instead of the truth. */
  readonly diffID?: string;
}

export interface ImageOptions {
  readonly docker?: boolean;
  /** Wrapped into an index with entries for other platforms. */
  readonly index?: boolean;
  readonly config?: Readonly<Record<string, unknown>>;
}

export interface PushedImage {
  /** host/repository:tag */
  readonly reference: string;
  readonly repository: string;
  /** What the tag points at. */
  readonly target: BlobRef;
  readonly config: BlobRef;
  readonly layers: readonly BlobRef[];
}

function sha256(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

export async function pushImage(
  registry: PrivateRegistry,
  name: string,
  layers: readonly TestLayer[],
  options: ImageOptions = {},
): Promise<PushedImage> {
  const [repository = "", tag = "latest"] = name.split(":");
  const usual = options.docker ? layerTypes.dockerGzip : layerTypes.ociGzip;
  const blobs: BlobRef[] = [];
  for (const layer of layers)
    blobs.push(await registry.pushBlob(repository, layer.mediaType ?? usual, layer.bytes));
  const diffIDs = layers.map((layer) => layer.diffID ?? sha256(layer.tar ?? inflated(layer.bytes)));
  const json = configOf(diffIDs, options.config);
  const configType = options.docker ? mediaTypes.dockerConfig : mediaTypes.ociConfig;
  const config = await registry.pushBlob(repository, configType, Buffer.from(JSON.stringify(json)));
  const mediaType = options.docker ? mediaTypes.dockerManifest : mediaTypes.ociManifest;
  const manifest = { schemaVersion: 2, mediaType, config, layers: blobs };
  const single = await registry.pushManifest(
    repository,
    mediaType,
    manifest,
    options.index ? undefined : tag,
  );
  const target = options.index
    ? await pushIndex(registry, repository, tag, single, options.docker === true)
    : single;
  return { reference: `${registry.host}/${repository}:${tag}`, repository, target, config, layers: blobs };
}

/** A static busybox with links for its commands, and a first process for sandboxes. */
export function busyboxLayers(): TestLayer[] {
  const links = ["sh", "cat", "ls", "uname", "id"].map((name) => symlink(`bin/${name}`, "busybox"));
  const root = [dir("bin"), file("bin/busybox", readFileSync("/bin/busybox"), { mode: 0o755 }), ...links];
  return [{ bytes: tarGz([...root, dir("etc"), file("etc/passwd", "root:x:0:0:root:/:/bin/sh\n")]) }];
}

export async function pushPause(registry: PrivateRegistry): Promise<PushedImage> {
  const config = { config: { Entrypoint: ["/bin/busybox", "sleep", "1000000"] } };
  return await pushImage(registry, "pause:1", busyboxLayers(), { config });
}

async function pushIndex(
  registry: PrivateRegistry,
  repository: string,
  tag: string,
  own: BlobRef,
  docker: boolean,
): Promise<BlobRef> {
  const foreignConfig = await registry.pushBlob(
    repository,
    mediaTypes.ociConfig,
    Buffer.from(JSON.stringify({ os: "linux", rootfs: { type: "layers", diff_ids: [] } })),
  );
  const foreignType = docker ? mediaTypes.dockerManifest : mediaTypes.ociManifest;
  const foreign = await registry.pushManifest(repository, foreignType, {
    schemaVersion: 2,
    mediaType: foreignType,
    config: foreignConfig,
    layers: [],
  });
  const mediaType = docker ? mediaTypes.dockerIndex : mediaTypes.ociIndex;
  const manifests = [
    { ...foreign, platform: { os: "linux", architecture: "s390x" } },
    { ...own, platform: { os: "linux", architecture: process.arch === "arm64" ? "arm64" : "amd64" } },
    { ...foreign, platform: { os: "unknown", architecture: "unknown" } },
  ];
  return await registry.pushManifest(repository, mediaType, { schemaVersion: 2, mediaType, manifests }, tag);
}

function configOf(diffIDs: readonly string[], more: Readonly<Record<string, unknown>> = {}) {
  const architecture = process.arch === "arm64" ? "arm64" : "amd64";
  return {
    architecture,
    os: "linux",
    config: { Env: ["PATH=/bin"] },
    rootfs: { type: "layers", diff_ids: diffIDs },
    ...more,
  };
}

function inflated(bytes: Buffer): Buffer {
  return bytes[0] === 0x1f && bytes[1] === 0x8b ? gunzipSync(bytes) : bytes;
}
