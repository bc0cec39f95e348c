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
import { parseConfig, parseDescriptor } from "../oci/manifest.ts";
import { isIndex, isManifest, mediaTypes, ociLayerType } from "../oci/media.ts";
import type { Files, Place } from "./files.ts";

/** Most bytes of a JSON file that lists an archive's images. */
const listBytesMax = 16 * 1024 * 1024;
const configBytesMax = 4 * 1024 * 1024;
const imagesMax = 10_000;
const layersMax = 1_024;
/** Of all manifests that are made for images without one. */
const madeBytesMax = 64 * 1024 * 1024;
/** Signatures and the like, which are attached to an image by the name that they are given (cosign). */
const attached = /^sha256-[0-9a-f]{64}(?:\.\w+)?$/;

/** An image of the archive, under one of its names. */
export interface Content {
  /** As the archive calls it; undefined where it does not, or by a tag alone. */
  readonly name: string | undefined;
  /** What the archive does say, for a person. */
  readonly hint: string | undefined;
  /** Or why there is no image. */
  readonly image: ArchivedImage | PullError;
}

export interface ArchivedImage {
  readonly target: Descriptor;
  /** Its digest is one that a registry may have it by as well. */
  readonly isOriginal: boolean;
  /** What is not a file in the archive. */
  readonly made: ReadonlyMap<Digest, Buffer>;
  /** Where each blob is; undefined for what the archive lacks. */
  readonly blob: (digest: Digest) => Place | undefined;
}

/** Throws `invalid` when it is neither, `corrupt` when its list of images is none, `exhausted` when that is too long. */
export async function contentsOf(files: Files, signal: AbortSignal): Promise<readonly Content[]> {
  const [layout, index] = [files.find("oci-layout"), files.find("index.json")];
  const manifests = files.find("manifest.json");
  if (layout && index) return await readLayout(files, index);
  if (manifests) return await new Saved(files, signal).read(manifests);
  throw new PullError(
    "invalid",
    "it holds no images: there is neither an index.json with oci-layout nor a manifest.json in it",
  );
}

async function readLayout(files: Files, index: Place): Promise<readonly Content[]> {
  const bytes = await files.read(index, listBytesMax);
  const { manifests } = object(parseJson(bytes, "index.json"), "index.json", ["manifests"]);
  const all = mustBeFew(list(manifests ?? [], "manifests of index.json"));
  const blob = (digest: Digest): Place | undefined => files.find(`blobs/sha256/${hexOf(digest)}`);
  const contents = all.flatMap((value) => entryOf(value, blob) ?? []);
  const entries = contents.flatMap(({ image }) => (image instanceof PullError ? [] : [image.target]));
  // Several of one image, each for a platform of its own: what lists them is the image's index.
  const isOne = entries.length > 1 && entries.every(({ platform }) => platform !== undefined);
  if (!isOne || contents.some(({ name }) => name !== undefined)) return contents;
  const digest = sha256(bytes);
  const target = { mediaType: mediaTypes.ociIndex, digest, size: bytes.length };
  const image = { target, isOriginal: false, made: new Map([[digest, bytes]]), blob };
  return [{ name: undefined, hint: contents.find(({ hint }) => hint !== undefined)?.hint, image }];
}

/** Undefined for what is no image. */
function entryOf(value: unknown, blob: ArchivedImage["blob"]): Content | undefined {
  try {
    const target = parseDescriptor(value);
    const names = nameOf(target.annotations ?? {});
    const isImage = isIndex(target.mediaType) || isManifest(target.mediaType);
    if (!isImage || (names.name === undefined && attached.test(names.hint ?? ""))) return undefined;
    return { ...names, image: { target, isOriginal: true, made: new Map(), blob } };
  } catch (error) {
    return { name: undefined, hint: undefined, image: PullError.from(error) };
  }
}

/** containerd's and docker's own annotation has the whole name; the standard's may be that or a tag alone. */
function nameOf(annotations: Readonly<Record<string, string>>): Pick<Content, "name" | "hint"> {
  const full = annotations["io.containerd.image.name"];
  const name = annotations["org.opencontainers.image.ref.name"];
  if (full) return { name: full, hint: undefined };
  if (name && /[/:@]/.test(name)) return { name, hint: undefined };
  return { name: undefined, hint: name };
}

/** What "docker save" has written. */
class Saved {
  readonly #files: Files;
  readonly #signal: AbortSignal;
  /** Of layers that had to be read for it, by where they are: images share them. */
  readonly #digests = new Map<number, Promise<Digest>>();
  #madeBytes = 0;

  constructor(files: Files, signal: AbortSignal) {
    this.#files = files;
    this.#signal = signal;
  }

  async read(manifests: Place): Promise<readonly Content[]> {
    const json = parseJson(await this.#files.read(manifests, listBytesMax), "manifest.json");
    const contents: Content[] = [];
    for (const entry of mustBeFew(list(json, "manifest.json"))) {
      throwIfAborted(this.#signal);
      for (const content of await this.#entry(entry)) contents.push(content);
      mustBeFew(contents);
    }
    return contents;
  }

  /** One image under each of its names. */
  async #entry(entry: unknown): Promise<readonly Content[]> {
    const fields = object(entry, "entry of manifest.json", ["Config", "Layers", "RepoTags"]);
    const names = mustBeFew(strings(fields["RepoTags"], "RepoTags"));
    const image = await this.#image(fields).catch((error: unknown) => {
      const failure = PullError.from(error);
      if (failure.code === "cancelled" || failure.code === "exhausted") throw failure;
      return failure;
    });
    return (names.length === 0 ? [undefined] : names).map((name) => ({ name, hint: undefined, image }));
  }

  async #image({ Config, Layers }: Readonly<Record<string, unknown>>): Promise<ArchivedImage> {
    const config = this.#mustFind(Config);
    const bytes = await this.#files.read(config, configBytesMax);
    const names = strings(Layers, "Layers");
    const { diffIDs } = parseConfig(bytes);
    if (names.length > layersMax || names.length !== diffIDs.length)
      throw new PullError("corrupt", `an image of ${names.length} layers with ${diffIDs.length} diffIDs`);
    const places = new Map<Digest, Place>([[sha256(bytes), config]]);
    const layers: Descriptor[] = [];
    for (const [nth, name] of names.entries()) {
      const place = this.#mustFind(name);
      const layer = await this.#layer(place, diffIDs[nth]);
      places.set(layer.digest, place);
      layers.push(layer);
    }
    const own = { mediaType: mediaTypes.ociConfig, digest: sha256(bytes), size: bytes.length };
    const manifest = Buffer.from(
      JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, config: own, layers }),
    );
    this.#madeBytes += manifest.length;
    if (this.#madeBytes > madeBytesMax) throw new PullError("exhausted", "it holds too many layers");
    const target = { mediaType: mediaTypes.ociManifest, digest: sha256(manifest), size: manifest.length };
    const made = new Map([[target.digest, manifest]]);
    return { target, isOriginal: false, made, blob: (digest) => places.get(digest) };
  }

  #mustFind(name: unknown): Place {
    if (typeof name !== "string")
      throw new PullError("corrupt", "manifest.json with a name that is no string");
    const place = this.#files.find(name);
    if (place) return place;
    throw new PullError(
      "corrupt",
      `manifest.json names ${JSON.stringify(name.slice(0, 200))}, which is not there`,
    );
  }

  /** One that is not compressed has its diffID for a digest, which is looked at when it is unpacked; any other is read once for it. */
  async #layer(place: Place, diffID: Digest | undefined): Promise<Descriptor> {
    const head = await this.#files.read({ ...place, sizeBytes: Math.min(4, place.sizeBytes) }, 4);
    const compression = sniff(head);
    const describe = (digest: Digest): Descriptor => ({
      mediaType: ociLayerType(compression),
      digest,
      size: place.sizeBytes,
    });
    if (compression === "none" && diffID !== undefined) return describe(diffID);
    const hashed = this.#digests.get(place.offset) ?? this.#hash(place);
    this.#digests.set(place.offset, hashed);
    return describe(await hashed);
  }

  async #hash(place: Place): Promise<Digest> {
    const hasher = createHash("sha256");
    for await (const piece of this.#files.pieces(place)) {
      throwIfAborted(this.#signal);
      hasher.update(piece);
    }
    return `sha256:${hasher.digest("hex")}` as Digest;
  }
}

function strings(value: unknown, what: string): readonly string[] {
  const found = list(value ?? [], what);
  if (found.every((one) => typeof one === "string")) return found;
  throw new PullError("corrupt", `${what} that are no strings`);
}

function mustBeFew<Value>(values: readonly Value[]): readonly Value[] {
  if (values.length <= imagesMax) return values;
  throw new PullError("exhausted", `it holds over ${imagesMax} images`);
}
