// Content: what is put or adopted is there, whole, labelled and held by every lease that asked for it; what fails
// leaves nothing.

import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { sha256 } from "../../src/oci/digest.ts";
import { eventually } from "../harness/process.ts";
import { type Bench, blob, isThere } from "./bench.ts";

export function describeContent(bench: () => Bench): void {
  describe("content", () => {
    test("is put, found, kept by its lease, and collected with it", async () => {
      const one = await bench().lease();
      const { bytes, descriptor } = blob();
      expect(await one.holdContent(descriptor)).toBe(false);
      expect(await bench().ingests()).toEqual([]);
      await one.putContent(descriptor, bytes, { "example.com/a": "1" });
      expect(await one.holdContent(descriptor)).toBe(true);
      expect(await bench().listed(descriptor)).toContain("example.com/a=1");
      const path = bench().blobPath(descriptor);
      expect((await readFile(path)).equals(bytes)).toBe(true);
      await bench().collect();
      expect(await isThere(path)).toBe(true);
      await one[Symbol.asyncDispose]();
      await eventually(async () => expect(await isThere(path)).toBe(false), "its collection");
      expect(await bench().listed(descriptor)).toBe("");
    });

    test("what is held by two leases stays when one of them goes", async () => {
      const [one, two] = [await bench().lease(), await bench().lease()];
      const { bytes, descriptor } = blob();
      await one.putContent(descriptor, bytes, {});
      expect(await two.holdContent(descriptor)).toBe(true);
      await one[Symbol.asyncDispose]();
      await bench().collect();
      expect(await isThere(bench().blobPath(descriptor))).toBe(true);
    });

    test("put by a second lease, it is that lease's too", async () => {
      const [one, two] = [await bench().lease(), await bench().lease()];
      const { bytes, descriptor } = blob();
      await one.putContent(descriptor, bytes, {});
      await two.putContent(descriptor, bytes, {});
      await one[Symbol.asyncDispose]();
      await bench().collect();
      expect(await isThere(bench().blobPath(descriptor))).toBe(true);
    });

    test("put again: new labels are added, old ones stay", async () => {
      const one = await bench().lease();
      const { bytes, descriptor } = blob();
      await one.putContent(descriptor, bytes, { "example.com/a": "1" });
      await one.putContent(descriptor, bytes, { "example.com/a": "2", "example.com/b": "3" });
      const labels = (await bench().listed(descriptor)).split("\t").at(-1)?.split(",").sort();
      expect(labels).toEqual(["example.com/a=1", "example.com/b=3"]);
    });

    test("labelled: repositories that it is from become a list, and the same label twice changes nothing", async () => {
      const { bytes, descriptor } = blob();
      const { records } = bench().containerd;
      const source = "containerd.io/distribution.source.example.com";
      await using one = await bench().lease();
      await one.putContent(descriptor, bytes, { [source]: "b/b", "example.com/a": "1" });
      for (const repository of ["c/c", "a/a", "b/b"])
        await records.labelContent(descriptor.digest, { [source]: repository });
      const labels = { [source]: "a/a,b/b,c/c", "example.com/a": "1" };
      expect(await records.contentLabels(descriptor.digest)).toEqual(labels);
      expect(await records.contentLabels(blob().descriptor.digest)).toBe(undefined);
      // As many as a label has room for; the others are not noted, as with containerd.
      for (let count = 0; count < 20; count++)
        await records.labelContent(descriptor.digest, { [source]: `${count}`.padStart(250, "z") });
      const { [source]: full = "" } = (await records.contentLabels(descriptor.digest)) ?? {};
      expect(source.length + full.length).toBeLessThanOrEqual(4096);
      expect(full.split(",")).toHaveLength(19);
    });

    test("many pulls may put the same blob at once, and each of them holds it then", async () => {
      // Whoever is first commits; the others are told that it exists, and at that moment no lease of theirs has it.
      for (let last = 0; last < 4; last++) {
        const { bytes, descriptor } = blob(300_000);
        const leases = await Promise.all(Array.from({ length: 4 }, () => bench().lease()));
        await Promise.all(leases.map((one) => one.putContent(descriptor, bytes, {})));
        expect(await bench().ingests()).toEqual([]);
        const others = leases.filter((_, index) => index !== last);
        await Promise.all(others.map((one) => one[Symbol.asyncDispose]()));
        await bench().collect();
        expect(await isThere(bench().blobPath(descriptor)), `held by number ${last}`).toBe(true);
      }
    });

    test("bytes that do not match are refused, and no ingest is left", async () => {
      const one = await bench().lease();
      const { bytes, descriptor } = blob();
      const wrong = { ...descriptor, digest: sha256("something else") };
      await expect(one.putContent(wrong, bytes, {})).rejects.toThrow(/unexpected commit digest/);
      await expect(one.putContent({ ...descriptor, size: 999 }, bytes, {})).rejects.toThrow(/size/);
      expect(await bench().ingests()).toEqual([]);
      expect([await bench().listed(wrong), await bench().listed(descriptor)]).toEqual(["", ""]);
    });
  });
}

async function spool(folder: string, bytes: Buffer): Promise<string> {
  const file = join(folder, `spool-${randomBytes(4).toString("hex")}`);
  await writeFile(file, bytes);
  return file;
}

export function describeAdoption(bench: () => Bench): void {
  describe("adoption", () => {
    test("gives the file a second name: the blob is the same inode, read-only, leased and labelled", async () => {
      const one = await bench().lease();
      const { bytes, descriptor } = blob(5_000_000);
      const file = await spool(bench().tested.root, bytes);
      // A collection that an earlier test has set off would take the second name before containerd knows of it, and the
      // bytes would be streamed.
      await bench().collect();
      const { ino } = await stat(file);
      await one.adoptContent(descriptor, file, { "containerd.io/uncompressed": "sha256:x" });
      const path = bench().blobPath(descriptor);
      const adopted = await stat(path);
      expect([adopted.ino, adopted.mode & 0o777, adopted.size]).toEqual([ino, 0o444, bytes.length]);
      expect(await bench().listed(descriptor)).toContain("containerd.io/uncompressed=sha256:x");
      expect(await isThere(file)).toBe(true);
      expect(await bench().ingests()).toEqual([]);
      await bench().collect();
      expect(await isThere(path)).toBe(true);
      await one[Symbol.asyncDispose]();
      await eventually(async () => expect(await isThere(path)).toBe(false), "its collection");
    });

    test("an orphan with other bytes and the right size does not get in", async () => {
      const one = await bench().lease();
      const { bytes, descriptor } = blob();
      const path = bench().blobPath(descriptor);
      await mkdir(join(path, ".."), { recursive: true });
      await writeFile(path, Buffer.alloc(bytes.length, 1));
      await one.adoptContent(descriptor, await spool(bench().tested.root, bytes), {});
      expect((await readFile(path)).equals(bytes)).toBe(true);
    });

    test("from another file system the bytes are streamed", async () => {
      const one = await bench().lease();
      const { bytes, descriptor } = blob(3_000_000);
      const folder = await mkdtemp(join(tmpdir(), "spool-"));
      try {
        const file = await spool(folder, bytes);
        expect((await stat(folder)).dev).not.toBe((await stat(bench().tested.root)).dev);
        await one.adoptContent(descriptor, file, { "example.com/a": "1" });
        expect((await readFile(bench().blobPath(descriptor))).equals(bytes)).toBe(true);
        expect(await bench().listed(descriptor)).toContain("example.com/a=1");
        expect(await isThere(file)).toBe(true);
      } finally {
        await rm(folder, { recursive: true });
      }
    });

    test("what is there already is held and labelled; the file stays", async () => {
      const one = await bench().lease();
      const { bytes, descriptor } = blob();
      await one.putContent(descriptor, bytes, {});
      const { ino } = await stat(bench().blobPath(descriptor));
      const file = await spool(bench().tested.root, bytes);
      await one.adoptContent(descriptor, file, { "example.com/a": "1" });
      expect((await stat(bench().blobPath(descriptor))).ino).toBe(ino);
      expect(await bench().listed(descriptor)).toContain("example.com/a=1");
      expect(await isThere(file)).toBe(true);
    });

    test("two pulls may adopt the same blob at once, and each of them holds it then", async () => {
      for (const last of [0, 1]) {
        const leases = [await bench().lease(), await bench().lease()];
        const { bytes, descriptor } = blob(100_000);
        const files = [await spool(bench().tested.root, bytes), await spool(bench().tested.root, bytes)];
        await Promise.all(leases.map((one, index) => one.adoptContent(descriptor, files[index] ?? "", {})));
        await leases[1 - last]?.[Symbol.asyncDispose]();
        await bench().collect();
        const path = bench().blobPath(descriptor);
        expect(await isThere(path), `held by number ${last}`).toBe(true);
        expect((await readFile(path)).equals(bytes)).toBe(true);
      }
    });

    test("a file of another size than announced is refused, and nothing is left", async () => {
      const one = await bench().lease();
      const { bytes, descriptor } = blob();
      const file = await spool(bench().tested.root, bytes);
      await expect(one.adoptContent({ ...descriptor, size: 2000 }, file, {})).rejects.toThrow(/size/);
      expect(await bench().listed(descriptor)).toBe("");
      expect(await bench().ingests()).toEqual([]);
      expect(await isThere(file)).toBe(true);
    });
  });
}
