// The portable engine: what it takes ends in the same tree as with the native one; all else it leaves to containerd.

import { spawnSync } from "node:child_process";
import { cp, symlink as link, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { buildProgram } from "../../config/build.ts";
import { PlainArchive } from "../../src/layer/plain.ts";
import { unpackPortable } from "../../src/layer/portable.ts";
import { sha256 } from "../../src/oci/digest.ts";
import { dir, file, gnuLong, hardlink, symlink, type TarEntry, tar } from "../fakes/tar.ts";
import { differences, type Node, readTree } from "../harness/tree.ts";
import { ample, type LayerSpec, layerTypes, Staging } from "./staging.ts";

let staging: Staging;

beforeEach(async () => {
  staging = await Staging.make();
});

afterEach(async () => {
  await staging[Symbol.asyncDispose]();
});

async function portable(spec: LayerSpec): Promise<Map<string, Node>> {
  await using spool = await staging.filled(spec.bytes);
  const job = await staging.job(spool, spec);
  await unpackPortable(job, () => false);
  return readTree(job.staging);
}

async function both(entries: readonly TarEntry[], base = false): Promise<string[]> {
  const stream = tar(entries);
  const mine = await portable({ bytes: gzipSync(stream), tar: stream, base });
  const implicit = new Set(
    [...mine.keys()].filter((path) => !entries.some((one) => String(one.name).replace(/\/$/, "") === path)),
  );
  return differences(mine, await staging.tree(entries, base), implicit);
}

describe("the same tree as the native engine's", () => {
  test("modes with setuid, owners, times of everything, links of both kinds, long names", async () => {
    const long = "l".repeat(200);
    const entries = [
      dir(".", { mode: 0o700 }),
      dir("d", { mode: 0o2751, uid: 7, gid: 8, mtime: 1000 }),
      file("d/setuid", "x".repeat(70_000), { mode: 0o4755, uid: 3, gid: 4, mtime: 2000 }),
      file("d/none", "", { mode: 0, mtime: 0 }),
      symlink("d/link", "../../anywhere", { uid: 5, gid: 6, mtime: 3000 }),
      symlink("absolute", "/etc/passwd", { mtime: 4000 }),
      hardlink("d/hard", "d/setuid", { mode: 0o4711, uid: 9, mtime: 5000 }),
      dir("sticky", { mode: 0o1777, mtime: 4_294_967_296 }),
      gnuLong("L", `sticky/${long}`),
      file("short", "gnu"),
      file("pax", "", {
        pax: { uid: "3000000000", gid: "4000000000", mtime: "12345", "unknown.key": "ignored" },
      }),
      file("ümlaut \u{1f40b}", "utf-8"),
      dir("late"),
    ];
    expect(await both(entries)).toEqual([]);
  });

  test("any plain layer", async () => {
    const attributes = fc.record({
      mode: fc.constantFrom(0o644, 0o4755, 0o600, 0o1777),
      uid: fc.nat(70_000),
      gid: fc.nat(70_000),
      mtime: fc.nat(2_000_000_000),
    });
    const item = fc.tuple(
      fc.constantFrom("file", "dir", "symlink", "hardlink"),
      fc.nat(),
      fc.nat(),
      attributes,
      fc.uint8Array({ maxLength: 3000 }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(item, { maxLength: 15 }), async (items) => {
        const directories = [""];
        const files: string[] = [];
        const entries = items.map(([kind, where, which, more, bytes], index): TarEntry => {
          const path = `${directories[where % directories.length]}n${index}`;
          if (kind === "dir") {
            directories.push(`${path}/`);
            return dir(path, more);
          }
          if (kind === "symlink") return symlink(path, `../n${which}`, more);
          const target = files[which % Math.max(1, files.length)];
          if (kind === "hardlink" && target !== undefined) return hardlink(path, target, more);
          files.push(path);
          return file(path, Buffer.from(bytes), more);
        });
        expect(await both(entries)).toEqual([]);
      }),
      { numRuns: 25 },
    );
  });

  test("directories that a bottom layer only implies", async () => {
    const entries = [file("a/b/f", "x", { uid: 5, gid: 6 }), dir("a", { mode: 0o711, uid: 4 }), file("c/g")];
    expect(await both(entries, true)).toEqual([]);
  });
});

describe("left to containerd", () => {
  const cases: Record<string, TarEntry[]> = {
    whiteouts: [file(".wh.x")],
    "opaque whiteouts": [dir("d"), file("d/.wh..wh..opq")],
    devices: [{ name: "null", type: "3", major: 1, minor: 3 }],
    fifos: [{ name: "pipe", type: "6" }],
    "extended attributes": [file("x", "", { pax: { "SCHILY.xattr.user.a": "b" } })],
    "sub-second times": [file("x", "", { pax: { mtime: "1.5" } })],
    "implicit directories above other layers": [file("d/x")],
    "names with ..": [file("../x")],
    "names that are not UTF-8": [file(Buffer.from("\xff", "latin1"))],
    "entries named twice": [file("x"), file("x")],
    "a file for a directory": [dir("x"), file("x")],
    "entries through a link": [dir("d"), symlink("l", "d"), file("l/x")],
    "hard links to links": [symlink("l", "x"), hardlink("h", "l")],
    "hard links to nothing": [hardlink("h", "/etc/passwd")],
    "sparse files": [file("x", "", { pax: { "GNU.sparse.major": "1" } })],
    "owners below zero": [file("x", "", { raw: { 108: Buffer.alloc(8, 0xff) } })],
  };

  test.each(Object.keys(cases))("%s", async (name) => {
    const bytes = tar([file("before", "x"), ...(cases[name] ?? []), file("after")]);
    await expect(portable({ bytes })).rejects.toMatchObject({ name: "PullError", code: "unsupported" });
  });

  test("more entries than are remembered", () => {
    const archive = new PlainArchive(true);
    const time = { seconds: 0, nanoseconds: 0 };
    const entry = {
      type: "file",
      linkName: "",
      mode: 0o644,
      uid: 0,
      gid: 0,
      sizeBytes: 0,
      xattrs: [],
    } as const;
    const put = (name: string): void =>
      archive.whole({ ...entry, name, mtime: time, atime: time, major: 0, minor: 0 });
    for (let index = 0; index < 100_000; index++) put(String(index));
    expect(() => put("more")).toThrow(
      expect.objectContaining({ code: "unsupported", message: expect.stringContaining("more than 100000") }),
    );
  });

  test("an archive that tar-fs reads differently: the rest goes by Go's reading or not at all", async () => {
    // A size in a link's header has no content for Go; tar-stream skips that much.
    const bytes = tar([symlink("l", "x", { size: 512 }), file("f", "x".repeat(512)), file("g")]);
    await expect(portable({ bytes })).rejects.toMatchObject({ name: "PullError" });
  });

  test("a second archive behind the first is not unpacked", async () => {
    const bytes = Buffer.concat([tar([file("a")]), tar([file("b")])]);
    expect([...(await portable({ bytes })).keys()]).toEqual(["", "a"]);
  });
});

test("a write that fails says why, and nothing is written once the promise is settled", async () => {
  const bytes = tar([dir("d"), file("d/f", "x".repeat(100_000)), file("d/g", "y".repeat(100_000))]);
  await using spool = await staging.filled(bytes);
  const job = await staging.job(spool, { bytes });
  await writeFile(join(job.staging, "d"), "in the way");
  await expect(unpackPortable(job, () => false)).rejects.toMatchObject({
    name: "PullError",
    code: "corrupt",
  });
  const before = readTree(job.staging);
  await new Promise(setImmediate);
  expect(differences(before, readTree(job.staging))).toEqual([]);
});

test("it works where the addon is missing, and the native engine says that it is", async () => {
  const elsewhere = await mkdtemp(join(tmpdir(), "portable-"));
  try {
    const root = new URL("../../", import.meta.url).pathname;
    await buildProgram(join(elsewhere, "dist"), {
      pool: "src/layer/pool.ts",
      spool: "src/spool.ts",
      worker: "src/layer/worker.ts",
    });
    await cp(join(root, "package.json"), join(elsewhere, "package.json"));
    await link(join(root, "node_modules"), join(elsewhere, "node_modules"));
    const stream = tar([file("a", "content", { mode: 0o4755, mtime: 1000 })]);
    const bytes = gzipSync(stream);
    await writeFile(join(elsewhere, "blob"), bytes);
    const target = await staging.root();
    const job = {
      staging: target,
      descriptor: { mediaType: layerTypes.gzip, digest: sha256(bytes), size: bytes.length },
      diffID: sha256(stream),
      base: true,
      limits: ample,
    };
    const program = `
      import { createEngine } from "./dist/pool.js";
      import { Spool } from "./dist/spool.js";
      import { readFileSync } from "node:fs";
      const workerFile = new URL("./dist/worker.js", import.meta.url);
      let refusal;
      try { createEngine({ engine: "native", threads: 1, workerFile }); } catch (error) { refusal = error.code; }
      const bytes = readFileSync("blob");
      const spool = await Spool.open("spool", bytes.length);
      spool.write(0, bytes);
      spool.complete();
      const engine = createEngine({ engine: "portable", threads: 1, workerFile });
      const layer = await engine.unpack({ ...${JSON.stringify(job)}, spool: spool.view }, new AbortController().signal);
      await engine.close();
      await spool[Symbol.asyncDispose]();
      console.log(JSON.stringify({ refusal, entries: layer.entries }));`;
    await writeFile(join(elsewhere, "program.js"), program);
    const child = spawnSync(process.execPath, ["program.js"], { cwd: elsewhere, encoding: "utf8" });
    expect(child.stderr).toBe("");
    expect(JSON.parse(child.stdout)).toEqual({ refusal: "unsupported", entries: 1 });
    expect(readTree(target).get("a")).toMatchObject({ mode: 0o4755, mtimeNs: 1_000_000_000_000n });
    expect(await readFile(join(target, "a"), "utf8")).toBe("content");
  } finally {
    await rm(elsewhere, { recursive: true });
  }
});
