// What a layer must pass whatever engine unpacks it: every message names what was expected and what came.

import { expect, test } from "vitest";
import { Checks } from "../../src/layer/check.ts";
import { type Digest, sha256 } from "../../src/oci/digest.ts";
import { ample, layerTypes } from "./staging.ts";

const blob = Buffer.from("the blob");
const tar = Buffer.from("the tar stream");

function checks(
  change: { readonly size?: number; readonly digest?: Digest; readonly diffID?: Digest } = {},
): Checks {
  const { size = blob.length, digest = sha256(blob), diffID = sha256(tar) } = change;
  return new Checks({ mediaType: layerTypes.gzip, size, digest }, diffID, ample);
}

function run(subject: Checks): void {
  subject.blob(blob.subarray(0, 3));
  subject.blob(blob.subarray(3));
  subject.tar(tar);
  subject.finish();
}

test("the right bytes pass", () => {
  const subject = checks();
  run(subject);
  expect(subject.tarBytes).toBe(tar.length);
});

test("a wrong size, digest or diffID is corrupt, and both sides are named", () => {
  const other = sha256("other");
  expect(() => run(checks({ size: 9 }))).toThrow(/has 8 bytes instead of 9/);
  expect(() => run(checks({ digest: other }))).toThrow(new RegExp(`${other}.*${sha256(blob)}`));
  expect(() => run(checks({ diffID: other }))).toThrow(new RegExp(`${sha256(tar)} instead of ${other}`));
  for (const change of [{ size: 9 }, { digest: other }, { diffID: other }]) {
    expect(() => run(checks(change))).toThrow(expect.objectContaining({ code: "corrupt" }));
  }
});

test("too many bytes are exhausted at once; a ratio counts from 64 MiB on", () => {
  const mebibyte = Buffer.alloc(1024 * 1024);
  const limited = (limits: { readonly bytesMax: number; readonly ratioMax: number }): Checks =>
    new Checks({ mediaType: layerTypes.gzip, size: 1, digest: sha256(blob) }, sha256(tar), {
      ...limits,
      entriesMax: 1,
    });
  const small = limited({ bytesMax: mebibyte.length, ratioMax: 10 });
  small.tar(mebibyte);
  expect(() => small.tar(Buffer.alloc(1))).toThrow(
    expect.objectContaining({ code: "exhausted", message: expect.stringContaining("max_layer_size") }),
  );
  const bomb = limited({ bytesMax: 2 ** 40, ratioMax: 10 });
  bomb.blob(mebibyte);
  for (let count = 0; count < 64; count++) bomb.tar(mebibyte);
  expect(() => bomb.tar(Buffer.alloc(1))).toThrow(
    expect.objectContaining({ code: "exhausted", message: expect.stringContaining("max_ratio") }),
  );
});
