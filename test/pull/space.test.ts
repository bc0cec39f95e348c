// Too little disk is told before the download, with what is missing; what might fit is never turned away.

import { expect, test } from "vitest";
import type { Descriptor } from "../../src/oci/descriptor.ts";
import { chainIDs, type Digest, sha256 } from "../../src/oci/digest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import type { PlannedLayer } from "../../src/pull/plan.ts";
import { mustFit, type Need, type Volume } from "../../src/pull/space.ts";

const mebibyte = 1048576;
const folders = { spool: "/spool", staging: "/staging" };

function layersOf(...sizesMiB: number[]): PlannedLayer[] {
  const diffIDs = sizesMiB.map((_, index) => sha256(String(index)));
  const chains = chainIDs(diffIDs);
  return diffIDs.map((diffID, index) => ({
    descriptor: { mediaType: mediaTypes.ociConfig, digest: diffID, size: (sizesMiB[index] ?? 0) * mebibyte },
    diffID,
    chainID: chains[index] as Digest,
    labels: {},
  }));
}

function disks(spoolMiB: number, stagingMiB: number, ids: readonly [string, string]) {
  return async (folder: string): Promise<Volume> =>
    folder === "/spool"
      ? { id: ids[0], freeBytes: spoolMiB * mebibyte, sizeBytes: 1000 * mebibyte }
      : { id: ids[1], freeBytes: stagingMiB * mebibyte, sizeBytes: 1000 * mebibyte };
}

const nothing = (): number => 0;
const keeping = (...sizesMiB: number[]): Need => ({
  layers: layersOf(...sizesMiB),
  keep: true,
  present: nothing,
});
const passing = (...sizesMiB: number[]): Need => ({ ...keeping(...sizesMiB), keep: false });
const oneDisk = (MiB: number) => disks(MiB, MiB, ["a", "a"]);

test("one disk holds all trees and the reserve, with the largest blob or with all that are kept", async () => {
  await expect(mustFit(passing(100, 50), folders, oneDisk(282))).resolves.toBe("tight");
  const failure = mustFit(passing(100, 50), folders, oneDisk(281));
  await expect(failure).rejects.toMatchObject({ code: "exhausted" });
  await expect(failure).rejects.toThrow("/spool has 281 MiB free");
  await expect(failure).rejects.toThrow("needs at least 250 MiB with 32 MiB to spare: 1 MiB too little");
  await expect(mustFit(keeping(100, 50), folders, oneDisk(332))).resolves.toBe("ample");
  await expect(mustFit(keeping(100, 50), folders, oneDisk(331))).rejects.toThrow("needs at least 300 MiB");
});

test("two disks are judged each by itself, and the short one is named", async () => {
  const two = (spoolMiB: number, stagingMiB: number) => disks(spoolMiB, stagingMiB, ["a", "b"]);
  await expect(mustFit(passing(100, 50), folders, two(132, 182))).resolves.toBe("tight");
  await expect(mustFit(passing(100, 50), folders, two(182, 182))).resolves.toBe("ample");
  await expect(mustFit(passing(100, 50), folders, two(131, 999))).rejects.toThrow("/spool has 131 MiB");
  await expect(mustFit(passing(100, 50), folders, two(999, 181))).rejects.toThrow("/staging has 181 MiB");
  await expect(mustFit(keeping(100, 50), folders, two(182, 182))).resolves.toBe("ample");
  await expect(mustFit(keeping(100, 50), folders, two(181, 999))).rejects.toThrow("/spool has 181 MiB");
});

test("spools may stay as long as all trees are likely to fit beside them", async () => {
  await expect(mustFit(passing(100, 50), folders, oneDisk(150 + 600 + 32))).resolves.toBe("ample");
  await expect(mustFit(passing(100, 50), folders, oneDisk(150 + 600 + 31))).resolves.toBe("tight");
});

test("what the spool has already is not needed again", async () => {
  const present = ({ size }: Descriptor): number => (size === 100 * mebibyte ? 90 * mebibyte : 0);
  await expect(mustFit({ ...keeping(100, 50), present }, folders, oneDisk(242))).resolves.toBe("ample");
  await expect(mustFit({ ...keeping(100, 50), present }, folders, oneDisk(241))).rejects.toThrow(
    "1 MiB too little",
  );
  await expect(mustFit({ ...passing(100, 50), present }, folders, oneDisk(232))).resolves.toBe("tight");
});

test("a blob that is several layers is there once", async () => {
  const [layer] = layersOf(100);
  const twice = { ...keeping(), layers: layer ? [layer, layer] : [] };
  await expect(mustFit(twice, folders, oneDisk(332))).resolves.toBe("ample");
  await expect(mustFit(twice, folders, oneDisk(331))).rejects.toThrow("1 MiB too little");
});

test("an image that needs nothing fits on a full disk", async () => {
  await expect(mustFit(keeping(), folders, oneDisk(0))).resolves.toBe("ample");
});

test("a real file system is measured", async () => {
  const real = { spool: "/dev/shm", staging: "/dev/shm" };
  await expect(mustFit(passing(1), real)).resolves.toBe("ample");
  await expect(mustFit(passing(2 ** 30), real)).rejects.toThrow(/\/dev\/shm has \d+ MiB free/);
});
