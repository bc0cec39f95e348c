// What a layer must pass whatever engine unpacks it: every message names what was expected and what came.

import { expect, test } from "vitest";
import { BlobCheck, TarCheck } from "../../src/layer/check.ts";
import { type Digest, sha256 } from "../../src/oci/digest.ts";
import { ample, layerTypes } from "./staging.ts";

const blob = Buffer.from("the blob");
const tar = Buffer.from("the tar stream");

interface Announced {
  readonly size?: number;
  readonly digest?: Digest;
  readonly diffID?: Digest;
}

function run({ size = blob.length, digest = sha256(blob), diffID = sha256(tar) }: Announced): number {
  const first = new BlobCheck({ mediaType: layerTypes.gzip, size, digest }, ample);
  const second = new TarCheck(digest, diffID);
  first.blob(blob.subarray(0, 3));
  first.blob(blob.subarray(3));
  first.inflated(tar.length);
  second.tar(tar);
  first.finish();
  second.finish();
  return first.tarBytes;
}

test("the right bytes pass", () => {
  expect(run({})).toBe(tar.length);
});

test("a wrong size, digest or diffID is corrupt, and both sides are named", () => {
  const other = sha256("other");
  expect(() => run({ size: 9 })).toThrow(/has 8 bytes instead of 9/);
  expect(() => run({ digest: other })).toThrow(new RegExp(`${other}.*${sha256(blob)}`));
  expect(() => run({ diffID: other })).toThrow(new RegExp(`${sha256(tar)} instead of ${other}`));
  for (const change of [{ size: 9 }, { digest: other }, { diffID: other }]) {
    expect(() => run(change)).toThrow(expect.objectContaining({ code: "corrupt" }));
  }
});

test("too many bytes are exhausted at once; a ratio counts from 64 MiB on", () => {
  const mebibyte = 1024 * 1024;
  const limited = (limits: { readonly bytesMax: number; readonly ratioMax: number }): BlobCheck =>
    new BlobCheck(
      { mediaType: layerTypes.gzip, size: 1, digest: sha256(blob) },
      { ...limits, entriesMax: 1 },
    );
  const small = limited({ bytesMax: mebibyte, ratioMax: 10 });
  small.inflated(mebibyte);
  expect(() => small.inflated(1)).toThrow(
    expect.objectContaining({ code: "exhausted", message: expect.stringContaining("max_layer_size") }),
  );
  const bomb = limited({ bytesMax: 2 ** 40, ratioMax: 10 });
  bomb.blob(Buffer.alloc(mebibyte));
  for (let count = 0; count < 64; count++) bomb.inflated(mebibyte);
  expect(() => bomb.inflated(1)).toThrow(
    expect.objectContaining({ code: "exhausted", message: expect.stringContaining("max_ratio") }),
  );
});
