// What images an archive holds: an OCI image layout, or what "docker save" writes.
//
// Layout: OCI image-spec, image-layout.md. Docker's archive is described by its manifest.json (moby, image/spec/v1.2.md);
// there is no manifest of an image in it, so one is made, which says the same. Newer ones are both, and read as the former.
// Names are those that whoever made the archive gave; nothing is made up for an image without one.

import { createHash } from "node:crypto";
import { PullError, throwIfAborted } from "../errors.ts";
import { sniff } from "../layer/decompress.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { type Digest, hexOf, sha256 } from "../oci/digest.ts";
import { list, object, parseJson } from "../oci/json.ts";
import { parseConfig, parseIndex } from "../oci/manifest.ts";
import { isIndex, isManifest, mediaTypes, ociLayerType } from "../oci/media.ts";
import type { Files, Place } from "./files.ts";

/** Most bytes of a JSON file that lists an archive's images. */
const listBytesMax = 16 * 1024 * 1024;
const configBytesMax = 4 * 1024 * 1024;
const imagesMax = 10_000;
const layersMax = 1_024;

/** An image of the archive. */
export interface Content {
  /** As the archive calls it; undefined where it does not, or by a tag alone. */
  readonly name: string | undefined;
  /** What the archive does say, for a person. */
  readonly hint: string | undefined;
  readonly target: Descriptor;
  /** Its digest is one that a registry may have it by as well. */
  readonly isOriginal: boolean;
  /** What is not a file of its own in the archive. */
  readonly made: ReadonlyMap<Digest, Buffer>;
  /** Where each blob is; undefined for what the archive lacks. */
  readonly blob: (digest: Digest) => Place | undefined;
}

/** Throws `invalid` when it is neither, `corrupt` when it is not what it says. */
export async function contentsOf(files: Files, signal: AbortSignal): Promise<readonly Content[]> {
  const [layout, index] = [files.find("oci-layout"), files.find("index.json")];
  if (layout && index) return await readLayout(files, index);
  const manifests = files.find("manifest.json");
  if (manifests) return await readDocker(files, manifests, signal);
  throw new PullError(
    "invalid",
    "it holds no images: there is neither an index.json with oci-layout nor a manifest.json in it",
  );
}

async function readLayout(files: Files, index: Place): Promise<readonly Content[]> {
  const bytes = await files.read(index, listBytesMax);
  const entries = parseIndex(bytes).filter(({ mediaType }) => isIndex(mediaType) || isManifest(mediaType));
  if (entries.length > imagesMax) throw tooMany(entries.length);
  const blob = (digest: Digest): Place | undefined => files.find(`blobs/sha256/${hexOf(digest)}`);
  const named = entries.map((target): Content => {
    const { name, hint } = nameOf(target.annotations ?? {});
    return { name, hint, target, isOriginal: true, made: new Map(), blob };
  });
  // Several of one image, each for a platform of its own: what lists them is the image's index.
  const isOne = entries.length > 1 && entries.every(({ platform }) => platform !== undefined);
  if (!isOne || named.some(({ name }) => name !== undefined)) return named;
  const digest = sha256(bytes);
  const target = { mediaType: mediaTypes.ociIndex, digest, size: bytes.length };
  const hint = named.find((one) => one.hint !== undefined)?.hint;
  return [{ name: undefined, hint, target, isOriginal: false, made: new Map([[digest, bytes]]), blob }];
}

/** containerd's and docker's own annotation has the whole name; the standard's may be that or a tag alone. */
function nameOf(annotations: Readonly<Record<string, string>>): Pick<Content, "name" | "hint"> {
  const full = annotations["io.containerd.image.name"];
  const name = annotations["org.opencontainers.image.ref.name"];
  if (full) return { name: full, hint: undefined };
  if (name && /[/:@]/.test(name)) return { name, hint: undefined };
  return { name: undefined, hint: name };
}

async function readDocker(files: Files, manifests: Place, signal: AbortSignal): Promise<readonly Content[]> {
  const entries = list(
    parseJson(await files.read(manifests, listBytesMax), "manifest.json"),
    "manifest.json",
  );
  if (entries.length > imagesMax) throw tooMany(entries.length);
  const contents: Content[] = [];
  const digests = new Map<number, Promise<Digest>>();
  for (const entry of entries) contents.push(...(await readSaved(files, entry, digests, signal)));
  return contents;
}

/** One image under each of its names. */
async function readSaved(
  files: Files,
  entry: unknown,
  digests: Map<number, Promise<Digest>>,
  signal: AbortSignal,
): Promise<Content[]> {
  const { Config, Layers, RepoTags } = object(entry, "entry of manifest.json", [
    "Config",
    "Layers",
    "RepoTags",
  ]);
  const config = await files.read(mustFind(files, Config), configBytesMax);
  const names = list(Layers ?? [], "Layers");
  const { diffIDs } = parseConfig(config);
  if (names.length > layersMax || names.length !== diffIDs.length)
    throw new PullError("corrupt", `an image of ${names.length} layers with ${diffIDs.length} diffIDs`);
  const places = new Map<Digest, Place>();
  const layers: Descriptor[] = [];
  for (const [nth, name] of names.entries()) {
    throwIfAborted(signal);
    const layer = await layerOf(files, name, diffIDs[nth], digests);
    places.set(layer.descriptor.digest, layer.place);
    layers.push(layer.descriptor);
  }
  const configOf = { mediaType: mediaTypes.ociConfig, digest: sha256(config), size: config.length };
  const manifest = Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, config: configOf, layers }),
  );
  const target = { mediaType: mediaTypes.ociManifest, digest: sha256(manifest), size: manifest.length };
  const made = new Map([
    [target.digest, manifest],
    [configOf.digest, config],
  ]);
  const tags = list(RepoTags ?? [], "RepoTags").map(String);
  return (tags.length === 0 ? [undefined] : tags).map((name) => ({
    name,
    hint: undefined,
    target,
    isOriginal: false,
    made,
    blob: (digest) => places.get(digest),
  }));
}

function mustFind(files: Files, name: unknown): Place {
  if (typeof name !== "string") throw new PullError("corrupt", "manifest.json with a name that is no string");
  const place = files.find(name);
  if (place) return place;
  throw new PullError(
    "corrupt",
    `manifest.json names ${JSON.stringify(name.slice(0, 200))}, which is not there`,
  );
}

/** One that is not compressed has its diffID for a digest, which is looked at when it is unpacked; any other is read once for it. */
async function layerOf(
  files: Files,
  name: unknown,
  diffID: Digest | undefined,
  digests: Map<number, Promise<Digest>>,
): Promise<{ readonly descriptor: Descriptor; readonly place: Place }> {
  const place = mustFind(files, name);
  const head = await files.read({ ...place, sizeBytes: Math.min(4, place.sizeBytes) }, 4);
  const compression = sniff(head);
  const describe = (digest: Digest): Descriptor => ({
    mediaType: ociLayerType(compression),
    digest,
    size: place.sizeBytes,
  });
  if (compression === "none" && diffID !== undefined) return { descriptor: describe(diffID), place };
  const hashed = digests.get(place.offset) ?? hash(files, place);
  digests.set(place.offset, hashed);
  return { descriptor: describe(await hashed), place };
}

async function hash(files: Files, place: Place): Promise<Digest> {
  const hasher = createHash("sha256");
  for await (const piece of files.pieces(place)) hasher.update(piece);
  return `sha256:${hasher.digest("hex")}` as Digest;
}

function tooMany(count: number): PullError {
  return new PullError("exhausted", `it holds ${count} images, over ${imagesMax}`);
}
