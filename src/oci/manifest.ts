// Indexes, manifests and configs: bytes that are already verified in, our values out (OCI image-spec; reference 4.5).
//
// Verified does not mean well-meant: whoever made the image wrote every byte. Sizes are bounded by who fetched them;
// here every field is checked before it is believed. What only containerd may judge is `unsupported`.

import { arch } from "node:process";
import { PullError } from "../errors.ts";
import type { Descriptor, Platform } from "./descriptor.ts";
import { type Digest, parseDigest } from "./digest.ts";
import { isConfig, isIndex, isManifest } from "./media.ts";

export interface Manifest {
  readonly config: Descriptor;
  /** Bottom up. */
  readonly layers: readonly Descriptor[];
}

/** overlayfs takes 128 layers at the most and containerd fails far earlier than this. */
const layersMax = 1024;
const indexEntriesMax = 10_000;

type Json = Readonly<Record<string, unknown>>;

/** The entries of an index, in its order. */
export function parseIndex(bytes: Uint8Array): Descriptor[] {
  const json = parseDocument(bytes, "index");
  if ("config" in json || "layers" in json || isManifest(claimedType(json))) {
    throw new PullError("unsupported", "an index that is a manifest too");
  }
  const entries = list(json["manifests"], "manifests");
  if (entries.length > indexEntriesMax) throw corrupt(`index of ${entries.length} manifests`);
  return entries.map((entry) => descriptor(entry));
}

/** Config and layers of a manifest; what its layers' types mean is for whoever unpacks them. */
export function parseManifest(bytes: Uint8Array): Manifest {
  const json = parseDocument(bytes, "manifest");
  if ("manifests" in json || isIndex(claimedType(json))) {
    throw new PullError("unsupported", "a manifest that is an index too");
  }
  const layers = list(json["layers"] ?? [], "layers");
  if (layers.length > layersMax) throw corrupt(`manifest of ${layers.length} layers`);
  const config = descriptor(json["config"]);
  if (!isConfig(config.mediaType)) {
    throw new PullError("unsupported", `config of type ${JSON.stringify(config.mediaType.slice(0, 200))}`);
  }
  return { config, layers: layers.map((layer) => descriptor(layer)) };
}

/** The digests of the uncompressed layers, bottom up. */
export function parseConfig(bytes: Uint8Array): { readonly diffIDs: readonly Digest[] } {
  const rootfs = object(parseObject(bytes, "config")["rootfs"], "rootfs");
  const type = rootfs["type"] ?? "";
  if (type !== "" && type !== "layers") throw new PullError("unsupported", "a rootfs that is no layers");
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
    const rank = preference(normalised(entry.platform), host);
    if (rank !== undefined && (best === undefined || rank < best.rank)) best = { entry, rank };
  }
  if (best === undefined) throw new PullError("not_found", "no match for platform in manifest");
  return best.entry;
}

const armVariants = ["v8", "v7", "v6", "v5"];

/** containerd reads several spellings as one platform, and an empty system as the host's. */
function normalised({ os, architecture, variant = "" }: Platform): Required<Platform> {
  const system = os === "" ? "linux" : os.toLowerCase();
  const given = variant.toLowerCase();
  const name = architecture.toLowerCase();
  switch (name) {
    case "i386":
      return { os: system, architecture: "386", variant: "" };
    case "x86_64":
    case "x86-64":
    case "amd64":
      return { os: system, architecture: "amd64", variant: given === "v1" ? "" : given };
    case "aarch64":
    case "arm64":
      return { os: system, architecture: "arm64", variant: given === "8" || given === "v8" ? "" : given };
    case "armhf":
      return { os: system, architecture: "arm", variant: "v7" };
    case "armel":
      return { os: system, architecture: "arm", variant: "v6" };
    case "arm":
      return { os: system, architecture: "arm", variant: armVariant(given) };
    default:
      return { os: system, architecture: name, variant: given };
  }
}

function armVariant(given: string): string {
  if (given === "") return "v7";
  return /^[5-8]$/.test(given) ? `v${given}` : given;
}

/** 0 is best; undefined means that it does not run here. */
function preference({ os, architecture, variant }: Required<Platform>, host: Platform): number | undefined {
  if (os !== host.os) return undefined;
  if (architecture === host.architecture && variant === (host.variant ?? "")) return 0;
  if (host.architecture === "amd64") return architecture === "386" && variant === "" ? 1 : undefined;
  const older = host.architecture === "arm64" && architecture === "arm" ? armVariants.indexOf(variant) : -1;
  return older === -1 ? undefined : 1 + older;
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
  try {
    return parseDigest(value);
  } catch (error) {
    // In a reference it would be the caller's mistake; here it is the image's.
    const failure = PullError.from(error);
    throw failure.code === "invalid" ? corrupt(failure.message) : failure;
  }
}

/** An index or a manifest, which containerd refuses alike when it holds layers of schema 1. */
function parseDocument(bytes: Uint8Array, what: string): Json {
  const json = parseObject(bytes, what);
  if ("fsLayers" in json) throw new PullError("unsupported", "a schema 1 manifest");
  return json;
}

/** The type that a document gives itself; empty when it does not, which is fine. */
function claimedType(json: Json): string {
  const { mediaType } = json;
  return typeof mediaType === "string" ? mediaType : "";
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
