// Files of an archive: where each lies, whatever its headers look like, and nothing where the archive is broken.

import { randomBytes } from "node:crypto";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Files } from "../../src/archive/files.ts";
import { PullError } from "../../src/errors.ts";
import { loadNative } from "../../src/native.ts";
import { dir, file, gnuLong, hardlink, symlink, tar } from "../fakes/tar.ts";
import { packZstd } from "../fakes/zstd.ts";
import { scratch } from "../harness/containerd.ts";

let folder = "";
let opened = 0;

beforeAll(() => {
  folder = mkdtempSync(join(scratch(), "files-"));
});

afterAll(() => {
  rmSync(folder, { recursive: true });
});

async function open(
  source: Buffer | Readable,
  mustHaveRoom = async (): Promise<void> => {},
  signal = new AbortController().signal,
): Promise<Files> {
  const native = loadNative();
  if (native.kind === "missing") throw new Error(native.reason);
  opened += 1;
  const path = join(folder, `${opened}.tar`);
  if (Buffer.isBuffer(source)) writeFileSync(path, source);
  const scratchFile = join(folder, `${opened}.scratch`);
  return await Files.open(
    {
      source: Buffer.isBuffer(source) ? path : source,
      scratch: scratchFile,
      native: native.binding,
      mustHaveRoom,
    },
    signal,
  );
}

async function contentOf(files: Files, name: string): Promise<string | undefined> {
  const place = files.find(name);
  return place && (await files.read(place, 1_000_000)).toString();
}

async function failure(promise: Promise<unknown>): Promise<PullError> {
  return await promise.then(
    () => {
      throw new Error("it did not fail");
    },
    (error: unknown) => PullError.from(error),
  );
}

test("files are found by names of every form, and through links within the archive", async () => {
  const long = `${"long/".repeat(60)}name`;
  await using files = await open(
    tar([
      dir("./blobs"),
      file("./blobs/one", "1"),
      file("/blobs/two", "2"),
      { ...file("short", "3"), pax: { path: long } },
      gnuLong("L", `${long}-gnu`),
      file("short", "4"),
      symlink("a/link", "../blobs/one"),
      symlink("a/chain", "link"),
      hardlink("hard", "blobs/two"),
      symlink("up", "../../../../blobs/two"),
      file("twice", "former"),
      file("twice", "latter"),
    ]),
  );
  const expected = {
    "blobs/one": "1",
    "blobs/two": "2",
    [long]: "3",
    [`${long}-gnu`]: "4",
    "a/link": "1",
    "a/chain": "1",
    hard: "2",
    up: "2",
    twice: "latter",
  };
  for (const [name, content] of Object.entries(expected)) expect(await contentOf(files, name)).toBe(content);
  for (const name of ["blobs", "a", "", "..", "/etc/passwd", "blobs/three"])
    expect(files.find(name)).toBeUndefined();
});

test("links in a circle lead nowhere", async () => {
  await using files = await open(tar([symlink("a", "b"), symlink("b", "a"), symlink("c", "c")]));
  for (const name of ["a", "b", "c"]) expect(files.find(name)).toBeUndefined();
});

test("contents of any lengths are read back, wherever the pieces that are read begin and end", async () => {
  const sizes = fc.array(fc.oneof(fc.nat(2_000), fc.constantFrom(65_024, 65_536, 64_512, 131_072, 512, 0)), {
    maxLength: 12,
  });
  await fc.assert(
    fc.asyncProperty(sizes, async (lengths) => {
      const contents = lengths.map((length) => randomBytes(length));
      await using files = await open(tar(contents.map((content, nth) => file(`file${nth}`, content))));
      for (const [nth, content] of contents.entries()) {
        const place = files.find(`file${nth}`);
        if (place === undefined) throw new Error(`file${nth} is not found`);
        expect((await files.read(place, 1_000_000)).equals(content)).toBe(true);
        const from = Math.floor(content.length / 2);
        const pieces: Buffer[] = [];
        for await (const piece of files.pieces(place, from)) pieces.push(Buffer.from(piece));
        expect(Buffer.concat(pieces).equals(content.subarray(from))).toBe(true);
      }
    }),
    { numRuns: 60 },
  );
});

test("what is compressed, or comes in pieces, is read like any other, and leaves no file behind", async () => {
  const content = randomBytes(3_000_000);
  const archive = tar([file("a", content), file("b", "end")]);
  const sources = [
    gzipSync(archive),
    packZstd(archive),
    Readable.from([archive]),
    Readable.from(Array.from({ length: 40 }, (_, nth) => archive.subarray(nth * 80_000, (nth + 1) * 80_000))),
    Readable.from(Array.from(gzipSync(tar([file("b", "end")])), (byte) => Buffer.from([byte]))),
  ];
  for (const [nth, source] of sources.entries()) {
    const names = nth === 4 ? ["b"] : ["a", "b"];
    await using files = await open(source).catch((error: unknown) => {
      throw new Error(`source ${nth}`, { cause: error });
    });
    if (names.includes("a")) {
      const place = files.find("a");
      expect(place && (await files.read(place, 4_000_000)).equals(content)).toBe(true);
    }
    expect(await contentOf(files, "b")).toBe("end");
  }
  expect(readdirSync(folder).filter((name) => name.endsWith(".scratch"))).toEqual([]);
});

test("what is no archive, or is cut off, is told as what it is", async () => {
  const archive = tar([file("a", randomBytes(5_000)), file("b", randomBytes(5_000))]);
  const damaged = gzipSync(archive);
  damaged[damaged.length - 8] = (damaged[damaged.length - 8] ?? 0) ^ 1;
  const cases: [bytes: Buffer, code: string, message: RegExp][] = [
    [Buffer.from("no archive".repeat(100)), "invalid", /^it is no archive: /],
    [archive.subarray(0, 300), "invalid", /^it is no archive: .*truncated/],
    [archive.subarray(0, 5_700), "corrupt", /truncated/],
    [gzipSync(archive).subarray(0, 3_000), "corrupt", /^the gzip stream is truncated$/],
    [damaged, "corrupt", /^the archive is not valid gzip$/],
  ];
  for (const [bytes, code, message] of cases) {
    const { code: actual, message: text } = await failure(open(bytes));
    expect(text).toMatch(message);
    expect(actual).toBe(code);
  }
});

test("an archive that ends in the middle of a file is told to be cut off, and where", async () => {
  const archive = tar([file("a", "x".repeat(100_000))]);
  for (const bytes of [612, 70_000, 100_500]) {
    const { code, message } = await failure(open(archive.subarray(0, bytes)));
    expect([code, message]).toEqual(["corrupt", `the archive is truncated at byte ${bytes}`]);
  }
  const endless = tar([file("a", "x", { size: Number.MAX_SAFE_INTEGER })]);
  expect((await failure(open(endless))).message).toMatch(/^the archive is truncated at byte/);
  await using files = await open(archive);
  expect((await failure(files.read({ offset: 0, sizeBytes: 100 }, 99))).code).toBe("corrupt");
});

test("what is compressed otherwise, is a folder, or is nothing is named", async () => {
  const cases: [bytes: Buffer, message: RegExp][] = [
    [Buffer.from("fd377a585a000004", "hex"), /^it is compressed with xz: xz -dc FILE \| hawser load -$/],
    [Buffer.from("BZh91AY&SY"), /^it is compressed with bzip2: /],
    [Buffer.from("PK\x03\x04zip"), /^it is compressed with zip: /],
    [Buffer.alloc(0), /^it is empty$/],
  ];
  for (const [bytes, message] of cases) {
    expect((await failure(open(bytes))).message).toMatch(message);
    expect((await failure(open(Readable.from(bytes.length === 0 ? [] : [bytes])))).message).toMatch(message);
  }
});

test("names that are too long together are too many", async () => {
  const name = "n".repeat(4000);
  const entries = Array.from({ length: 9_000 }, (_, nth) =>
    symlink(`${nth}`, "b", { pax: { path: `${nth}${name}`, linkpath: name } }),
  );
  const { code, message } = await failure(open(tar(entries)));
  expect([code, message]).toEqual(["exhausted", "its names are over 67108864 bytes long together"]);
});

test("the disk is looked at while a compressed archive unfolds", async () => {
  let looks = 0;
  const mustHaveRoom = async (): Promise<void> => {
    looks += 1;
    if (looks > 2) throw new PullError("exhausted", "full");
  };
  const bomb = gzipSync(Buffer.alloc(160_000_000));
  expect((await failure(open(bomb, mustHaveRoom))).message).toBe("full");
  expect(looks).toBe(3);
});

test("a stream that never ends is let go of with its signal", async () => {
  const abort = new AbortController();
  const stream = new Readable({ read: () => {} });
  stream.push(tar([file("a", "x")]).subarray(0, 600));
  const failed = failure(open(stream, undefined, abort.signal));
  abort.abort();
  expect((await failed).code).toBe("cancelled");
  expect(stream.destroyed).toBe(true);
});
