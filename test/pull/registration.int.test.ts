// Records of images: made by us with all that belongs to them, found again when nothing at all is missing, and left to
// containerd's own PullImage whenever anything is not as usual.

import { expect, test, vi } from "vitest";
import type { ContainerdFacts } from "../../src/containerd/containerd.ts";
import { sha256 } from "../../src/oci/digest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { type Known, knownLayers, Memory } from "../../src/pull/presence.ts";
import type { Pulled } from "../../src/pull/pull.ts";
import { registrationOf } from "../../src/pull/registration.ts";
import type { Namespace } from "../fakes/memory/metadata.ts";
import { gate } from "../fakes/registry.ts";
import { eventually } from "../harness/process.ts";
import { namespace, Rig } from "./rig.ts";
import { type Pullable, putImage } from "./scenes.ts";

/** A pull to its end: what it found or made, and the steps that it took. */
async function pull(rig: Rig, image: Pullable): Promise<Pick<Pulled, "registered"> & { steps: string[] }> {
  const { steps } = rig.fake.serving;
  const began = steps.length;
  await using pulled = await rig.pull(image);
  expect(pulled.failure).toBe(undefined);
  const taken = steps.slice(began);
  await pulled[Symbol.asyncDispose]();
  await rig.puller.settle();
  return { registered: pulled.registered, steps: taken };
}

test("what is pulled has records and labels that keep it; once more, nothing is written", async () => {
  await using rig = await Rig.open({ direct: true });
  const image = putImage(rig);
  const first = await pull(rig, image);
  expect(first.registered).toEqual({ id: image.configDigest, by: "hawser" });
  // All that was leased is collected, were it not for the records.
  expect([rig.lacks(image), rig.notKept(image)]).toEqual([[], []]);
  const repository = image.reference.replace(/:v1$/, "");
  const { images } = rig.fake.metadata.of(namespace);
  const names = [image.configDigest, image.reference, `${repository}@${image.manifestDigest}`];
  expect([...images.keys()].sort()).toEqual(names.sort());
  const [manifest] = images.values();
  for (const record of images.values()) expect(record).toEqual(manifest);
  expect(manifest).toMatchObject({
    digest: image.manifestDigest,
    labels: { "io.cri-containerd.image": "managed" },
  });
  const second = await pull(rig, image);
  expect(second.registered).toEqual({ id: image.configDigest, by: "earlier" });
  expect(second.steps.filter((step) => !/\/(?:Get|Info|Stat|ImageStatus)$/.test(step))).toEqual([]);
});

const snapshotLabel = "containerd.io/gc.ref.snapshot.overlayfs";

const losses: readonly (readonly [string, (all: Namespace, image: Pullable) => void])[] = [
  ["the id's record", ({ images }, { configDigest }) => void images.delete(configDigest)],
  [
    "the digest's record",
    ({ images }, { manifestDigest }) => {
      for (const name of images.keys()) if (name.endsWith(`@${manifestDigest}`)) images.delete(name);
    },
  ],
  [
    "a record's label",
    ({ images }, { reference }) => {
      const record = images.get(reference);
      if (record) images.set(reference, { ...record, labels: {} });
    },
  ],
  [
    "a tag's record with no other label",
    ({ images }, { reference }) => {
      const record = images.get(reference);
      if (record) images.set(reference, { ...record, labels: { ...record.labels, another: "label" } });
    },
  ],
  [
    "the config's label",
    ({ blobs }, { configDigest }) => void delete blobs.get(configDigest)?.labels[snapshotLabel],
  ],
  [
    "where the manifest is from",
    ({ blobs }, { manifestDigest }) => {
      const labels = blobs.get(manifestDigest)?.labels ?? {};
      for (const key of Object.keys(labels))
        if (key.includes("distribution.source")) labels[key] = "elsewhere";
    },
  ],
  ["the upper layer", ({ snapshots }, { chainIDs }) => void snapshots.delete(chainIDs.at(-1) ?? "")],
];

test.each(losses)("without %s it is pulled anew", async (_, lose) => {
  await using rig = await Rig.open({ direct: true });
  const image = putImage(rig);
  await pull(rig, image);
  lose(rig.fake.metadata.within(namespace), image);
  const { registered } = await pull(rig, image);
  expect(registered?.by).not.toBe("earlier");
});

test("a tag that stands for something else by now is left to containerd", async () => {
  await using rig = await Rig.open({ direct: true });
  const [former, image] = [putImage(rig), putImage(rig)];
  await pull(rig, former);
  const { images } = rig.fake.metadata.within(namespace);
  const record = images.get(former.reference);
  if (record) images.set(image.reference, record);
  expect((await pull(rig, image)).registered).toBe(undefined);
  expect(images.get(image.reference)).toEqual(record);
});

test("an image that CRI does not come to know is left to containerd", async () => {
  await using rig = await Rig.open({ direct: true });
  const image = putImage(rig);
  // As if the event of the last record were never heard of.
  rig.fake.serving.fault = (step) => {
    const { images } = rig.fake.metadata.within(namespace);
    if (step === "ImageService/ImageStatus") images.delete(image.reference);
    return undefined;
  };
  expect((await pull(rig, image)).registered).toBe(undefined);
  // Were it never to be heard of again, nobody would remove what we had made.
  expect([...rig.fake.metadata.of(namespace).images.keys()]).toEqual([]);
});

test("an image that is removed while the registry is asked is pulled anew", async () => {
  await using rig = await Rig.open({ direct: true });
  const image = putImage(rig);
  await pull(rig, image);
  rig.registry.behave = ({ path }) => {
    if (path.includes("/manifests/")) rig.fake.metadata.within(namespace).images.clear();
    return undefined;
  };
  expect((await pull(rig, image)).registered?.by).not.toBe("earlier");
});

test("who comes to a pull that has begun is not told what the reference stood for then", async () => {
  await using rig = await Rig.open({ direct: true });
  const image = putImage(rig);
  const pause = gate();
  let isAsked = false;
  rig.registry.behave = ({ path }) => {
    if (!path.endsWith(image.layers[0]?.digest ?? "?")) return undefined;
    isAsked = true;
    return { after: 10, afterwards: pause.opened };
  };
  const first = rig.pull(image);
  await eventually(async () => expect(isAsked).toBe(true), "the download");
  const second = rig.pull(image);
  pause.open();
  expect([(await first).registered?.by, (await second).registered]).toEqual(["hawser", undefined]);
  for (const pulled of [await first, await second]) await pulled[Symbol.asyncDispose]();
});

test("while something is to be done about a layer still, nothing is taken for present", async () => {
  await using rig = await Rig.open({ direct: true });
  const image = putImage(rig);
  await pull(rig, image);
  const parked = vi.spyOn(rig.site.spools, "isParked").mockReturnValueOnce(true);
  expect((await pull(rig, image)).registered?.by).not.toBe("earlier");
  parked.mockRestore();
  expect((await pull(rig, image)).registered?.by).toBe("earlier");
});

/** An image of one layer, as far as what is registered of it depends on its name. */
function known(text: string): Known | undefined {
  const digest = sha256(text);
  const descriptor = { mediaType: mediaTypes.ociManifest, digest, size: 1 };
  const document = { descriptor, bytes: Buffer.alloc(0), isStored: true, children: [] };
  const layers = [{ descriptor, diffID: digest, chainID: digest, labels: {} }];
  const documents = [
    { ...document, kind: "manifest" as const },
    { ...document, kind: "config" as const },
  ];
  const facts = { discardUnpackedLayers: false, pinnedImages: ["example.com/pinned:1", "NO name"] };
  const found = registrationOf(
    parseReference(text),
    { documents, layers },
    facts as unknown as ContainerdFacts,
  );
  return found && { registration: found, layers: knownLayers(layers) };
}

test.each([
  ["example.com/app:1", true],
  ["localhost/app:1", true],
  ["localhost:5000/app:1", true],
  [`host:5000/app@${sha256("x")}`, true],
  ["app", true],
  ["[::1]:5000/app:1", false],
  ["FOO/bar:1", false],
  ["example.com/pause:3.9", false],
  ["example.com/pinned:1", false],
])("%s is ours to register: %s", (text, expected) => {
  expect(known(text) !== undefined).toBe(expected);
});

test("what was found out under other settings, is too much to keep, or is too long ago, is not remembered", () => {
  const memory = new Memory();
  const [facts, others] = [{ version: "1" }, { version: "2" }] as unknown as [
    ContainerdFacts,
    ContainerdFacts,
  ];
  const [image, reference] = [known("example.com/app:1"), parseReference("example.com/app:1")];
  if (image === undefined) throw new Error("no registration");
  memory.keep(reference, facts, image);
  expect([memory.of(reference, facts)?.layers, memory.of(reference, others)]).toEqual([
    image.layers,
    undefined,
  ]);
  const layers = Array.from({ length: 600 }, () => image.layers).flat();
  memory.keep(reference, facts, { ...image, layers });
  expect(memory.of(reference, facts)).toBe(undefined);
  memory.keep(reference, facts, image);
  for (let count = 0; count < 64; count++) memory.keep(parseReference(`example.com/${count}`), facts, image);
  expect(memory.of(reference, facts)).toBe(undefined);
});
