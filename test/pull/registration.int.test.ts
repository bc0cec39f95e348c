// Records of images: made by us with all that belongs to them, found again when nothing at all is missing, and left to
// containerd's own PullImage whenever anything is not as usual.

import { expect, test } from "vitest";
import type { Pulled } from "../../src/pull/pull.ts";
import type { Namespace } from "../fakes/memory/metadata.ts";
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
});
