// What an image is made of: manifest for this platform, config and chainIDs, and how much of it the node has.
//
// Metadata comes from the content store where it is there already, else from the registry; nothing is written here.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Labels, Lease } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { chainIDs, type Digest, hexOf, sha256 } from "../oci/digest.ts";
import { hostPlatform, parseConfig, parseIndex, parseManifest, selectPlatform } from "../oci/manifest.ts";
import { isIndex, layerPacking } from "../oci/media.ts";
import type { Repository, Resolved } from "../registry/registry.ts";

/** Most bytes of an index or a manifest: containerd's limit (reference 6.3). */
const manifestBytesMax = 4 * 1048 * 1048;
/** Most bytes of an image config; real ones are a few KiB, and parsed JSON takes many times its text. */
const configBytesMax = 4 * 1024 * 1024;

const inheritedPrefix = "containerd.io/snapshot/";

/** What an image consists of, as far as a pull is concerned. */
export interface Plan {
  /** Of index (if any), manifest and config those that the lease does not hold yet. */
  readonly metadata: readonly { readonly descriptor: Descriptor; readonly bytes: Uint8Array }[];
  /** Bottom up. */
  readonly layers: readonly PlannedLayer[];
}

export interface PlannedLayer {
  readonly descriptor: Descriptor;
  readonly diffID: Digest;
  readonly chainID: Digest;
  /** Of the layer's snapshot. */
  readonly labels: Labels;
}

/** Reads manifest and config, from the content store where they are there already, and checks that all is for us. */
export async function plan(
  resolved: Resolved,
  repository: Repository,
  lease: Lease,
  contentRoot: string,
  signal: AbortSignal,
): Promise<Plan> {
  const metadata: { descriptor: Descriptor; bytes: Uint8Array }[] = [];
  const read = async (descriptor: Descriptor, bytesMax: number, body?: Uint8Array): Promise<Uint8Array> => {
    if (descriptor.size > bytesMax) {
      throw new PullError(
        "corrupt",
        `${descriptor.digest} is ${descriptor.size} bytes long, over ${bytesMax}`,
      );
    }
    const held = body ? undefined : await stored(descriptor, lease, contentRoot);
    if (held) return held;
    const bytes = body ?? (await repository.fetch(descriptor, bytesMax, signal));
    metadata.push({ descriptor, bytes });
    return bytes;
  };

  let target = resolved.descriptor;
  let bytes = await read(target, manifestBytesMax, resolved.body);
  if (isIndex(target.mediaType)) {
    target = selectPlatform(parseIndex(bytes), hostPlatform());
    bytes = await read(target, manifestBytesMax);
  }
  const manifest = parseManifest(bytes);
  for (const layer of manifest.layers) layerPacking(layer.mediaType);
  const config = parseConfig(await read(manifest.config, configBytesMax));
  return { metadata, layers: chain(manifest.layers, config.diffIDs) };
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

/** The blob from the content store if it is there and whole; the lease keeps it there. */
async function stored(
  descriptor: Descriptor,
  lease: Lease,
  contentRoot: string,
): Promise<Uint8Array | undefined> {
  if (!(await lease.holdContent(descriptor))) return undefined;
  const bytes = await readFile(join(contentRoot, "blobs", "sha256", hexOf(descriptor.digest))).catch(
    () => undefined,
  );
  return bytes && sha256(bytes) === descriptor.digest ? bytes : undefined;
}
