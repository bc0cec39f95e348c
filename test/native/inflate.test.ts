// The decompressors against zlib and pako: same bytes out, however the input and the output are cut.

import { gunzipSync, gzipSync } from "node:zlib";
import fc from "fast-check";
import { gzip as pakoGzip } from "pako";
import { describe, expect, test } from "vitest";
import type { Inflater } from "../../src/native.ts";
import { type GzipHeader, gzipMember } from "../fakes/gzip.ts";
import { skippableFrame, zstdFrame } from "../fakes/zstd.ts";
import { native } from "../layer/staging.ts";

const binding = native();
const openers = { gzip: () => binding.createGzip(), zstd: () => binding.createZstd() };

/** A member with the optional fields that its flags announce (RFC 1952, 2.3). */
function memberOf(content: Buffer, flags: number): Buffer {
  return gzipMember(content, {
    flags,
    ...((flags & 0x04) !== 0 && { extra: Buffer.from("extra") }),
    ...((flags & 0x08) !== 0 && { name: "name" }),
    ...((flags & 0x10) !== 0 && { comment: "comment" }),
    ...((flags & 0x02) !== 0 && { sum: "right" }),
  });
}

type Result = { readonly output: Buffer; readonly status: number };

/** Feeds the pieces one after another, taking at most `room` bytes out at a time. */
function inflate(inflater: Inflater, pieces: readonly Uint8Array[], room: number): Result {
  const buffer = Buffer.alloc(room + 2, 0xee);
  const counts = new Float64Array(2);
  const out: Buffer[] = [];
  let status = 0;
  for (const piece of pieces) {
    for (let at = 0, produced = room; at < piece.length || produced === room; ) {
      status = binding.inflate(inflater, piece, at, piece.length, buffer, 1, 1 + room, counts);
      if (status < 0) return { output: Buffer.concat(out), status };
      at += counts[0] ?? 0;
      produced = counts[1] ?? 0;
      out.push(Buffer.from(buffer.subarray(1, 1 + produced)));
      // Nothing is written outside of the range.
      if (buffer[0] !== 0xee || buffer[room + 1] !== 0xee) throw new Error("wrote outside of the output");
    }
  }
  return { output: Buffer.concat(out), status };
}

function cut(bytes: Buffer, at: readonly number[]): Buffer[] {
  const edges = [0, ...at.map((edge) => edge % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return edges.slice(1).map((end, index) => bytes.subarray(edges[index], end));
}

/** Bytes that compress and bytes that do not, up to some 100 KB. */
const content = fc
  .array(
    fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc.tuple(fc.nat(255), fc.nat(40_000)).map(([byte, length]) => new Uint8Array(length).fill(byte)),
    ),
    { maxLength: 5 },
  )
  .map((parts) => Buffer.concat(parts));
const level = fc.constantFrom(0, 1, 6, 9) as fc.Arbitrary<0 | 1 | 6 | 9>;
const cuts = fc.array(fc.nat(), { maxLength: 6 });
const rooms = fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 10, max: 200_000 }));

describe("gzip", () => {
  test("what zlib and pako pack comes out again, in any number of members, cut anywhere", () => {
    const member = fc.tuple(content, level, fc.boolean());
    fc.assert(
      fc.property(fc.array(member, { minLength: 1, maxLength: 4 }), cuts, rooms, (members, at, room) => {
        const packed = members.map(([bytes, strength, byPako]) =>
          byPako ? Buffer.from(pakoGzip(bytes, { level: strength })) : gzipSync(bytes, { level: strength }),
        );
        const expected = Buffer.concat(members.map(([bytes]) => bytes));
        const enough = Math.max(room, Math.ceil(expected.length / 5000));
        const { output, status } = inflate(binding.createGzip(), cut(Buffer.concat(packed), at), enough);
        expect(status).toBe(1);
        expect(output.equals(expected)).toBe(true);
      }),
      { numRuns: 150 },
    );
  });

  test("two members cut at every byte, and byte by byte", () => {
    const packed = Buffer.concat([gzipSync("first"), gzipSync(""), gzipSync("second".repeat(20))]);
    const expected = `first${"second".repeat(20)}`;
    for (let at = 0; at <= packed.length; at++) {
      const { output, status } = inflate(
        binding.createGzip(),
        [packed.subarray(0, at), packed.subarray(at)],
        4096,
      );
      expect([status, output.toString()]).toEqual([1, expected]);
    }
    const bytes = Array.from(packed, (_, index) => packed.subarray(index, index + 1));
    expect(inflate(binding.createGzip(), bytes, 1).output.toString()).toBe(expected);
  });

  test("headers with optional fields are read, whatever they are cut into", () => {
    const body = Buffer.from("content");
    for (const flags of [0, 1, 0x02, 0x04, 0x08, 0x10, 0x06, 0x1c, 0x1f]) {
      const packed = memberOf(body, flags);
      expect(gunzipSync(packed).equals(body)).toBe(true);
      for (let at = 0; at <= packed.length; at++) {
        for (const rest of [[packed.subarray(at)], cut(packed.subarray(at), [1, 2, 3, 5, 8])]) {
          const { output, status } = inflate(binding.createGzip(), [packed.subarray(0, at), ...rest], 100);
          expect([status, output.toString()], `flags ${flags}, cut at ${at}`).toEqual([1, "content"]);
        }
      }
    }
  });

  test("reserved flags and wrong header sums are refused, and names and comments over 511 bytes, however they are cut", () => {
    const statusOf = (header: GzipHeader, size: number): number => {
      const packed = gzipMember(Buffer.from("content"), header);
      const edges = Array.from({ length: Math.floor(packed.length / size) }, (_, index) => index * size);
      return inflate(binding.createGzip(), cut(packed, edges), 100).status;
    };
    for (const size of [1, 7, 512, 10_000]) {
      for (const flags of [0x20, 0x40, 0x80]) expect(statusOf({ flags }, size)).toBe(-1);
      expect(statusOf({ sum: "wrong" }, size)).toBe(-1);
      for (const field of ["name", "comment"]) {
        expect(statusOf({ [field]: "n".repeat(511) }, size), `${field} in ${size}`).toBe(1);
        expect(statusOf({ [field]: "n".repeat(512) }, size), `${field} in ${size}`).toBe(-1);
      }
      expect(statusOf({ extra: Buffer.alloc(65_535) }, size)).toBe(1);
    }
  });

  test("a stream that ends early is never at a boundary, except between members", () => {
    const first = gzipSync("first".repeat(10));
    const packed = Buffer.concat([first, gzipSync("second".repeat(10))]);
    for (let length = 0; length <= packed.length; length++) {
      const { status } = inflate(binding.createGzip(), [packed.subarray(0, length)], 1000);
      expect(status, `${length} bytes`).toBe(length === first.length || length === packed.length ? 1 : 0);
    }
  });

  test("any changed byte is either noticed or changes nothing, as with zlib's own checks", () => {
    const original = Buffer.from("some content ".repeat(30));
    const packed = gzipSync(original);
    for (let index = 0; index < packed.length; index++) {
      const broken = Buffer.from(packed);
      broken[index] = (broken[index] ?? 0) ^ 0x41;
      const { output, status } = inflate(binding.createGzip(), [broken], 10_000);
      // Time and system of the header (bytes 4 to 9) say nothing of the content; bit 0 of the flags is a hint.
      if (status === 1) {
        expect(index >= 3 && index <= 9, `byte ${index}`).toBe(true);
        expect(output.equals(original)).toBe(true);
      }
    }
    for (const index of [packed.length - 8, packed.length - 1]) {
      const broken = Buffer.from(packed);
      broken[index] = (broken[index] ?? 0) ^ 1;
      expect(inflate(binding.createGzip(), [broken], 10_000).status, "CRC or length").toBe(-1);
    }
  });

  test.each([
    ["zeros", Buffer.alloc(512)],
    ["garbage", Buffer.from("garbage that is long enough")],
    ["a zlib stream", Buffer.from("789c4bcc2a48cc2a0100079802a1aaaa", "hex")],
  ])("%s behind a member are an error, as they are to Go", (_name, trailing) => {
    expect(inflate(binding.createGzip(), [gzipSync("x"), trailing], 100).status).toBe(-1);
    expect(inflate(binding.createGzip(), [Buffer.concat([gzipSync("x"), trailing])], 100).status).toBe(-1);
  });
});

describe("zstd", () => {
  const frame = fc.oneof(
    fc
      .uint8Array({ maxLength: 50 })
      .map((bytes) => ({ packed: skippableFrame(bytes), content: Buffer.alloc(0) })),
    fc
      .array(fc.oneof(fc.uint8Array({ maxLength: 200 }), fc.tuple(fc.nat(255), fc.nat(131_072))), {
        maxLength: 6,
      })
      .map((blocks) => zstdFrame(blocks)),
  );

  test("frames and skippable frames come out, cut anywhere", () => {
    fc.assert(
      fc.property(fc.array(frame, { minLength: 1, maxLength: 4 }), cuts, rooms, (frames, at, room) => {
        const expected = Buffer.concat(frames.map((one) => one.content));
        const enough = Math.max(room, Math.ceil(expected.length / 5000));
        const pieces = cut(Buffer.concat(frames.map((one) => one.packed)), at);
        const { output, status } = inflate(binding.createZstd(), pieces, enough);
        expect(status).toBe(1);
        expect(output.equals(expected)).toBe(true);
      }),
      { numRuns: 100 },
    );
  });

  test("a frame that fills the output to its last byte still ends at a boundary", () => {
    const { packed, content: expected } = zstdFrame([
      [1, 131_072],
      [2, 131_072],
    ]);
    const { output, status } = inflate(binding.createZstd(), [packed], expected.length);
    expect(status).toBe(1);
    expect(output.equals(expected)).toBe(true);
  });

  test("what is cut short is at no boundary, and what is no frame is an error", () => {
    const { packed } = zstdFrame([Buffer.from("content"), [7, 1000]]);
    for (let length = 0; length < packed.length; length++) {
      expect(
        inflate(binding.createZstd(), [packed.subarray(0, length)], 5000).status,
        `${length} bytes`,
      ).toBe(0);
    }
    expect(inflate(binding.createZstd(), [packed, Buffer.from("no frame at all")], 5000).status).toBe(-1);
    expect(inflate(binding.createZstd(), [Buffer.from("no frame at all")], 5000).status).toBe(-1);
  });
});

describe("a caller's mistake throws and harms nothing", () => {
  const buffer = Buffer.alloc(10);
  const counts = new Float64Array(2);

  test.each(["gzip", "zstd"] as const)("%s", (name) => {
    const inflater = openers[name]();
    const call = (...parameters: unknown[]): unknown =>
      (binding.inflate as (...all: unknown[]) => unknown)(...parameters);
    const wrong: unknown[][] = [
      [],
      [{}, buffer, 0, 10, buffer, 0, 10, counts],
      [inflater, buffer, 0, 11, buffer, 0, 10, counts],
      [inflater, buffer, -1, 10, buffer, 0, 10, counts],
      [inflater, buffer, 6, 5, buffer, 0, 10, counts],
      [inflater, buffer, 0, 10, buffer, 0, 11, counts],
      [inflater, "text", 0, 4, buffer, 0, 10, counts],
      [inflater, new Uint16Array(5), 0, 4, buffer, 0, 10, counts],
      [inflater, buffer, 0, 10, buffer, 0, 10, new Float64Array(1)],
      [inflater, buffer, 0, 10, buffer, 0, 10, buffer],
      [inflater, buffer, "0", 10, buffer, 0, 10, counts],
    ];
    for (const parameters of wrong) expect(() => call(...parameters)).toThrow(TypeError);
    expect(binding.inflate(inflater, buffer, 0, 0, buffer, 0, 10, counts)).toBe(0);
  });

  test("an inflater that was released, or is none", () => {
    const inflater = binding.createZstd();
    binding.release(inflater);
    expect(() => binding.inflate(inflater, buffer, 0, 10, buffer, 0, 10, counts)).toThrow(TypeError);
    expect(() => binding.release(inflater)).toThrow(TypeError);
    expect(() => binding.release({} as Inflater)).toThrow(TypeError);
  });
});
