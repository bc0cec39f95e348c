// What an image is made of: manifest for this platform, config and chainIDs, and how much of it the node has.
//
// Where index, manifest and config are read from is the caller's business; nothing is written here.

import { open } from "node:fs/promises";
import { join } from "node:path";
import type { Labels, Lease } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { chainIDs, type Digest, hexOf, sha256 } from "../oci/digest.ts";
import { hostPlatform, parseConfig, parseIndex, parseManifest, selectPlatform } from "../oci/manifest.ts";
import { isIndex, layerPacking } from "../oci/media.ts";
import type { DocumentKind } from "../oci/ordinary.ts";

/** Most bytes of an index or a manifest: containerd's limit (reference 6.3). */
const manifestBytesMax = 4 * 1048 * 1048;
/** Most bytes of an image config; real ones are a few KiB, and parsed JSON takes many times its text. */
const configBytesMax = 4 * 1024 * 1024;

const inheritedPrefix = "containerd.io/snapshot/";

/** What an image consists of, as far as a pull is concerned. */
export interface Plan {
  /** Index (if any), manifest and config. */
  readonly documents: readonly Document[];
  /** Bottom up. */
  readonly layers: readonly PlannedLayer[];
}

export interface Document {
  readonly kind: DocumentKind;
  readonly descriptor: Descriptor;
  readonly bytes: Uint8Array;
  /** It is in the content store already. */
  readonly isStored: boolean;
  /** What it names, in containerd's order: manifests, or config and layers. */
  readonly children: readonly Descriptor[];
}

/** Where documents are read from; throws what keeps it from being read, and never more bytes than asked for. */
export type Read = (
  descriptor: Descriptor,
  bytesMax: number,
) => Promise<Pick<Document, "bytes" | "isStored">>;

export interface PlannedLayer {
  readonly descriptor: Descriptor;
  readonly diffID: Digest;
  readonly chainID: Digest;
  /** Of the layer's snapshot. */
  readonly labels: Labels;
}

/** Reads what there is to read, and checks that all is for us. */
export async function plan(target: Descriptor, read: Read): Promise<Plan> {
  const documents: Document[] = [];
  const add = async <Parsed>(
    kind: DocumentKind,
    descriptor: Descriptor,
    parse: (bytes: Uint8Array) => Parsed,
    childrenOf: (parsed: Parsed) => readonly Descriptor[],
  ): Promise<Parsed> => {
    const document = await read(descriptor, mustBeShort(kind, descriptor));
    const parsed = parse(document.bytes);
    documents.push({ kind, descriptor, ...document, children: childrenOf(parsed) });
    return parsed;
  };
  const own = isIndex(target.mediaType)
    ? selectPlatform(await add("index", target, parseIndex, (entries) => entries), hostPlatform())
    : target;
  const manifest = await add("manifest", own, parseManifest, ({ config, layers }) => [config, ...layers]);
  for (const layer of manifest.layers) layerPacking(layer.mediaType);
  const config = await add("config", manifest.config, parseConfig, () => []);
  return { documents, layers: chain(manifest.layers, config.diffIDs) };
}

/** How many bytes a document may have at the most. */
function mustBeShort(kind: DocumentKind, { digest, size }: Descriptor): number {
  const bytesMax = kind === "config" ? configBytesMax : manifestBytesMax;
  if (size > bytesMax) throw new PullError("corrupt", `${digest} is ${size} bytes long, over ${bytesMax}`);
  return bytesMax;
}

/** How many layers, counted from the bottom, are in place; the uppermost of them is held by the lease. */
export async function countPresent(
  layers: readonly PlannedLayer[],
  lease: Lease,
  signal: AbortSignal,
): Promise<number> {
  const isPresent = async (count: number): Promise<boolean> => {
    const layer = layers[count - 1];
    return layer === undefined || (await lease.holdSnapshot(layer.chainID, signal));
  };
  if (await isPresent(layers.length)) return layers.length;
  // A committed snapshot has all of its parents, so presence is monotone and can be searched for by halves.
  let present = 0;
  let absent = layers.length;
  while (absent - present > 1) {
    const middle = Math.floor((present + absent) / 2);
    if (await isPresent(middle)) present = middle;
    else absent = middle;
  }
  return present;
}

function chain(layers: readonly Descriptor[], diffIDs: readonly Digest[]): PlannedLayer[] {
  if (layers.length !== diffIDs.length) {
    throw new PullError(
      "corrupt",
      `manifest has ${layers.length} layers and config ${diffIDs.length} diffIDs`,
    );
  }
  const chains = chainIDs(diffIDs);
  return layers.map((descriptor, index) => {
    const [diffID, chainID] = [diffIDs[index], chains[index]];
    if (diffID === undefined || chainID === undefined)
      throw new PullError("internal", "chainIDs do not match");
    return { descriptor, diffID, chainID, labels: inherited(descriptor) };
  });
}

/** Annotations of a layer that containerd makes labels of its snapshot (reference 2.4). */
function inherited({ annotations = {} }: Descriptor): Labels {
  const passed = Object.entries(annotations).filter(([key]) => key.startsWith(inheritedPrefix));
  // They would make the snapshot belong to other users, on some versions.
  if (passed.some(([key]) => /\/[ug]idmapping$/.test(key)))
    throw new PullError("unsupported", "a layer with a mapping of users");
  return Object.fromEntries(passed);
}

/** The blob's bytes as they lie in the content store, if they are whole; who wants them to stay has to hold the blob. */
export async function readStored(
  descriptor: Descriptor,
  contentRoot: string,
): Promise<Uint8Array | undefined> {
  try {
    await using file = await open(join(contentRoot, "blobs", "sha256", hexOf(descriptor.digest)));
    if ((await file.stat()).size !== descriptor.size) return undefined;
    const bytes = await file.readFile();
    return sha256(bytes) === descriptor.digest ? bytes : undefined;
  } catch {
    return undefined;
  }
}
