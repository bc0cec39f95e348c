// Counting what is present: right for every split, with few questions, and the uppermost present layer is held. What the
// content store has is read from there, if it is what it should be.

import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import type { Lease } from "../../src/containerd/containerd.ts";
import { chainIDs, type Digest, sha256 } from "../../src/oci/digest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import { countPresent, type PlannedLayer, readStored } from "../../src/pull/plan.ts";

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

test.each(["whole", "damaged", "longer", "absent"])(
  "a config that is %s in the content store",
  async (state) => {
    const contentRoot = await mkdtemp(join(tmpdir(), "plan-"));
    try {
      const config = Buffer.from(JSON.stringify({ rootfs: { type: "layers", diff_ids: [] } }));
      const descriptor = { mediaType: mediaTypes.ociConfig, digest: sha256(config), size: config.length };
      await mkdir(join(contentRoot, "blobs/sha256"), { recursive: true });
      const file = join(contentRoot, "blobs/sha256", descriptor.digest.slice("sha256:".length));
      const stored = {
        whole: config,
        damaged: "x".repeat(config.length),
        longer: Buffer.concat([config, config]),
      }[state];
      if (stored !== undefined) await writeFile(file, stored);
      const bytes = await readStored(descriptor, contentRoot);
      expect(bytes && Buffer.from(bytes).equals(config)).toBe(state === "whole" ? true : undefined);
    } finally {
      await rm(contentRoot, { recursive: true });
    }
  },
);
