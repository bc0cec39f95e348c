// The journal: whatever a crash leaves of it, it never says more than what was written.

import { appendFile, mkdtemp, readFile, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, expect, test } from "vitest";
import { sha256 } from "../../src/oci/digest.ts";
import { Journal, parseJournal, readBootId, readJournal } from "../../src/pull/journal.ts";

const descriptor = { mediaType: "any", digest: sha256("blob"), size: 10_000_000 };
const boot = "this boot";

let folder = "";
let path = "";

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "journal-"));
  path = join(folder, "spool.journal");
});

afterEach(async () => {
  await rm(folder, { recursive: true });
});

async function filled(): Promise<void> {
  const journal = await Journal.create(path, descriptor, boot, [{ start: 0, end: 5 }]);
  journal.wrote({ start: 100, end: 200 });
  journal.wrote({ start: 200, end: 300 });
  journal.wrote({ start: 2_000_000, end: 5_000_000 });
  journal.keep({ image: "first", labels: { one: "1" } });
  journal.keep({ image: "second", labels: { one: "1", two: "with \n newline" } });
  await journal.close();
}

test("what was written and what is to be kept is read again", async () => {
  await filled();
  expect(await readJournal(path, boot)).toEqual({
    digest: descriptor.digest,
    sizeBytes: descriptor.size,
    written: [
      { start: 0, end: 5 },
      { start: 100, end: 300 },
      { start: 2_000_000, end: 5_000_000 },
    ],
    keep: { image: "second", labels: { one: "1", two: "with \n newline" } },
  });
});

test("another boot, another version, another file or none is no journal", async () => {
  await filled();
  expect(await readJournal(path, "another boot")).toBeUndefined();
  expect(await readJournal(join(folder, "none"), boot)).toBeUndefined();
  const text = await readFile(path, "utf8");
  expect(parseJournal(text, boot)).toBeDefined();
  expect(parseJournal(text.replace('"version":1', '"version":2'), boot)).toBeUndefined();
  expect(parseJournal(text.replace("sha256:", "sha255:"), boot)).toBeUndefined();
  expect(parseJournal(text.replace("10000000", "-1"), boot)).toBeUndefined();
  expect(parseJournal(text.replace("w 100 300", "w 300 100"), boot)).toBeUndefined();
  expect(parseJournal(text.replace("w 100 300", "w 100 10000001"), boot)).toBeUndefined();
  expect(parseJournal(text.replace('"image":"second"', '"image":2'), boot)).toBeUndefined();
  expect(parseJournal(text.replaceAll('"one":"1"', '"one":1'), boot)).toBeUndefined();
  expect(parseJournal("", boot)).toBeUndefined();
});

test("cut off anywhere, it tells of a part of the ranges and of nothing else", async () => {
  await filled();
  const text = await readFile(path, "utf8");
  const whole = parseJournal(text, boot);
  const known = new Set(whole?.written.map((range) => JSON.stringify(range)));
  fc.assert(
    fc.property(fc.integer({ min: 0, max: text.length }), (length) => {
      const part = parseJournal(text.slice(0, length), boot);
      for (const range of part?.written ?? []) expect(known).toContain(JSON.stringify(range));
      if (length < text.length - 1) expect(part?.keep).not.toEqual(whole?.keep);
    }),
  );
});

test("a giant is not read", async () => {
  await filled();
  await truncate(path, 16 * 1024 * 1024 + 1);
  expect(await readJournal(path, boot)).toBeUndefined();
  await truncate(path, 0);
  await filled();
  await appendFile(path, "w 7000000 7000001\n");
  expect(await readJournal(path, boot)).toBeDefined();
});

test("a range is in the file soon after it was written, not only at the end", async () => {
  const journal = await Journal.create(path, descriptor, boot, []);
  journal.wrote({ start: 0, end: 2_000_000 });
  expect((await readJournal(path, boot))?.written).toEqual([{ start: 0, end: 2_000_000 }]);
  await journal.close();
});

test("this boot has an id", async () => {
  expect(await readBootId()).toMatch(/^[0-9a-f-]{36}$/);
});
