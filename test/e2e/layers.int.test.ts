// Layers beside containerd's own diff service, on every containerd that there is: the hostile corpus, what leads through
// the layers below, streams in every packing, and archives by chance.

import { randomInt } from "node:crypto";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { gzipMember } from "../fakes/gzip.ts";
import { dir, file, hardlink, symlink, type TarEntry, tar } from "../fakes/tar.ts";
import { packZstd, skippableFrame } from "../fakes/zstd.ts";
import { compareByChance, Oracle, type Verdict } from "../fuzz/oracle.ts";
import { containerdRelease, minors } from "../harness/versions.ts";
import { Canary } from "../layer/canary.ts";
import { blobOf, corpus } from "../layer/hostile.ts";
import { layerTypes } from "../layer/staging.ts";

/** Paths that lead through what lower layers have (fuzz/oracle.ts), where it decides. */
const above: readonly (readonly [string, Verdict, readonly TarEntry[]])[] = [
  ["in directories of several layers", "one tree", [file("low/deep/new"), file("d/b/new"), file("a/b/c/d")]],
  [
    "through links below, which it hides",
    "one tree",
    [file("relative/x"), file("absolute/deep/y"), file("up/b/z")],
  ],
  ["through a dangling link below", "one tree", [file("dangling/x/y")]],
  ["in place of a file below", "one tree", [file("b/x")]],
  ["in place of a whiteout below", "one tree", [file("gone/x")]],
  ["below a file of a lower layer", "both refuse", [file("b/x/y")]],
  ["below a whiteout of a lower layer", "both refuse", [file("gone/in/x")]],
  ["below a file, and then in its place", "both refuse", [file("b/x/y"), file("b")]],
  ["in a new directory of one that passes on its group", "one tree", [file("d/new/deeper/x")]],
  ["in one that was named in between", "left to containerd", [file("d/x"), dir("d"), file("d/new/x")]],
  [
    "in directories that are named afterwards",
    "one tree",
    [file("low/deep/x"), dir("low/deep", { uid: 1 }), dir("low")],
  ],
  [
    "a hard link with another mode and owner",
    "one tree",
    [file("x", "", { mode: 0o4755 }), hardlink("y", "x", { mode: 0o2711, uid: 7 })],
  ],
  ["a hard link to a whiteout", "one tree", [file(".wh.v"), hardlink("also", "v", { mode: 0 })]],
  ["two whiteouts of one name", "both refuse", [file(".wh.v"), file(".wh.v")]],
  ["a link in place of a directory that lower layers have", "one tree", [symlink("a", "d"), file("a/x")]],
];

/** Where the specification asks for something else than what containerd does (test/README.md). */
const deliberate: readonly (readonly [string, RegExp, readonly TarEntry[]])[] = [
  ["an entry beside its whiteout stays", /only we take it.*file exists/, [file("x"), file(".wh.x")]],
  [
    "a directory after its whiteout is opaque",
    /d: xattrs.*trusted\.overlay\.opaque/,
    [file(".wh.d"), dir("d")],
  ],
  ["a directory before its whiteout is opaque", /only we take it.*file exists/, [dir("d"), file(".wh.d")]],
  ["a file below a whiteout", /only we take it.*not a directory/, [file(".wh.d"), file("d/x")]],
];

const archive = tar([dir("d"), file("d/f", "text ".repeat(3000)), symlink("l", "d/f")]);
const [head, tail] = [archive.subarray(0, 700), archive.subarray(700)];
const nothing = Buffer.alloc(0);

/** Blobs that both read: containerd with unpigz, as here, and the native engine. */
const packed: readonly (readonly [string, string, Buffer])[] = [
  ["plain", layerTypes.plain, archive],
  ["plain as gzip", layerTypes.gzip, archive],
  ["plain as zstd", layerTypes.zstd, archive],
  ["zstd as gzip", layerTypes.gzip, packZstd(archive)],
  ["gzip as zstd", layerTypes.zstd, gzipSync(archive)],
  [
    "gzip with all fields",
    layerTypes.gzip,
    gzipMember(archive, { name: "n".repeat(511), comment: "c", extra: Buffer.alloc(300), sum: "right" }),
  ],
  [
    "gzip in members, some empty",
    layerTypes.gzip,
    Buffer.concat([nothing, head, nothing, nothing, tail, nothing].map((part) => gzipSync(part))),
  ],
  [
    "gzip in members with fields",
    layerTypes.gzip,
    Buffer.concat([
      gzipMember(head, { name: "a" }),
      gzipMember(tail, { extra: Buffer.from("SG\x02\x00xy"), sum: "right" }),
    ]),
  ],
  [
    "zstd in frames, some empty or to be skipped",
    layerTypes.zstd,
    Buffer.concat([
      skippableFrame(Buffer.from("x")),
      packZstd(nothing),
      packZstd(head),
      skippableFrame(Buffer.alloc(300, 1)),
      packZstd(tail),
      skippableFrame(nothing),
    ]),
  ],
  ["zstd with a window of 128 MiB", layerTypes.zstd, packZstd(archive, "--long=27", "--ultra", "-22")],
  ["no bytes as gzip", layerTypes.gzip, nothing],
  ["gzip of nothing", layerTypes.gzip, gzipSync(nothing)],
];

/** Blobs that both refuse. */
const broken: readonly (readonly [string, string, Buffer])[] = [
  ["gzip as plain", layerTypes.plain, gzipSync(archive)],
  ["zstd as plain", layerTypes.plain, packZstd(archive)],
  ["gzip of gzip", layerTypes.gzip, gzipSync(gzipSync(archive))],
  ["gzip with a reserved flag", layerTypes.gzip, gzipMember(archive, { flags: 0x20 })],
  ["gzip with a wrong header sum", layerTypes.gzip, gzipMember(archive, { sum: "wrong" })],
  ["gzip of another method", layerTypes.gzip, gzipMember(archive, { method: 7 })],
  [
    "gzip and a member that is cut off",
    layerTypes.gzip,
    Buffer.concat([gzipSync(archive), gzipSync(archive).subarray(0, -9)]),
  ],
];

describe.each(minors)("containerd %s", (minor) => {
  let oracle: Oracle;
  let canary: Canary;

  beforeAll(async () => {
    oracle = await Oracle.start(containerdRelease(minor));
    canary = new Canary();
  });

  afterAll(async () => {
    canary[Symbol.dispose]();
    await oracle[Symbol.asyncDispose]();
  });

  const plain = (entries: readonly TarEntry[]) => ({ bytes: tar(entries), mediaType: layerTypes.plain });

  test.each(above)("%s: %s", async (_where, verdict, entries) => {
    expect(await oracle.compare(plain(entries), tar(entries), false)).toBe(verdict);
  });

  test.each(deliberate)("on purpose: %s", async (_what, difference, entries) => {
    await expect(oracle.compare(plain(entries), tar(entries), false)).rejects.toThrow(difference);
  });

  test.each(packed)("%s", async (_name, mediaType, bytes) => {
    expect(await oracle.compare({ bytes, mediaType }, bytes, true)).toBe("one tree");
  });

  test.each(broken)("%s is refused", async (_name, mediaType, bytes) => {
    expect(await oracle.compare({ bytes, mediaType }, archive, true)).toBe("both refuse");
  });

  test.each([true, false])("the hostile corpus, as the bottom layer: %s", async (isBase) => {
    // Bombs have sizes that only a limit of ours refuses.
    const compared = corpus.filter(({ outcome }) => outcome !== "exhausted");
    for (const hostile of compared) {
      const blob = blobOf(hostile, canary.outside);
      const verdict = await oracle.compare(blob, blob.tar, isBase);
      if (hostile.outcome === "tree") expect(verdict, hostile.name).toBe("one tree");
      else if (hostile.outcome === "corrupt")
        expect(verdict, hostile.name).toBe(hostile.lenient ? "left to containerd" : "both refuse");
      else expect(verdict, hostile.name).not.toBe("one tree");
    }
    expect(canary.changes()).toEqual([]);
  });

  test("five seconds of archives by chance, of which many are trees and many are refused", async () => {
    const chance = { seconds: 5, ofEachMin: 11, seed: randomInt(2 ** 31) };
    const { verdicts, failure } = await compareByChance(oracle, chance);
    expect(failure).toBeUndefined();
    for (const verdict of ["one tree", "both refuse"] as const)
      expect(verdicts.get(verdict) ?? 0, verdict).toBeGreaterThan(10);
  });
});
