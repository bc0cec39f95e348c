// Indexes, manifests and configs: bytes that are already verified in, our values out (OCI image-spec; reference 4.5).
//
// Verified does not mean well-meant: whoever made the image wrote every byte. Sizes are bounded by who fetched them;
// here every field is checked before it is believed. What only containerd may judge is `unsupported`.

import { arch } from "node:process";
import { PullError } from "../errors.ts";
import type { Descriptor, Platform } from "./descriptor.ts";
import { type Digest, parseDigest } from "./digest.ts";
import { type Json, list, malformed, object, parseJson } from "./json.ts";
import { isConfig, isIndex, isManifest } from "./media.ts";

export interface Manifest {
  readonly config: Descriptor;
  /** Bottom up. */
  readonly layers: readonly Descriptor[];
}

/** overlayfs takes 128 layers at the most and containerd fails far earlier than this. */
const layersMax = 1024;
const indexEntriesMax = 10_000;

/** The fields that are read here, of each kind of object. */
const fields = {
  document: ["mediaType", "config", "layers", "manifests", "fsLayers"],
  descriptor: ["mediaType", "digest", "size", "urls", "annotations", "data", "platform"],
  platform: ["os", "architecture", "variant", "os.version", "os.features"],
  config: ["rootfs"],
  rootfs: ["type", "diff_ids"],
} as const;

/** The entries of an index, in its order. */
export function parseIndex(bytes: Uint8Array): Descriptor[] {
  const json = parseDocument(bytes, "index");
  if ("config" in json || "layers" in json || isManifest(claimedType(json))) {
    throw new PullError("unsupported", "an index that is a manifest too");
  }
  const entries = list(json["manifests"], "manifests");
  if (entries.length > indexEntriesMax) throw malformed(`index of ${entries.length} manifests`);
  return entries.map((entry) => parseDescriptor(entry));
}

/** Config and layers of a manifest; what its layers' types mean is for whoever unpacks them. */
export function parseManifest(bytes: Uint8Array): Manifest {
  const json = parseDocument(bytes, "manifest");
  if ("manifests" in json || isIndex(claimedType(json))) {
    throw new PullError("unsupported", "a manifest that is an index too");
  }
  const layers = list(json["layers"] ?? [], "layers");
  if (layers.length > layersMax) throw malformed(`manifest of ${layers.length} layers`);
  const config = part(json["config"]);
  if (!isConfig(config.mediaType)) {
    throw new PullError("unsupported", `config of type ${JSON.stringify(config.mediaType.slice(0, 200))}`);
  }
  return { config, layers: layers.map((layer) => part(layer)) };
}

/** The digests of the uncompressed layers, bottom up. */
export function parseConfig(bytes: Uint8Array): { readonly diffIDs: readonly Digest[] } {
  const config = object(parseJson(bytes, "config"), "config", fields.config);
  const rootfs = object(config["rootfs"], "rootfs", fields.rootfs);
  const type = rootfs["type"] ?? "";
  if (type !== "" && type !== "layers") throw new PullError("unsupported", "a rootfs that is no layers");
  const diffIDs = list(rootfs["diff_ids"] ?? [], "diff_ids");
  if (diffIDs.length > layersMax) throw malformed(`config of ${diffIDs.length} diffIDs`);
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
 * The entry that every containerd takes on this host (reference 6.6): the first of the host's own platform. Entries that
 * one version takes and another does not are containerd's to judge: without a platform, for an older architecture that
 * the host also runs, or for a version or features of the system.
 */
export function selectPlatform(entries: readonly Descriptor[], host: Platform): Descriptor {
  let isSecondChoice = false;
  let own: Descriptor | undefined;
  for (const entry of entries) {
    if (entry.platform === undefined) throw new PullError("unsupported", "an index entry without a platform");
    const platform = normalised(entry.platform);
    if (platform.os !== host.os) continue;
    const isOwn = isOfHost(platform, host);
    isSecondChoice ||= secondChoices[host.architecture] === platform.architecture;
    if (isOwn && entry.platform.isNarrowed)
      throw new PullError("unsupported", "an index entry with os.features");
    if (isOwn) own ??= entry;
  }
  if (own) return own;
  if (isSecondChoice) throw new PullError("unsupported", "an index without this host's own architecture");
  throw new PullError("not_found", "no match for platform in manifest");
}

/** How many entries are of the host's own platform. */
export function countOwn(entries: readonly Descriptor[], host: Platform): number {
  return entries.filter(({ platform }) => platform !== undefined && isOfHost(normalised(platform), host))
    .length;
}

function isOfHost({ os, architecture, variant }: Normalised, host: Platform): boolean {
  return os === host.os && architecture === host.architecture && variant === (host.variant ?? "");
}

/** Older architectures that a host may run as well. */
const secondChoices: Readonly<Record<string, string>> = { amd64: "386", arm64: "arm" };

type Normalised = Platform & { readonly variant: string };

/** containerd reads several spellings as one platform, and an empty system as the host's. */
function normalised({ os, architecture, variant = "" }: Platform): Normalised {
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

/** A config or a layer: nothing but where its bytes are in the registry may be said of it. */
function part(value: unknown): Descriptor {
  const parsed = parseDescriptor(value);
  if (parsed.platform !== undefined)
    throw new PullError("unsupported", "a config or a layer with a platform");
  // containerd refuses to fetch it.
  if (parsed.size === 0) throw new PullError("unsupported", "a config or a layer of no bytes");
  return parsed;
}

/** What an index or a manifest says of a blob. */
export function parseDescriptor(value: unknown): Descriptor {
  const json = object(value, "descriptor", fields.descriptor);
  const { mediaType, size, annotations, platform, urls, data } = json;
  if (typeof mediaType !== "string") throw malformed("descriptor without mediaType");
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0)
    throw malformed("descriptor with a bad size");
  // containerd would take the bytes from there, or from here, and not from the registry.
  const isElsewhere = (isSet(urls) && !(Array.isArray(urls) && urls.length === 0)) || isSet(data);
  if (isElsewhere) throw new PullError("unsupported", "a descriptor with urls or data");
  return {
    mediaType,
    digest: digest(json["digest"]),
    size,
    ...(isSet(annotations) && { annotations: strings(annotations) }),
    ...(isSet(platform) && { platform: platformOf(platform) }),
  };
}

function isSet(value: unknown): boolean {
  return value !== undefined && value !== null;
}

function platformOf(value: unknown): Platform {
  const json = object(value, "platform", fields.platform);
  const { os, architecture, variant } = json;
  return {
    os: typeof os === "string" ? os : "",
    architecture: typeof architecture === "string" ? architecture : "",
    ...(typeof variant === "string" && { variant }),
    ...((isSet(json["os.version"]) || isSet(json["os.features"])) && { isNarrowed: true }),
  };
}

function strings(value: unknown): Record<string, string> {
  const entries = Object.entries(object(value, "annotations", []));
  return Object.fromEntries(
    entries.filter((entry): entry is [string, string] => typeof entry[1] === "string"),
  );
}

function digest(value: unknown): Digest {
  if (typeof value !== "string") throw malformed("digest that is no string");
  try {
    return parseDigest(value);
  } catch (error) {
    // In a reference it would be the caller's mistake; here it is the image's.
    const failure = PullError.from(error);
    throw failure.code === "invalid" ? malformed(failure.message) : failure;
  }
}

/** An index or a manifest, which containerd refuses alike when it holds layers of schema 1. */
function parseDocument(bytes: Uint8Array, what: string): Json {
  const json = object(parseJson(bytes, what), what, fields.document);
  if ("fsLayers" in json) throw new PullError("unsupported", "a schema 1 manifest");
  return json;
}

/** The type that a document gives itself; empty when it does not, which is fine. */
function claimedType(json: Json): string {
  const { mediaType } = json;
  return typeof mediaType === "string" ? mediaType : "";
}
