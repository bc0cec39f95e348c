// Manifests, indexes and configs: read when they are right, refused in one of two ways when not.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Descriptor, Platform } from "../../src/oci/descriptor.ts";
import { chainIDs, parseDigest, sha256 } from "../../src/oci/digest.ts";
import { parseConfig, parseIndex, parseManifest, selectPlatform } from "../../src/oci/manifest.ts";
import { layerPacking, mediaTypes } from "../../src/oci/media.ts";

const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));
const blob = (mediaType: string, more = {}): object => ({
  mediaType,
  digest: sha256(mediaType),
  size: 3,
  ...more,
});
const config = blob(mediaTypes.ociConfig);
const codeOf = (run: () => unknown): unknown => {
  try {
    run();
    return "nothing thrown";
  } catch (error) {
    return (error as { code: unknown }).code;
  }
};

describe("manifests", () => {
  test("config and layers in order", () => {
    const layers = [blob("application/vnd.oci.image.layer.v1.tar"), blob("x/y")];
    const parsed = parseManifest(json({ schemaVersion: 2, config, layers }));
    expect(parsed.config).toEqual(config);
    expect(parsed.layers).toEqual(layers);
  });

  test.each([
    ["unsupported", { schemaVersion: 1, fsLayers: [] }],
    ["unsupported", { config, layers: [], manifests: [] }],
    ["unsupported", { config: blob("application/octet-stream"), layers: [] }],
    ["unsupported", { config: { ...config, digest: `sha512:${"a".repeat(128)}` }, layers: [] }],
    ["unsupported", { config, layers: [blob("x", { size: 0 })] }],
    ["unsupported", { config: { ...config, data: "AAAA" }, layers: [] }],
    ["unsupported", { config, layers: [blob("x", { urls: ["http://127.0.0.1/"] })] }],
    ["unsupported", { config, layers: [blob("x", { platform: { os: "linux", architecture: "amd64" } })] }],
    ["unsupported", { config, layers: [], Layers: [] }],
    ["unsupported", { config, "layer\u017f": [], layers: [] }],
    ["unsupported", { config, layers: [blob("x", { DIGEST: sha256("y") })] }],
    [
      "nothing thrown",
      { config, layers: [blob("x", { urls: [], data: null, platform: null, annotations: null })] },
    ],
    [
      "nothing thrown",
      { config, layers: [], "Any-Other": { Layers: 1, layers: 2 }, __proto__: { layers: 1 } },
    ],
    ["corrupt", { layers: [] }],
    ["corrupt", { config, layers: {} }],
    ["corrupt", { config, layers: [blob("x", { size: -1 })] }],
    ["corrupt", { config, layers: [blob("x", { size: 2 ** 60 })] }],
    ["corrupt", { config, layers: Array.from({ length: 2000 }, () => config) }],
    ["corrupt", []],
    ["corrupt", "text"],
  ])("%s: %j", (code, value) => {
    expect(codeOf(() => parseManifest(json(value)))).toBe(code);
  });

  test("bytes that are no JSON, and any JSON at all, are refused properly", () => {
    expect(codeOf(() => parseManifest(Buffer.from("{")))).toBe("corrupt");
    fc.assert(
      fc.property(fc.json(), (text) => {
        for (const parse of [parseManifest, parseIndex, parseConfig]) {
          expect(["corrupt", "unsupported", "invalid", "nothing thrown"]).toContain(
            codeOf(() => parse(Buffer.from(text))),
          );
        }
      }),
    );
  });
});

describe("platforms", () => {
  const entry = (platform: Platform): Descriptor => ({
    mediaType: mediaTypes.ociManifest,
    digest: sha256(JSON.stringify(platform)),
    size: 1,
    platform,
  });
  const amd64 = { os: "linux", architecture: "amd64" };
  const arm64 = { os: "linux", architecture: "arm64" };

  test.each<[string, Platform, Platform[], number | string]>([
    ["the host's own before what it can also run", amd64, [{ ...amd64, architecture: "386" }, amd64], 1],
    ["386 on amd64, which some take", amd64, [arm64, { ...amd64, architecture: "386" }], "unsupported"],
    ["amd64/v2 does not match", amd64, [{ ...amd64, variant: "v2" }], "not_found"],
    ["amd64/v1 is amd64", amd64, [{ ...amd64, variant: "v1" }], 0],
    ["other spellings", amd64, [{ os: "LINUX", architecture: "X86_64" }], 0],
    ["no system is the host's", amd64, [{ os: "", architecture: "amd64" }], 0],
    ["the first of two equal ones", amd64, [amd64, { ...amd64 }], 0],
    ["arm64 with its usual variant", arm64, [{ ...arm64, variant: "v8" }], 0],
    ["arm on arm64", arm64, [{ os: "linux", architecture: "armhf" }], "unsupported"],
    [
      "another system, whatever its version",
      amd64,
      [{ ...amd64, os: "windows", isNarrowed: true }],
      "not_found",
    ],
    ["features of the system", amd64, [{ ...amd64, isNarrowed: true }, amd64], "unsupported"],
    ["attestations", amd64, [{ os: "unknown", architecture: "unknown" }, amd64], 1],
  ])("%s", (_name, host, platforms, expected) => {
    const entries = platforms.map(entry);
    if (typeof expected === "string") expect(codeOf(() => selectPlatform(entries, host))).toBe(expected);
    else expect(selectPlatform(entries, host)).toBe(entries[expected]);
  });

  test("an entry without a platform is containerd's to judge", () => {
    const { mediaType, digest, size } = entry(amd64);
    const entries = [entry(amd64), { mediaType, digest, size }];
    expect(codeOf(() => selectPlatform(entries, amd64))).toBe("unsupported");
  });
});

test("chainIDs, by the image specification's definition", () => {
  const diffIDs = ["a", "b", "c"].map((text) => sha256(text));
  const [a, b, c] = diffIDs;
  expect(chainIDs(diffIDs)).toEqual([a, sha256(`${a} ${b}`), sha256(`${sha256(`${a} ${b}`)} ${c}`)]);
});

test("digests are what they look like", () => {
  expect(parseDigest(sha256("x"))).toBe(sha256("x"));
  for (const text of ["", "sha256:", `sha256:${"A".repeat(64)}`, `sha256:${"a".repeat(63)}`])
    expect(codeOf(() => parseDigest(text))).toBe("invalid");
});

test("layer types: sniffed, plain, or containerd's", () => {
  expect(layerPacking("application/vnd.oci.image.layer.v1.tar")).toBe("none");
  expect(layerPacking("application/vnd.oci.image.layer.v1.tar+zstd")).toBe("sniff");
  expect(layerPacking("application/vnd.docker.image.rootfs.diff.tar.gzip")).toBe("sniff");
  for (const type of [
    "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "text/plain",
    "",
  ]) {
    expect(codeOf(() => layerPacking(type))).toBe("unsupported");
  }
});
