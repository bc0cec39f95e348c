// From a blob's bytes to the tar stream: how it is packed is seen from its first bytes, in whatever pieces they come,
// and both engines' inflaters agree.

import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  type Compression,
  type Decompressor,
  type Output,
  Sniffer,
  sniff,
} from "../../src/layer/decompress.ts";
import { PakoInflate } from "../../src/layer/portable.ts";
import type { Packing } from "../../src/oci/media.ts";
import { skippableFrame, zstdFrame } from "../fakes/zstd.ts";
import { nativeTo } from "./staging.ts";

function collect(open: (output: Output) => Decompressor, pieces: readonly Buffer[]): Buffer {
  const out: Buffer[] = [];
  using decompressor = open((buffer, start, end) => {
    out.push(Buffer.from(buffer.subarray(start, end)));
  });
  for (const piece of pieces) decompressor.push(piece, 0, piece.length);
  decompressor.end();
  return Buffer.concat(out);
}

function unpack(packing: Packing, pieces: readonly Buffer[]): Buffer {
  return collect((output) => new Sniffer(packing, (compression) => nativeTo(compression, output)), pieces);
}

function cut(bytes: Buffer, at: readonly number[]): Buffer[] {
  const edges = [0, ...at.map((edge) => edge % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return edges.slice(1).map((end, index) => bytes.subarray(edges[index], end));
}

const cuts = fc.array(fc.oneof(fc.nat(6), fc.nat()), { maxLength: 8 });
const corrupt = expect.objectContaining({ code: "corrupt" });

test.each<[string, number[], Compression]>([
  ["gzip", [0x1f, 0x8b, 0x08], "gzip"],
  ["gzip of an unknown method", [0x1f, 0x8b, 0x07], "none"],
  ["zstd", [0x28, 0xb5, 0x2f, 0xfd], "zstd"],
  ["a skippable frame", [0x50, 0x2a, 0x4d, 0x18], "zstd"],
  ["another skippable frame", [0x5f, 0x2a, 0x4d, 0x18], "zstd"],
  ["no skippable frame", [0x60, 0x2a, 0x4d, 0x18], "none"],
  ["bzip2", [0x42, 0x5a, 0x68], "none"],
  ["too little", [0x1f, 0x8b], "none"],
  ["nothing", [], "none"],
])("%s is seen from its first bytes", (_name, head, expected) => {
  expect(sniff(Buffer.from(head))).toBe(expected);
});

test("any packing, in any pieces, gives the stream; a type without packing is never looked at", () => {
  const content = fc
    .uint8Array({ maxLength: 5000 })
    .map((bytes) => Buffer.concat([Buffer.from("tar"), bytes]));
  fc.assert(
    fc.property(content, cuts, (bytes, at) => {
      const gzip = Buffer.concat([gzipSync(bytes.subarray(0, 2)), gzipSync(bytes.subarray(2))]);
      const zstd = Buffer.concat([skippableFrame(Buffer.from("x")), zstdFrame([bytes]).packed]);
      for (const packed of [gzip, zstd, bytes])
        expect(unpack("sniff", cut(packed, at)).equals(bytes)).toBe(true);
      expect(unpack("none", cut(gzip, at)).equals(gzip)).toBe(true);
    }),
  );
});

test("an empty blob is an empty stream", () => {
  for (const packing of ["sniff", "none"] as const) expect(unpack(packing, []).length).toBe(0);
});

test("output that ends on the buffer's own edge is whole", () => {
  const mebibyte = 1024 * 1024;
  for (const size of [mebibyte - 1, mebibyte, mebibyte + 1, 2 * mebibyte]) {
    const blocks = Array.from(
      { length: Math.ceil(size / 131_072) },
      (_, index) => [index & 255, Math.min(131_072, size - index * 131_072)] as const,
    );
    const { packed, content } = zstdFrame(blocks);
    expect(unpack("sniff", [packed]).equals(content)).toBe(true);
    expect(unpack("sniff", [gzipSync(content)]).equals(content)).toBe(true);
  }
});

describe("both engines' gzip", () => {
  const openers: Record<string, (output: Output) => Decompressor> = {
    native: (output) => nativeTo("gzip", output),
    pako: (output) => new PakoInflate(output),
  };
  const members = Buffer.concat([gzipSync("one"), gzipSync(""), gzipSync("two".repeat(1000))]);

  test.each(Object.keys(openers))("%s: members in any pieces", (name) => {
    const open = openers[name] as (output: Output) => Decompressor;
    fc.assert(
      fc.property(cuts, (at) => {
        expect(collect(open, cut(members, at)).toString()).toBe(`one${"two".repeat(1000)}`);
      }),
    );
    for (let at = 0; at <= members.length; at++) {
      expect(collect(open, [members.subarray(0, at), members.subarray(at)]).toString()).toBe(
        `one${"two".repeat(1000)}`,
      );
    }
  });

  test.each(Object.keys(openers))("%s: truncated, damaged and followed by zeros or garbage", (name) => {
    const open = openers[name] as (output: Output) => Decompressor;
    const damaged = Buffer.from(members);
    damaged[members.length - 6] = (damaged[members.length - 6] ?? 0) ^ 1;
    const bad = [members.subarray(0, -1), members.subarray(0, 12), damaged];
    for (const trailing of [
      Buffer.alloc(1),
      Buffer.alloc(600),
      Buffer.from("garbage, and not little of it"),
    ]) {
      bad.push(Buffer.concat([members, trailing]));
    }
    for (const packed of bad) {
      expect(() => collect(open, [packed])).toThrow(corrupt);
      expect(() =>
        collect(open, [packed.subarray(0, members.length), packed.subarray(members.length)]),
      ).toThrow(corrupt);
    }
  });
});

test("a bomb's output comes in bounded pieces", () => {
  const sizes: number[] = [];
  using decompressor = nativeTo("gzip", (_buffer, start, end) => sizes.push(end - start));
  const bomb = gzipSync(Buffer.alloc(20 * 1024 * 1024));
  decompressor.push(bomb, 0, bomb.length);
  expect(Math.max(...sizes)).toBeLessThanOrEqual(1024 * 1024);
  expect(sizes.length).toBeLessThanOrEqual(21);
});

test("many tiny members come out together", () => {
  let calls = 0;
  using decompressor = nativeTo("gzip", () => {
    calls += 1;
  });
  const members = Buffer.concat(Array.from({ length: 5000 }, () => gzipSync("x", { level: 1 })));
  decompressor.push(members, 0, members.length);
  expect(calls).toBe(1);
});
