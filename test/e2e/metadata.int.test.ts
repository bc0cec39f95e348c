// Manifests, indexes and configs that are odd or meant badly, on every containerd that there is: the answer, the records
// and the trees are those of a containerd that pulls the same image by itself.

import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { mediaTypes } from "../../src/oci/media.ts";
import { configOf, FakeRegistry, sha256 } from "../fakes/registry.ts";
import { dir, file, tar } from "../fakes/tar.ts";
import { packZstd, skippableFrame } from "../fakes/zstd.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { layerTypes } from "../harness/images.ts";
import { settled } from "../harness/parity.ts";
import { readAnswers, readLayers, readState } from "../harness/state.ts";
import { differences } from "../harness/tree.ts";
import { containerdRelease, minors } from "../harness/versions.ts";

/** How Hawser pulls it; "refused" by containerd, on one version at least. */
type Way = "accelerated" | "delegated" | "refused";

interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
}

let fake: FakeRegistry;
let streams = 0;

beforeAll(async () => {
  fake = await FakeRegistry.start();
});

afterAll(async () => {
  await fake[Symbol.asyncDispose]();
});

/** An archive that no other image has. */
function stream(): Buffer {
  streams += 1;
  return tar([dir("d"), file(`d/f${streams}`, `content ${streams}`)]);
}

interface Parts {
  readonly streams?: readonly Buffer[];
  readonly pack?: (stream: Buffer) => Buffer;
  readonly layerType?: string;
  /** What the manifest says of each layer. */
  readonly layer?: (layer: Descriptor, index: number, bytes: Buffer) => unknown;
  readonly config?: Readonly<Record<string, unknown>>;
  readonly configType?: string;
  readonly configText?: (text: string) => string;
  readonly manifest?: Readonly<Record<string, unknown>>;
  readonly manifestText?: (text: string) => string;
  /** The media type that the registry tells. */
  readonly told?: string;
  /** Only by its digest. */
  readonly untagged?: boolean;
}

/** An image of two layers, but for the parts that are given; returns the manifest's descriptor. */
function image(repository: string, parts: Parts = {}): Descriptor {
  const { pack = gzipSync, layerType = layerTypes.ociGzip, configText = (text) => text } = parts;
  const contents = parts.streams ?? [stream(), stream()];
  const layers = contents.map((content, nth) => {
    const bytes = pack(content);
    const layer = { mediaType: layerType, ...fake.blob(repository, bytes) };
    return parts.layer?.(layer, nth, bytes) ?? layer;
  });
  const text = configText(configOf(contents.map(sha256), parts.config).toString());
  const config = {
    mediaType: parts.configType ?? mediaTypes.ociConfig,
    ...fake.config(repository, Buffer.from(text)),
  };
  const mediaType = mediaTypes.ociManifest;
  const json = JSON.stringify({ schemaVersion: 2, mediaType, config, layers, ...parts.manifest });
  const bytes = Buffer.from((parts.manifestText ?? ((same) => same))(json));
  const stored = fake.document(repository, bytes, parts.told ?? mediaType, parts.untagged ? undefined : "v1");
  return { mediaType, ...stored };
}

function index(repository: string, manifests: readonly unknown[], text = (json: string) => json): Descriptor {
  const mediaType = mediaTypes.ociIndex;
  const bytes = Buffer.from(text(JSON.stringify({ schemaVersion: 2, mediaType, manifests })));
  return { mediaType, ...fake.document(repository, bytes, mediaType, "v1") };
}

const host = { os: "linux", architecture: process.arch === "arm64" ? "arm64" : "amd64" };
const lesser = { os: "linux", architecture: process.arch === "arm64" ? "arm" : "386" };
const own = (repository: string, more: object = {}): object => ({
  ...image(repository, { untagged: true }),
  platform: host,
  ...more,
});
const annotated = (annotations: object): Parts => ({ layer: (layer) => ({ ...layer, annotations }) });
/** A second field beside one that is there, with another layer in it: whichever counts, the diffIDs tell. */
const twice =
  (field: string) =>
  (repository: string): void => {
    const other = { mediaType: layerTypes.ociGzip, ...fake.blob(repository, gzipSync(stream())) };
    const parts = { streams: [stream()] };
    image(repository, {
      ...parts,
      manifestText: (text) => text.replace(/\}$/, `,${JSON.stringify(field)}:[${JSON.stringify(other)}]}`),
    });
  };
const lastSize =
  (size: string): Required<Pick<Parts, "manifestText">>["manifestText"] =>
  (text) =>
    text.replace(/"size":\d+\}\]/, `"size":${size}}]`);

const cases: readonly (readonly [string, Way, (repository: string) => unknown])[] = [
  ["as usual", "accelerated", (name) => image(name)],
  [
    "one layer three times",
    "accelerated",
    (name) => ((same) => image(name, { streams: [same, same, stream(), same] }))(stream()),
  ],
  ["no layers", "accelerated", (name) => image(name, { streams: [] })],
  [
    "no list of layers",
    "accelerated",
    (name) => image(name, { streams: [], manifestText: (text) => text.replace(',"layers":[]', "") }),
  ],
  ["layers of nothing", "accelerated", (name) => image(name, { streams: [tar([]), Buffer.alloc(0)] })],
  [
    "a layer of no bytes",
    "refused",
    (name) => image(name, { streams: [Buffer.alloc(0)], pack: (bytes) => bytes }),
  ],
  [
    "eStargz",
    "accelerated",
    (name) =>
      image(name, annotated({ "containerd.io/snapshot/stargz/toc.digest": sha256(Buffer.from("toc")) })),
  ],
  [
    "zstd:chunked",
    "accelerated",
    (name) =>
      image(name, {
        layerType: layerTypes.ociZstd,
        pack: (bytes) =>
          Buffer.concat([
            packZstd(bytes.subarray(0, 512)),
            packZstd(bytes.subarray(512)),
            skippableFrame(Buffer.alloc(40)),
          ]),
      }),
  ],
  [
    "annotations for garbage collection",
    "accelerated",
    (name) => image(name, annotated({ "containerd.io/gc.root": "1", "containerd.io/snapshot.ref": "x" })),
  ],
  [
    "an annotation that no label can hold",
    "refused",
    (name) => image(name, annotated({ "containerd.io/snapshot/x": "v".repeat(5000) })),
  ],
  [
    "annotations that map users",
    "delegated",
    (name) =>
      image(
        name,
        annotated({
          "containerd.io/snapshot/uidmapping": "0:0:4294967295",
          "containerd.io/snapshot/gidmapping": "0:0:4294967295",
        }),
      ),
  ],
  [
    "annotations that are null",
    "accelerated",
    (name) => image(name, { layer: (layer) => ({ ...layer, annotations: null, urls: [] }) }),
  ],
  ["annotations that are numbers", "refused", (name) => image(name, annotated({ a: 1 }))],
  [
    "a layer elsewhere",
    "refused",
    (name) =>
      image(name, { streams: [stream()], layer: (layer) => ({ ...layer, urls: ["http://127.0.0.1:1/"] }) }),
  ],
  [
    "a layer's bytes in its descriptor",
    "delegated",
    (name) =>
      image(name, { layer: (layer, _index, bytes) => ({ ...layer, data: bytes.toString("base64") }) }),
  ],
  [
    "a layer for another platform",
    "delegated",
    (name) =>
      image(name, {
        layer: (layer, nth) => (nth === 0 ? { ...layer, platform: { ...host, os: "other" } } : layer),
      }),
  ],
  [
    "something else among the layers",
    "delegated",
    (name) =>
      image(name, {
        streams: [stream()],
        manifestText: (text) =>
          text.replace(
            '"layers":[',
            `"layers":[${JSON.stringify({ mediaType: "application/spdx+json", ...fake.blob(name, Buffer.from("{}")) })},`,
          ),
      }),
  ],
  [
    "layers of a foreign type",
    "delegated",
    (name) => image(name, { layerType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" }),
  ],
  [
    "layers of Docker's type for zstd",
    "delegated",
    (name) => image(name, { layerType: "application/vnd.docker.image.rootfs.diff.tar.zstd", pack: packZstd }),
  ],
  [
    "an artifact",
    "delegated",
    (name) => image(name, { configType: "application/vnd.cncf.helm.config.v1+json" }),
  ],
  [
    "a config for another system",
    "accelerated",
    (name) => image(name, { config: { os: "windows", architecture: "other" } }),
  ],
  [
    "a config of 1 MB",
    "accelerated",
    (name) => image(name, { config: { config: { Labels: { big: "x".repeat(1_000_000) } } } }),
  ],
  [
    "a config that is wrong elsewhere",
    "refused",
    (name) => image(name, { config: { config: { Env: "no list" } } }),
  ],
  [
    "a config with diffIDs twice",
    "delegated",
    (name) =>
      image(name, { configText: (text) => text.replace("{", '{"rootfs":{"type":"layers","diff_ids":[]},') }),
  ],
  [
    "a config with diffIDs in capitals",
    "delegated",
    (name) => image(name, { configText: (text) => text.replace("diff_ids", "Diff_IDs") }),
  ],
  [
    "a config with something behind it",
    "refused",
    (name) => image(name, { configText: (text) => `${text}{}` }),
  ],
  [
    "a config with a mark before it",
    "refused",
    (name) => image(name, { configText: (text) => `\ufeff${text}` }),
  ],
  ["layers twice", "refused", twice("layers")],
  ["Layers as well", "refused", twice("Layers")],
  ["layers with a long s", "refused", twice("layer\u017f")],
  [
    "only LAYERS",
    "delegated",
    (name) => image(name, { manifestText: (text) => text.replace('"layers"', '"LAYERS"') }),
  ],
  ["a size in exponents", "refused", (name) => image(name, { manifestText: lastSize("13e1") })],
  ["a size with a point", "refused", (name) => image(name, { manifestText: lastSize("130.0") })],
  ["a size below zero", "refused", (name) => image(name, { manifestText: lastSize("-1") })],
  [
    "a size beyond counting",
    "refused",
    (name) => image(name, { manifestText: lastSize("99999999999999999999") }),
  ],
  [
    "a size that is one too many",
    "refused",
    (name) =>
      image(name, { layer: (layer, nth) => (nth === 1 ? { ...layer, size: layer.size + 1 } : layer) }),
  ],
  [
    "a layer without a size",
    "refused",
    (name) => image(name, { streams: [stream()], layer: (layer) => ({ ...layer, size: undefined }) }),
  ],
  ["no type in the manifest", "accelerated", (name) => image(name, { manifest: { mediaType: undefined } })],
  [
    "another type in the manifest",
    "accelerated",
    (name) => image(name, { manifest: { mediaType: mediaTypes.dockerManifest } }),
  ],
  [
    "a type with parameters",
    "accelerated",
    (name) => image(name, { told: `${mediaTypes.ociManifest}; charset=utf-8` }),
  ],
  ["a manifest that is said to be an index", "refused", (name) => image(name, { told: mediaTypes.ociIndex })],
  [
    "a manifest with manifests",
    "refused",
    (name) =>
      image(name, {
        manifest: { manifests: [{ mediaType: "x", digest: sha256(Buffer.from("x")), size: 1 }] },
      }),
  ],
  [
    "a subject and a type of artifact",
    "accelerated",
    (name) =>
      image(name, {
        manifest: {
          artifactType: "a/b",
          subject: { mediaType: mediaTypes.ociManifest, digest: sha256(Buffer.from("x")), size: 1 },
        },
      }),
  ],
  ...([5, "!!!"] as const).map(
    (data) =>
      [
        `a subject with the bytes ${JSON.stringify(data)}`,
        "refused",
        (name: string) =>
          image(name, {
            manifest: {
              subject: { mediaType: mediaTypes.ociManifest, digest: sha256(Buffer.from("x")), size: 1, data },
            },
          }),
      ] as const,
  ),
  [
    "an index with another index",
    "accelerated",
    (name) =>
      index(name, [
        {
          mediaType: mediaTypes.ociIndex,
          digest: sha256(Buffer.from("x")),
          size: 1,
          platform: { os: "linux", architecture: "s390x" },
        },
        own(name),
      ]),
  ],
  [
    "fewer diffIDs than layers",
    "refused",
    (name) => image(name, { config: { rootfs: { type: "layers", diff_ids: [] } } }),
  ],
  [
    "a diffID that is another's",
    "refused",
    (name) =>
      image(name, {
        streams: [stream()],
        config: { rootfs: { type: "layers", diff_ids: [sha256(Buffer.from("x"))] } },
      }),
  ],
  ["an index", "accelerated", (name) => index(name, [own(name)])],
  [
    "an index with attestations",
    "accelerated",
    (name) => index(name, [own(name, { platform: { os: "unknown", architecture: "unknown" } }), own(name)]),
  ],
  ["an index of two that fit", "accelerated", (name) => index(name, [own(name), own(name)])],
  [
    "an index without this platform",
    "refused",
    (name) => index(name, [own(name, { platform: { os: "linux", architecture: "s390x" } })]),
  ],
  [
    "an index with an older architecture only",
    "refused",
    (name) => index(name, [own(name, { platform: lesser })]),
  ],
  [
    "an index with an older architecture as well",
    "accelerated",
    (name) => index(name, [own(name, { platform: lesser }), own(name)]),
  ],
  [
    "an index with features of the system",
    "delegated",
    (name) => index(name, [own(name, { platform: { ...host, "os.features": ["x"] } }), own(name)]),
  ],
  [
    "an index of indexes",
    "delegated",
    (name) => index(name, [{ ...index(name, [own(name)]), platform: host }]),
  ],
  ["an index without platforms", "delegated", (name) => index(name, [own(name, { platform: undefined })])],
  [
    "an index with manifests twice",
    "delegated",
    (name) =>
      index(name, [own(name)], (text) => text.replace(/\}$/, `,"manifests":[${JSON.stringify(own(name))}]}`)),
  ],
  [
    "an index with a manifest's bytes, which are wrong",
    "delegated",
    (name) =>
      index(name, [own(name), own(name, { platform: { os: "linux", architecture: "s390x" }, data: "AAAA" })]),
  ],
  ["an index of another size", "refused", (name) => index(name, [own(name, { size: 1 })])],
];

/** What a caller sees, without what differs from one containerd to the next. */
function seen(reply: unknown): string {
  return JSON.stringify(reply)
    .replace(/extract-\d+-[^" ]+/g, "KEY")
    .replace(/\/[^" ]*\/(?:snapshots\/\d+|tmpmounts\/[^/" ]+)/g, "MOUNT");
}

describe.each(minors)("containerd %s", (minor) => {
  let theirs: PrivateContainerd;
  let ours: PrivateContainerd;
  let hawser: PrivateHawser;

  beforeAll(async () => {
    const release = containerdRelease(minor);
    theirs = await PrivateContainerd.start({ release });
    ours = await PrivateContainerd.start({ release });
    hawser = await PrivateHawser.start({ containerd: ours.address });
  });

  afterAll(async () => {
    await hawser[Symbol.asyncDispose]();
    await theirs[Symbol.asyncDispose]();
    await ours[Symbol.asyncDispose]();
  });

  test.each(cases)("%s", async (name, way, make) => {
    const repository = `${name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}/${minor}`;
    make(repository);
    const reference = `${fake.host}/${repository}:v1`;
    const reply = await theirs.cri.pull(reference);
    expect(seen(await hawser.cri.pull(reference))).toBe(seen(reply));
    const isPulled = "value" in reply;
    const [, took] = new RegExp(` image=${reference} .* path=(\\w+)`).exec(hawser.logs()) ?? [];
    // What one version refuses another may pull; then, too, it is containerd that does.
    if (way !== "refused") expect([isPulled, took]).toEqual([isPulled, way]);
    if (isPulled)
      expect(await readAnswers(ours, [reference])).toEqual(await readAnswers(theirs, [reference]));
  });

  test("in the end both hold the same", async () => {
    await settled(ours);
    for (const { ctr } of [theirs, ours].map((one) => ({ ctr: one.ctr.bind(one) }))) {
      // Garbage of pulls that failed goes with the next collection.
      ctr("leases", "create", "--id", "last");
      ctr("leases", "delete", "--sync", "last");
    }
    expect(await readState(ours)).toEqual(await readState(theirs));
    const [left, right] = [await readLayers(theirs), await readLayers(ours)];
    expect(left.size).toBeGreaterThan(50);
    for (const [chainID, tree] of left)
      expect(differences(tree, right.get(chainID) ?? new Map()), chainID).toEqual([]);
  });

  test("130 layers, more than a container can be made of", async () => {
    image("many", { streams: Array.from({ length: 130 }, stream) });
    const reference = `${fake.host}/many:v1`;
    expect(await hawser.cri.pull(reference)).toEqual(await theirs.cri.pull(reference));
    await settled(ours);
    expect(await readAnswers(ours, [reference])).toEqual(await readAnswers(theirs, [reference]));
    expect(ours.ctr("snapshots", "ls")).toBe(theirs.ctr("snapshots", "ls"));
    expect(hawser.logs()).toMatch(new RegExp(` image=${reference} .* path=accelerated`));
  });
});
