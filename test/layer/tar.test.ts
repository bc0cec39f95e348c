// The tar parser reads what Go's archive/tar reads, in whatever pieces it comes, and refuses what that refuses.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Entry } from "../../src/layer/entry.ts";
import { TarParser } from "../../src/layer/tar.ts";
import {
  dir,
  file,
  gnuLong,
  gnuMagic,
  hardlink,
  paxHeader,
  record,
  symlink,
  type TarEntry,
  tar,
} from "../fakes/tar.ts";

interface Read {
  readonly entry: Entry;
  readonly content: string;
}

/** Feeds the pieces through one reused buffer, which is overwritten after each. */
function parse(pieces: readonly Buffer[], entriesMax = 1000, globals?: string[]): Read[] {
  const read: Read[] = [];
  let open: { readonly entry: Entry; readonly parts: string[] } | undefined;
  const parser = new TarParser(
    {
      global: (name) => void globals?.push(name),
      whole: (entry, buffer, start, end) => {
        expect(open).toBeUndefined();
        read.push({ entry, content: buffer.toString("latin1", start, end) });
      },
      begin: (entry) => {
        expect(open).toBeUndefined();
        open = { entry, parts: [] };
      },
      piece: (buffer, start, end) => void open?.parts.push(buffer.toString("latin1", start, end)),
      finish: () => {
        if (open) read.push({ entry: open.entry, content: open.parts.join("") });
        open = undefined;
      },
    },
    entriesMax,
  );
  const buffer = Buffer.alloc(Math.max(0, ...pieces.map((piece) => piece.length)) + 7);
  for (const piece of pieces) {
    piece.copy(buffer, 7);
    parser.feed(buffer, 7, 7 + piece.length);
    buffer.fill(0xee);
  }
  parser.end();
  expect(open).toBeUndefined();
  expect(parser.entries).toBe(read.length);
  return read;
}

const parseOne = (...entries: TarEntry[]): Entry => {
  const [first, ...more] = parse([tar(entries)]);
  expect(more).toEqual([]);
  return (first as Read).entry;
};
const failsWith = (code: string, message: string | RegExp = ""): unknown =>
  expect.objectContaining({
    code,
    message: typeof message === "string" ? expect.stringContaining(message) : expect.stringMatching(message),
  });
const corrupt = failsWith("corrupt");

const name = fc
  .array(fc.constantFrom("a", "b", "dir", "file", "n".repeat(60)), { minLength: 1, maxLength: 4 })
  .map((parts) => parts.join("/"));
const numbers = fc.record({
  uid: fc.nat(2 ** 31),
  gid: fc.nat(2 ** 31),
  mtime: fc.nat(2 ** 33),
  mode: fc.nat(0o7777),
});
const entry: fc.Arbitrary<TarEntry> = fc.oneof(
  fc
    .tuple(name, fc.uint8Array({ maxLength: 2000 }), numbers)
    .map(([path, bytes, more]) => file(path, Buffer.from(bytes), more)),
  fc.tuple(name, numbers).map(([path, more]) => dir(path, more)),
  fc.tuple(name, name, numbers).map(([path, target, more]) => symlink(path, target, more)),
  fc.tuple(name, name).map(([path, target]) => hardlink(path, target)),
  fc
    .tuple(name, fc.dictionary(fc.constantFrom("SCHILY.xattr.user.a", "comment"), fc.string()))
    .map(([path, pax]) => file(path, "x", { pax })),
);

test("any archive, cut anywhere, gives the entries that were written", () => {
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 12 }), fc.array(fc.nat(), { maxLength: 20 }), (entries, at) => {
      const bytes = tar(entries);
      const edges = [0, ...at.map((edge) => edge % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
      const read = parse(edges.slice(1).map((end, index) => bytes.subarray(edges[index], end)));
      expect(read.map((one) => one.entry.name)).toEqual(entries.map((one) => one.name));
      for (const [index, { entry: got, content }] of read.entries()) {
        const wrote = entries[index] as TarEntry;
        expect(content).toBe(Buffer.from(wrote.content ?? "").toString("latin1"));
        expect(got).toMatchObject({
          linkName: wrote.linkName ?? "",
          mode: wrote.mode ?? 0o644,
          uid: wrote.uid ?? 0,
          gid: wrote.gid ?? 0,
          sizeBytes: content.length,
          mtime: {
            seconds:
              wrote.mtime !== undefined && wrote.mtime > 9_223_372_036 ? 0 : (wrote.mtime ?? 1_600_000_000),
          },
        });
      }
    }),
    { numRuns: 200 },
  );
});

test("byte by byte, the same entries", () => {
  const bytes = tar([
    gnuLong("L", "long/".repeat(50)),
    file("x", "content"),
    dir("d"),
    file("f", "y".repeat(600), { pax: { mtime: "1.5" } }),
  ]);
  const whole = parse([bytes]);
  expect(whole.length).toBe(3);
  expect(parse(Array.from(bytes, (_, index) => bytes.subarray(index, index + 1)))).toEqual(whole);
});

describe("names", () => {
  test("ustar prefixes, star's shorter ones, and GNU's none", () => {
    const prefix = "p".repeat(140);
    expect(parseOne(file("name", "", { raw: { 345: prefix } })).name).toBe(`${prefix}/name`);
    expect(parseOne(file("name", "", { raw: { 345: "p".repeat(131), 508: "tar\0" } })).name).toBe(
      `${"p".repeat(131)}/name`,
    );
    expect(parseOne(file("name", "", { raw: { ...gnuMagic, 345: "00000001750\0" } }))).toMatchObject({
      name: "name",
      atime: { seconds: 1_600_000_000 },
    });
    expect(parseOne(file("name", "", { raw: { 257: "\0\0\0\0\0\0\0\0", 345: "ignored" } })).name).toBe(
      "name",
    );
  });

  test("prefixes that old Go writers put where GNU has times", () => {
    const raw = { ...gnuMagic, 345: "usr/share/a-prefix-that-is-no-time" };
    expect(parseOne(file("name", "", { raw })).name).toBe("usr/share/a-prefix-that-is-no-time/name");
    expect(
      parseOne(file("name", "", { raw: { ...gnuMagic, 345: Buffer.from("usr/\xff", "latin1") } })).name,
    ).toBe("name");
  });

  test("GNU long ones win over pax ones, which win over the header's", () => {
    const long = `${"l".repeat(200)}/name`;
    expect(parseOne(gnuLong("L", long), gnuLong("K", "target"), symlink("short", "other"))).toMatchObject({
      name: long,
      linkName: "target",
    });
    expect(parseOne(file("short", "", { pax: { path: "pax/name" } })).name).toBe("pax/name");
    expect(parseOne(gnuLong("L", "gnu"), file("short", "", { pax: { path: "pax" } })).name).toBe("gnu");
    expect(parseOne(symlink("s", "short", { pax: { linkpath: "pax/target" } })).linkName).toBe("pax/target");
    expect(parseOne(file("kept", "", { pax: { path: "" } })).name).toBe("kept");
  });

  test("bytes that are not UTF-8 are kept, in headers and in pax records", () => {
    expect(parseOne(file(Buffer.from("\xff\xe9", "latin1"))).name).toBe("\xff\xe9");
    expect(parseOne(file("x", "", { pax: { path: Buffer.from("\xfe", "latin1") } })).name).toBe("\xfe");
  });

  test("no longer than a path can be", () => {
    expect(() => parse([tar([file(`${"a/".repeat(2048)}b`)])])).toThrow(failsWith("corrupt", "4095"));
    expect(() => parse([tar([symlink("s", "t".repeat(4096))])])).toThrow(corrupt);
    expect(parseOne(symlink("s", "t".repeat(4095))).linkName.length).toBe(4095);
  });
});

describe("types", () => {
  test.each([
    ["0", "file", "file"],
    ["0", "slash/", "file"],
    ["\0", "file", "file"],
    ["\0", "slash/", "directory"],
    ["1", "x", "hardlink"],
    ["2", "x", "symlink"],
    ["3", "x", "char"],
    ["4", "x", "block"],
    ["5", "x", "directory"],
    ["6", "x", "fifo"],
  ])("%j named %s is a %s", (type, path, expected) => {
    expect(parseOne({ name: path, type }).type).toBe(expected);
  });

  test("only files carry content, whatever others claim", () => {
    const read = parse([
      tar([dir("d", { size: 700 }), symlink("l", "x", { size: 1 }), file("f", "content")]),
    ]);
    expect(read.map(({ entry: { name: path, sizeBytes } }) => [path, sizeBytes])).toEqual([
      ["d/", 0],
      ["l", 0],
      ["f", 7],
    ]);
  });

  test.each(["7", "D", "V", "M", "9"])("type %s is unknown to containerd", (type) => {
    expect(() => parse([tar([{ name: "x", type }])])).toThrow(corrupt);
  });

  test("sparse files are left to containerd", () => {
    expect(() => parse([tar([file("x", "", { type: "S", raw: gnuMagic })])])).toThrow(
      failsWith("unsupported"),
    );
    for (const key of ["GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.numbytes"]) {
      expect(() => parse([tar([file("x", "", { pax: { [key]: "1" } })])])).toThrow(failsWith("unsupported"));
    }
  });
});

describe("numbers", () => {
  test("octal in all its paddings, and base-256", () => {
    const uid = (field: string | Buffer): number => parseOne(file("x", "", { raw: { 108: field } })).uid;
    expect(uid("0000017\0")).toBe(15);
    expect(uid("     17 ")).toBe(15);
    expect(uid("\x00\x00\x00\x00\x0017\x00")).toBe(15);
    expect(uid("17\x00garb\x00")).toBe(15);
    expect(uid(Buffer.alloc(8))).toBe(0);
    expect(uid(Buffer.from("8000000100000000", "hex"))).toBe(2 ** 32);
    expect(uid(Buffer.from("ffffffffffffffff", "hex"))).toBe(-1);
    expect(uid(Buffer.from("fffffffffffffff0", "hex"))).toBe(-16);
    for (const field of ["0000018\0", "00x0001\0", "-000001\0"]) expect(() => uid(field)).toThrow(corrupt);
    expect(() => uid(Buffer.from("bfffffffffffffff", "hex"))).toThrow(corrupt);
  });

  test("pax sizes, owners and times win", () => {
    const bytes = tar([
      file("x", "four", {
        size: 0,
        pax: { size: "4", uid: "3000000000", gid: "+7", mtime: "1.25", atime: "2" },
      }),
    ]);
    expect(parse([bytes])).toMatchObject([
      {
        entry: {
          sizeBytes: 4,
          uid: 3_000_000_000,
          gid: 7,
          mtime: { seconds: 1, nanoseconds: 250_000_000 },
          atime: { seconds: 2 },
        },
        content: "four",
      },
    ]);
  });

  test.each([
    ["1.123456789987", 1, 123_456_789],
    ["1.", 1, 0],
    ["+5.5", 5, 500_000_000],
    ["-1", 0, 0],
    ["-0.5", 0, 0],
    ["9223372036.854775807", 9_223_372_036, 854_775_807],
    ["9223372036.854775808", 0, 0],
  ])("a time of %s", (mtime, seconds, nanoseconds) => {
    expect(parseOne(file("x", "", { pax: { mtime } })).mtime).toEqual({ seconds, nanoseconds });
  });

  test.each(["x", "1.5x", "1e3", " 1", "1.-5", "."])("%j is no time", (mtime) => {
    expect(() => parseOne(file("x", "", { pax: { mtime } }))).toThrow(corrupt);
  });

  test("a ctime that is none is refused, although nothing can set it", () => {
    expect(parseOne(file("x", "", { pax: { ctime: "-1.5" } })).name).toBe("x");
    expect(() => parse([tar([file("x", "", { pax: { ctime: "abc" } })])])).toThrow(corrupt);
    const star = (ctime: string) => file("x", "", { raw: { 476: "00000000012 ", 488: ctime, 508: "tar\0" } });
    expect(parseOne(star("00000000012 ")).name).toBe("x");
    expect(() => parse([tar([star("no time     ")])])).toThrow(corrupt);
  });

  test("sizes below zero and beyond counting", () => {
    expect(() => parse([tar([file("x", "", { pax: { size: "-1" } })])])).toThrow(corrupt);
    expect(() =>
      parse([tar([file("x", "", { raw: { 124: Buffer.from("ffffffffffffffffffffffff", "hex") } })])]),
    ).toThrow(corrupt);
    expect(() => parse([tar([file("x", "", { pax: { size: "9007199254740993" } })])])).toThrow(corrupt);
  });
});

describe("pax records", () => {
  test("are read whole, with any bytes in their values, and only for the next entry", () => {
    const value = Buffer.from([0, 10, 61, 255, 32]);
    const [first, second] = parse([
      tar([file("x", "", { pax: { "SCHILY.xattr.user.a": value, "SCHILY.xattr.user.b": "" } }), file("y")]),
    ]);
    expect(first?.entry.xattrs).toEqual([
      ["user.a", value],
      ["user.b", Buffer.alloc(0)],
    ]);
    expect(second?.entry.xattrs).toEqual([]);
  });

  test("a second header replaces the first; a global one changes nothing, and Go forgets what came before it", () => {
    const one = paxHeader("x", record("path", "one"));
    expect(parseOne(one, paxHeader("x", record("uid", "5")), file("own"))).toMatchObject({
      name: "own",
      uid: 5,
    });
    expect(parseOne(paxHeader("g", record("path", "global")), file("own")).name).toBe("own");
    expect(parseOne(one, paxHeader("g", record("comment", "c")), file("own")).name).toBe("own");
    expect(parseOne(paxHeader("g", ""), file("own")).name).toBe("own");
  });

  test("a global header has a name: its own record's, else its header's; no long name before it counts", () => {
    const globals: string[] = [];
    const entries = [
      gnuLong("L", "long"),
      { ...paxHeader("g", record("comment", "c")), name: "header" },
      paxHeader("g", record("path", "own")),
      file("f"),
    ];
    expect(parse([tar(entries)], 1, globals)[0]?.entry.name).toBe("f");
    expect(globals).toEqual(["header", "own"]);
  });

  test.each([
    ["no length", "path=x\n"],
    ["a length that is too long", "99 path=x\n"],
    ["a length that is too short", "5 path=x\n"],
    ["no newline", "9 path=xy"],
    ["no key", "6 =xy\n"],
    ["no equals sign", "7 path\n"],
    ["a sign where none may be", "-9 path=x\n"],
    ["an absurd length", "99999999999999999999 path=x\n"],
    ["a NUL in a name", "11 path=a\0b\n"],
    ["a NUL in a key", "9 a\0b=xy\n"],
    ["more behind", `${record("path", "x").toString("latin1")}garbage`],
  ])("with %s are corrupt", (_what, body) => {
    expect(() => parse([tar([paxHeader("x", body), file("f")])])).toThrow(corrupt);
    expect(() => parse([tar([paxHeader("g", body), file("f")])])).toThrow(corrupt);
  });

  test("over 1 MiB are refused before they are read", () => {
    for (const type of ["x", "g", "L", "K"]) {
      const header = tar([{ name: "h", type, size: 1024 * 1024 + 1 }], 0);
      expect(() => parse([header])).toThrow(failsWith("corrupt", "1 MiB"));
    }
    const big = record("comment", "c".repeat(1024 * 1024 - 100));
    expect(parseOne(paxHeader("x", big), file("f")).name).toBe("f");
  });
});

describe("the end", () => {
  test("is two zero blocks, or the stream's end in a header's place, even after one of them or inside padding", () => {
    for (const zeroBlocks of [0, 1, 2]) expect(parse([tar([file("f", "x")], zeroBlocks)]).length).toBe(1);
    expect(parse([tar([file("f", "x")], 0).subarray(0, 513)]).length).toBe(1);
    expect(parse([tar([paxHeader("x", record("path", "dangling"))], 0)])).toEqual([]);
    expect(parse([])).toEqual([]);
  });

  test("is not inside a header or content", () => {
    const whole = tar([paxHeader("x", record("path", "x")), file("f", "x".repeat(600))], 2);
    for (let length = 0; length < whole.length; length += 7) {
      // Complete after a header's padding (512 + 10..1024), and after all content.
      const isFine =
        length === 0 ||
        (length >= 512 + 10 && length <= 1024) ||
        (length >= 1536 + 600 && length <= 2560) ||
        length === 3072;
      const attempt = (): unknown => parse([whole.subarray(0, length)]);
      if (isFine) expect(attempt, `${length} bytes`).not.toThrow();
      else expect(attempt, `${length} bytes`).toThrow(failsWith("corrupt", "truncated"));
    }
  });

  test("leaves what follows alone, and says where it was", () => {
    const archive = tar([file("f")]);
    expect(parse([archive, Buffer.alloc(5000, 1), tar([file("never")])]).length).toBe(1);
    const sink = { global: () => {}, whole: () => {}, begin: () => {}, piece: () => {}, finish: () => {} };
    const parser = new TarParser(sink, 10);
    const stream = Buffer.concat([archive, Buffer.alloc(100, 7)]);
    expect(parser.feed(stream, 0, 600)).toBe(600);
    expect(parser.feed(stream, 600, stream.length)).toBe(archive.length);
    expect(parser.feed(stream, 0, 5)).toBe(0);
  });

  test("a single zero block in the middle is an error", () => {
    const bytes = Buffer.concat([tar([file("a")], 1), tar([file("b")])]);
    expect(() => parse([bytes])).toThrow(corrupt);
  });
});

describe("damage", () => {
  test("a wrong checksum is noticed; one of signed bytes is taken", () => {
    expect(() => parse([tar([file("f", "", { damage: { 0: 0x67 } })])])).toThrow(
      failsWith("corrupt", "checksum"),
    );
    const bytes = tar([file(Buffer.from("\xff\xff", "latin1"))]);
    const unsigned = Number.parseInt(bytes.toString("latin1", 148, 154), 8);
    bytes.write(`${(unsigned - 512).toString(8).padStart(6, "0")}\0 `, 148, "latin1");
    expect(parse([bytes])[0]?.entry.name).toBe("\xff\xff");
  });

  test("no bytes at all crash it: the answer is entries or a PullError", () => {
    const template = tar([
      file("a", "x".repeat(700), { pax: { mtime: "1.5" } }),
      dir("d"),
      gnuLong("L", "n".repeat(120)),
      file("y"),
    ]);
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(template.length - 1), fc.nat(255)), { maxLength: 10 }),
        fc.boolean(),
        (changes, fixes) => {
          const bytes = Buffer.from(template);
          for (const [at, byte] of changes) bytes[at] = byte;
          if (fixes) for (let at = 0; at + 512 <= bytes.length; at += 512) repair(bytes, at);
          try {
            parse([bytes]);
          } catch (error) {
            expect(error).toMatchObject({ name: "PullError" });
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  test("more entries than the limit are exhausted", () => {
    const bytes = tar([file("a"), file("b"), file("c")]);
    expect(parse([bytes], 3).length).toBe(3);
    expect(() => parse([bytes], 2)).toThrow(failsWith("exhausted", "max_entries"));
  });
});

/** Makes the checksum of what may be a header right again, so that damage gets past it. */
function repair(bytes: Buffer, at: number): void {
  if (bytes.toString("latin1", at + 257, at + 262) !== "ustar") return;
  bytes.fill(" ", at + 148, at + 156);
  const sum = bytes.subarray(at, at + 512).reduce((total, byte) => total + byte, 0);
  bytes.write(`${sum.toString(8).padStart(6, "0")}\0 `, at + 148, "latin1");
}
