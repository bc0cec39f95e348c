// Metadata that nobody means well with: it is refused in one line, or read, and never costs more than its bytes.

import { expect, test } from "vitest";
import { PullError } from "../../src/errors.ts";
import { sha256 } from "../../src/oci/digest.ts";
import {
  hostPlatform,
  parseConfig,
  parseIndex,
  parseManifest,
  selectPlatform,
} from "../../src/oci/manifest.ts";
import { mediaTypes } from "../../src/oci/media.ts";

const digest = sha256("x");
const config = { mediaType: mediaTypes.ociConfig, digest, size: 2 };
const layer = { mediaType: "application/vnd.oci.image.layer.v1.tar+gzip", digest, size: 3 };
const manifestWith = (more: object): Buffer =>
  Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, config, layers: [layer], ...more }),
  );

function refusal(parse: () => unknown): PullError {
  try {
    parse();
  } catch (error) {
    expect(error).toBeInstanceOf(PullError);
    const failure = error as PullError;
    expect(failure.message).not.toContain("\n");
    expect(failure.message.length).toBeLessThan(500);
    expect(failure.code).not.toBe("internal");
    return failure;
  }
  throw new Error("it was taken");
}

const nested = (depth: number): Buffer => Buffer.from("[".repeat(depth) + "]".repeat(depth));

test.each<[string, () => Buffer]>([
  ["deep JSON", () => nested(500_000)],
  [
    "deep JSON inside of annotations",
    () => manifestWith({ layers: JSON.parse(nested(2000).toString()) as unknown }),
  ],
  ["no JSON", () => Buffer.from("<html>")],
  ["nothing", () => Buffer.alloc(0)],
  ["null", () => Buffer.from("null")],
  ["a list", () => Buffer.from("[]")],
  ["a negative size", () => manifestWith({ layers: [{ ...layer, size: -1 }] })],
  ["a size that is no integer", () => manifestWith({ layers: [{ ...layer, size: 1.5 }] })],
  ["a size beyond counting", () => manifestWith({ layers: [{ ...layer, size: 1e300 }] })],
  [
    "a digest that is a path",
    () => manifestWith({ layers: [{ ...layer, digest: "sha256:../../../etc/passwd" }] }),
  ],
  ["a layer that is a list", () => manifestWith({ layers: [[]] })],
  ["layers that are no list", () => manifestWith({ layers: { length: 1e9 } })],
  ["an index in a manifest's place", () => Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [] }))],
])("a manifest: %s", (_name, bytes) => {
  refusal(() => parseManifest(bytes()));
});

test("100,000 layers are refused; giant annotations are passed over", () => {
  const layers = (length: number): unknown[] => Array.from({ length }, () => layer);
  expect(refusal(() => parseManifest(manifestWith({ layers: layers(100_000) }))).message).toContain(
    "over 9000 lists and objects",
  );
  expect(refusal(() => parseManifest(manifestWith({ layers: layers(2_000) }))).message).toContain(
    "2000 layers",
  );
  const annotated = manifestWith({ annotations: { key: "v".repeat(3_000_000) } });
  expect(parseManifest(annotated).layers).toHaveLength(1);
});

test("__proto__ is a key like any other", () => {
  const bytes = Buffer.from(manifestWith({}).toString().replace("{", '{"__proto__":{"polluted":true},'));
  parseManifest(bytes);
  expect({}).not.toHaveProperty("polluted");
});

test("an index that leads to an index is refused where a manifest is expected", () => {
  const inner = {
    mediaType: mediaTypes.ociIndex,
    digest,
    size: 5,
    platform: { os: "linux", architecture: "amd64" },
  };
  const index = Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests: [inner] }),
  );
  let target: unknown;
  try {
    target = selectPlatform(parseIndex(index), hostPlatform());
  } catch (error) {
    expect(error).toBeInstanceOf(PullError);
    return;
  }
  expect(target).toMatchObject({ mediaType: mediaTypes.ociIndex });
  refusal(() => parseManifest(index));
});

test.each<[string, string]>([
  ["diff_ids that are no digests", '{"os":"linux","rootfs":{"type":"layers","diff_ids":["x"]}}'],
  ["no rootfs", '{"os":"linux"}'],
  ["diff_ids that are no list", '{"os":"linux","rootfs":{"type":"layers","diff_ids":"sha256"}}'],
])("a config: %s", (_name, text) => {
  refusal(() => parseConfig(Buffer.from(text)));
});
