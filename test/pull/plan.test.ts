// Counting what is present: right for every split, with few questions, and the uppermost present layer is held. What the
// content store has is read from there, and is not to be written again.

import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import type { Lease } from "../../src/containerd/containerd.ts";
import type { Descriptor } from "../../src/oci/descriptor.ts";
import { chainIDs, type Digest, sha256 } from "../../src/oci/digest.ts";
import { hostPlatform } from "../../src/oci/manifest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import { countPresent, type PlannedLayer, plan } from "../../src/pull/plan.ts";
import type { Repository } from "../../src/registry/registry.ts";

function layersOf(count: number): PlannedLayer[] {
  const diffIDs = Array.from({ length: count }, (_, index) => sha256(String(index)));
  const chains = chainIDs(diffIDs);
  return diffIDs.map((diffID, index) => ({
    descriptor: { mediaType: mediaTypes.ociConfig, digest: diffID, size: 1 },
    diffID,
    chainID: chains[index] as Digest,
    labels: {},
  }));
}

test("any number of present layers below any number of missing ones is found", async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(127), fc.nat(127), async (present, missing) => {
      const layers = layersOf(present + missing);
      const committed = new Set(layers.slice(0, present).map((layer) => layer.chainID));
      const held = new Set<Digest>();
      let questions = 0;
      const lease = {
        holdSnapshot: async (chainID: Digest) => {
          questions += 1;
          if (committed.has(chainID)) held.add(chainID);
          return committed.has(chainID);
        },
      } as Lease;
      expect(await countPresent(layers, lease, new AbortController().signal)).toBe(present);
      if (present > 0) expect(held).toContain(layers[present - 1]?.chainID);
      expect(questions).toBeLessThanOrEqual(9);
    }),
  );
});

test.each([
  ["whole", "neither fetched nor written", []],
  ["damaged", "fetched and written", ["config"]],
  ["absent", "fetched and written", ["config"]],
])("a config that is %s in the content store is %s", async (state, _, expected) => {
  const contentRoot = await mkdtemp(join(tmpdir(), "plan-"));
  try {
    const { architecture } = hostPlatform();
    const rootfs = { type: "layers", diff_ids: [] };
    const config = Buffer.from(JSON.stringify({ os: "linux", architecture, config: {}, rootfs }));
    const descriptor = { mediaType: mediaTypes.ociConfig, digest: sha256(config), size: config.length };
    const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, config: descriptor, layers: [] }));
    const target = { mediaType: mediaTypes.ociManifest, digest: sha256(manifest), size: manifest.length };
    await mkdir(join(contentRoot, "blobs/sha256"), { recursive: true });
    const file = join(contentRoot, "blobs/sha256", descriptor.digest.slice("sha256:".length));
    if (state !== "absent") await writeFile(file, state === "whole" ? config : "damaged");
    const fetched: string[] = [];
    const { metadata } = await plan(
      { descriptor: target, body: manifest },
      {
        fetch: async ({ digest }: Descriptor) => {
          fetched.push(digest === descriptor.digest ? "config" : digest);
          return config;
        },
      } as Partial<Repository> as Repository,
      { holdContent: async () => state !== "absent" } as Partial<Lease> as Lease,
      contentRoot,
      new AbortController().signal,
    );
    expect(fetched).toEqual(expected);
    const written = metadata.map((blob) => blob.descriptor.digest);
    // The manifest came with the answer, and nobody asked whether it is there.
    expect(written).toEqual(expected.length === 0 ? [target.digest] : [target.digest, descriptor.digest]);
  } finally {
    await rm(contentRoot, { recursive: true });
  }
});
