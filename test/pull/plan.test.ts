// Counting what is present: right for every split, with few questions, and the uppermost present layer is held.

import fc from "fast-check";
import { expect, test } from "vitest";
import type { Lease } from "../../src/containerd/containerd.ts";
import { chainIDs, type Digest, sha256 } from "../../src/oci/digest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import { countPresent, type PlannedLayer } from "../../src/pull/plan.ts";

function layersOf(count: number): PlannedLayer[] {
  const diffIDs = Array.from({ length: count }, (_, index) => sha256(String(index)));
  const chains = chainIDs(diffIDs);
  return diffIDs.map((diffID, index) => ({
    descriptor: { mediaType: mediaTypes.ociConfig, digest: diffID, size: 1 },
    diffID,
    chainID: chains[index] as Digest,
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
      expect(await countPresent(layers, lease)).toBe(present);
      if (present > 0) expect(held).toContain(layers[present - 1]?.chainID);
      expect(questions).toBeLessThanOrEqual(9);
    }),
  );
});
