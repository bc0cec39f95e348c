// An image that was fetched ahead of need, and is listed, once had its name stand for it again although that had come to
// stand for a newer one meanwhile.

import { randomBytes } from "node:crypto";
import { expect, test } from "vitest";
import { gate } from "../fakes/registry.ts";
import { file, tar } from "../fakes/tar.ts";
import { eventually } from "../harness/process.ts";
import { layerTypes } from "../layer/staging.ts";
import { namespace, Rig } from "../pull/rig.ts";

test("a name that has come to stand for another image while one was fetched ahead stands for that one still", async () => {
  await using rig = await Rig.open();
  const bytes = tar([file("noise", randomBytes(50_000))]);
  const image = rig.registry.put("team/moving:v1", [{ bytes, mediaType: layerTypes.plain }]);
  const held = gate();
  const [layer] = image.layers;
  rig.registry.behave = ({ path }) =>
    path.endsWith(layer?.digest ?? "none") ? { after: 5_000, afterwards: held.opened } : undefined;
  const ahead = { isKnown: false, spare: () => 0, isListed: true };
  const fetching = rig.puller.pullAhead(
    image.reference,
    rig.site,
    undefined,
    ahead,
    new AbortController().signal,
  );
  await eventually(async () => expect(rig.registry.openBlobs).toBe(1), "a request");
  const { images } = rig.fake.metadata.within(namespace);
  const newer = {
    labels: {},
    mediaType: "application/any",
    digest: image.manifestDigest.replace(/.$/, "x"),
    size: 1n,
  };
  images.set(image.reference, newer);
  held.open();
  await using fetched = await fetching;
  expect(fetched.failure?.message).toBe(`${image.reference} has come to stand for another image meanwhile`);
  expect(images.get(image.reference)).toEqual(newer);
});
