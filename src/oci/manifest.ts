// Indexes, manifests and configs: bytes that are already verified in, our values out (OCI image-spec; reference 4.5).
//
// Verified does not mean well-meant: whoever made the image wrote every byte. Sizes are bounded by who fetched them;
// here every field is checked before it is believed. What only containerd may judge is `unsupported`.

import { arch } from "node:process";
import { PullError } from "../errors.ts";
import type { Descriptor, Platform } from "./descriptor.ts";
import { type Digest, parseDigest } from "./digest.ts";
import { isConfig } from "./media.ts";

export interface Manifest {
  readonly config: Descriptor;
  /** Bottom up. */
  readonly layers: readonly Descriptor[];
}

/** overlayfs takes 128 layers at the most and containerd fails far earlier than this. */
const layersMax = 1024;
const indexEntriesMax = 10_000;

type Json = Readonly<Record<string, unknown>>;

export function parseIndex(bytes: Uint8Array): Descriptor[] {
  const json = parseObject(bytes, "index");
  if ("config" in json || "layers" in json)
    throw new PullError("unsupported", "an index with config or layers");
  const entries = list(json["manifests"], "manifests");
  if (entries.length > indexEntriesMax) throw corrupt(`index of ${entries.length} manifests`);
  return entries.map((entry) => descriptor(entry));
}

export function parseManifest(bytes: Uint8Array): Manifest {
  const json = parseObject(bytes, "manifest");
  if ("fsLayers" in json) throw new PullError("unsupported", "a schema 1 manifest");
  if ("manifests" in json) throw new PullError("unsupported", "a manifest with manifests");
  const layers = list(json["layers"] ?? [], "layers");
  if (layers.length > layersMax) throw corrupt(`manifest of ${layers.length} layers`);
  const config = descriptor(json["config"]);
  if (!isConfig(config.mediaType)) {
    throw new PullError("unsupported", `config of type ${JSON.stringify(config.mediaType.slice(0, 200))}`);
  }
  return { config, layers: layers.map((layer) => descriptor(layer)) };
}

export function parseConfig(bytes: Uint8Array): { readonly diffIDs: readonly Digest[] } {
  const rootfs = object(parseObject(bytes, "config")["rootfs"], "rootfs");
  const type = rootfs["type"] ?? "layers";
  if (type !== "layers") throw new PullError("unsupported", `rootfs of type ${JSON.stringify(type)}`);
  const diffIDs = list(rootfs["diff_ids"] ?? [], "diff_ids");
  if (diffIDs.length > layersMax) throw corrupt(`config of ${diffIDs.length} diffIDs`);
  return { diffIDs: diffIDs.map((diffID) => digest(diffID)) };
}

/** The platform that this process runs on, in OCI's (Go's) words. */
export function hostPlatform(): Platform {
  const architectures: Partial<Record<NodeJS.Architecture, string>> = {
    x64: "amd64",
    ia32: "386",
    arm64: "arm64",
  };
  return { os: "linux", architecture: architectures[arch] ?? arch };
}

/**
 * The entry that containerd's default matcher would take on this host (reference 6.6): amd64 also runs 386, arm64 also
 * arm, newer variants first; among equals the first. Entries without a platform are containerd's to judge.
 */
export function selectPlatform(entries: readonly Descriptor[], host: Platform): Descriptor {
  let best: { readonly entry: Descriptor; readonly rank: number } | undefined;
  for (const entry of entries) {
    if (entry.platform === undefined) throw new PullError("unsupported", "an index entry without a platform");
    const rank = preference(entry.platform, host);
    if (rank !== undefined && (best === undefined || rank < best.rank)) best = { entry, rank };
  }
  if (best === undefined) throw new PullError("not_found", "no match for platform in manifest");
  return best.entry;
}

const armVariants = ["v8", "v7", "v6", "v5"];

/** 0 is best; undefined means that it does not run here. */
function preference(platform: Platform, host: Platform): number | undefined {
  if (platform.os !== host.os) return undefined;
  const variant = platform.variant ?? "";
  switch (host.architecture) {
    case "amd64":
      if (platform.architecture === "amd64" && (variant === "" || variant === "v1")) return 0;
      return platform.architecture === "386" && variant === "" ? 1 : undefined;
    case "arm64": {
      if (platform.architecture === "arm64" && (variant === "" || variant === "v8")) return 0;
      const older = armVariants.indexOf(variant === "" ? "v7" : variant);
      return platform.architecture === "arm" && older >= 0 ? 1 + older : undefined;
    }
    default:
      return platform.architecture === host.architecture && variant === (host.variant ?? "") ? 0 : undefined;
  }
}

function descriptor(value: unknown): Descriptor {
  const json = object(value, "descriptor");
  const { mediaType, size, annotations, platform } = json;
  if (typeof mediaType !== "string") throw corrupt("descriptor without mediaType");
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0)
    throw corrupt("descriptor with a bad size");
  return {
    mediaType,
    digest: digest(json["digest"]),
    size,
    ...(annotations !== undefined && annotations !== null && { annotations: strings(annotations) }),
    ...(platform !== undefined && platform !== null && { platform: platformOf(platform) }),
  };
}

function platformOf(value: unknown): Platform {
  const { os, architecture, variant } = object(value, "platform");
  return {
    os: typeof os === "string" ? os : "",
    architecture: typeof architecture === "string" ? architecture : "",
    ...(typeof variant === "string" && { variant }),
  };
}

function strings(value: unknown): Record<string, string> {
  const entries = Object.entries(object(value, "annotations"));
  return Object.fromEntries(
    entries.filter((entry): entry is [string, string] => typeof entry[1] === "string"),
  );
}

function digest(value: unknown): Digest {
  if (typeof value !== "string") throw corrupt("digest that is no string");
  return parseDigest(value);
}

function parseObject(bytes: Uint8Array, what: string): Json {
  try {
    return object(JSON.parse(Buffer.from(bytes).toString("utf8")), what);
  } catch (error) {
    throw error instanceof PullError
      ? error
      : new PullError("corrupt", `${what} is not JSON`, { cause: error });
  }
}

function object(value: unknown, what: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw corrupt(`${what} that is no object`);
  return value as Json;
}

function list(value: unknown, what: string): readonly unknown[] {
  if (!Array.isArray(value)) throw corrupt(`${what} that is no list`);
  return value;
}

function corrupt(what: string): PullError {
  return new PullError("corrupt", `malformed image: ${what}`);
}
