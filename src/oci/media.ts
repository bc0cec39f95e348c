// Media types of manifests, indexes, configs and layers (reference 4.5), and what each means for a pull.

import { PullError } from "../errors.ts";

export const mediaTypes = {
  ociIndex: "application/vnd.oci.image.index.v1+json",
  ociManifest: "application/vnd.oci.image.manifest.v1+json",
  ociConfig: "application/vnd.oci.image.config.v1+json",
  dockerIndex: "application/vnd.docker.distribution.manifest.list.v2+json",
  dockerManifest: "application/vnd.docker.distribution.manifest.v2+json",
  dockerConfig: "application/vnd.docker.container.image.v1+json",
} as const;

const dockerLayer = "application/vnd.docker.image.rootfs.diff.tar";
const ociLayer = "application/vnd.oci.image.layer.v1.tar";

/** How a layer's bytes are packed: `sniff` means that the first bytes decide, `none` that they are tar as they are. */
export type Packing = "sniff" | "none";

export function isIndex(mediaType: string): boolean {
  return mediaType === mediaTypes.ociIndex || mediaType === mediaTypes.dockerIndex;
}

export function isManifest(mediaType: string): boolean {
  return mediaType === mediaTypes.ociManifest || mediaType === mediaTypes.dockerManifest;
}

export function isConfig(mediaType: string): boolean {
  return mediaType === mediaTypes.ociConfig || mediaType === mediaTypes.dockerConfig;
}

/** Of a layer that is compressed so. */
export function ociLayerType(compression: "gzip" | "zstd" | "none"): string {
  return compression === "none" ? ociLayer : `${ociLayer}+${compression}`;
}

/**
 * How to unpack a layer of this type. An OCI layer without suffix is plain tar and never sniffed; all others are
 * sniffed, as containerd does. Throws `unsupported` for what containerd must pull itself: encrypted, foreign and
 * non-distributable layers, Docker's type for zstd, which only containerd 2 knows, and types that are no layers at all.
 */
export function layerPacking(mediaType: string): Packing {
  switch (mediaType) {
    case ociLayer:
      return "none";
    case `${ociLayer}+gzip`:
    case `${ociLayer}+zstd`:
    case dockerLayer:
    case `${dockerLayer}.gzip`:
      return "sniff";
    default:
      throw new PullError("unsupported", `layer type ${JSON.stringify(mediaType.slice(0, 200))}`);
  }
}
