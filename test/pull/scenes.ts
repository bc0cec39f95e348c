// Pulls that differ in what of the image is there before, or comes meanwhile: together they make every call that a
// pull can make.

import { randomBytes } from "node:crypto";
import { existsSync, writeFileSync } from "node:fs";
import { chainIDs, type Digest, sha256 } from "../../src/oci/digest.ts";
import type { FakeImage } from "../fakes/registry.ts";
import { dir, file, tar } from "../fakes/tar.ts";
import { layerTypes } from "../layer/staging.ts";
import { another, namespace, type Rig } from "./rig.ts";

/** An image to pull. Its layers are not compressed, so that their digests are their diffIDs. */
export interface Pullable extends FakeImage {
  readonly chainIDs: readonly Digest[];
  /** A file of each layer, and what is in it. */
  readonly files: readonly { readonly path: string; readonly content: Buffer }[];
}

export interface Scene {
  readonly name: string;
  /** Namespaces do not share content, so that kept layers are streamed. */
  readonly isolated?: boolean;
  /** Hawser makes the records. */
  readonly direct?: boolean;
  /** Makes an image, and puts of it what is there before; the image's own pull is yet to come. */
  readonly set: (rig: Rig) => Promise<Pullable>;
  /** What somebody else does right before a step. */
  readonly meddle?: (rig: Rig, step: string) => void;
  /** The step from which on it may go otherwise than where nothing is there. */
  readonly from?: string;
}

export const scenes: readonly Scene[] = [
  { name: "nothing is there", set: async (rig) => putNext(rig, [layer(), layer()]) },
  {
    name: "all but the upper layer is there",
    set: async (rig) => {
      const image = whole.get(rig) ?? putImage(rig);
      if (!whole.has(rig)) await rig.mustPull(image);
      whole.set(rig, image);
      rig.forgetUpper(image);
      return image;
    },
  },
  {
    name: "layers are streamed",
    isolated: true,
    set: async (rig) => putNext(rig, [layer(1_200_000)]),
    from: "Snapshots/Commit",
  },
  {
    name: "records are made by us",
    direct: true,
    set: async (rig) => putNext(rig, [layer()]),
    from: "Content/Write COMMIT",
  },
  {
    name: "another client is faster",
    set: async (rig) => putNext(rig, [layer()]),
    meddle: (rig, step) => {
      if (step === "Snapshots/Commit") commitAsAnother(rig);
      if (step === "Content/Write COMMIT") writeAsAnother(rig);
    },
    from: "Content/Write COMMIT",
  },
];

/** Images of which only the upper layer is made again and again. */
const whole = new WeakMap<Rig, Pullable>();
let count = 0;

interface Layer {
  readonly bytes: Buffer;
  readonly file: { readonly path: string; readonly content: Buffer };
}

function layer(contentBytes = 1000): Layer {
  count += 1;
  const one = { path: `${count}/content`, content: randomBytes(contentBytes) };
  return { bytes: tar([dir(`${count}`), file(one.path, one.content)]), file: one };
}

/** An image of two layers, of which nothing is there. */
export function putImage(rig: Rig): Pullable {
  return put(rig, [layer(), layer()]);
}

/** Of the images before it nothing is needed any more. */
function putNext(rig: Rig, layers: readonly Layer[]): Pullable {
  rig.fake.metadata.of(namespace).images.clear();
  return put(rig, layers);
}

function put(rig: Rig, layers: readonly Layer[]): Pullable {
  count += 1;
  const specs = layers.map(({ bytes }) => ({ bytes, mediaType: layerTypes.plain }));
  const image = rig.registry.put(`scene/image-${count}:v1`, specs);
  const chains = chainIDs(layers.map(({ bytes }) => sha256(bytes)));
  return { ...image, chainIDs: chains, files: layers.map((one) => one.file) };
}

/** Commits what is being made, from its very folder. */
function commitAsAnother(rig: Rig): void {
  const { metadata } = rig.fake;
  const { snapshots } = metadata.within(namespace);
  for (const [key, { parent, id }] of snapshots) {
    const [, chainID] = /^extract-\S+ (\S+)$/.exec(key) ?? [];
    if (chainID === undefined || snapshots.has(chainID)) continue;
    snapshots.set(chainID, { kind: "committed", parent, labels: {}, id });
    metadata.hold(another, "snapshots/overlayfs", chainID);
  }
}

/** Writes what is being written. */
function writeAsAnother(rig: Rig): void {
  const { metadata } = rig.fake;
  const { ingests, blobs } = metadata.within(namespace);
  for (const { data, shared, total } of ingests.values()) {
    const digest = shared ?? sha256(data);
    const isWhole = shared !== undefined || BigInt(data.length) === total;
    if (!isWhole || blobs.has(digest)) continue;
    if (!existsSync(metadata.blobPath(digest))) writeFileSync(metadata.blobPath(digest), data);
    blobs.set(digest, { size: total, labels: {} });
    metadata.hold(another, "content", digest);
  }
}
