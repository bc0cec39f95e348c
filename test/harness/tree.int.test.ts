// The comparison that parity rests on must see each thing that it is trusted with, or it would agree with anything.

import { execFileSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  linkSync,
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { scratch } from "./containerd.ts";
import { differences, readTree } from "./tree.ts";

let work: string;

beforeEach(() => {
  work = mkdtempSync(join(scratch(), "tree-"));
});

afterEach(() => {
  rmSync(work, { recursive: true, force: true });
});

/** A tree with one of everything; the same at each call, times included. */
function plant(name: string): string {
  const root = join(work, name);
  mkdirSync(join(root, "dir"), { recursive: true });
  for (const file of ["file", "other", "dir/file", 'caf\u00e9 \\ "q"\nline'])
    writeFileSync(join(root, file), "same");
  linkSync(join(root, "file"), join(root, "linked"));
  symlinkSync("file", join(root, "symlink"));
  execFileSync("mknod", [join(root, "device"), "c", "1", "3"]);
  execFileSync("mknod", [join(root, "whiteout"), "c", "0", "0"]);
  execFileSync("mknod", [join(root, "fifo"), "p"]);
  setXattr(join(root, "other"), "user.note", "one");
  setXattr(join(root, 'caf\u00e9 \\ "q"\nline'), "trusted.note", "one");
  const entries = [
    "dir/file",
    "file",
    "other",
    'caf\u00e9 \\ "q"\nline',
    "device",
    "whiteout",
    "fifo",
    "dir",
    "",
  ];
  for (const entry of entries) utimesSync(join(root, entry), 1000, 1000);
  lutimesSync(join(root, "symlink"), 1000, 1000);
  return root;
}

function setXattr(path: string, name: string, value: string): void {
  execFileSync("setfattr", ["-n", name, "-v", value, path]);
}

/** Makes a change without leaving a new time on the entry. */
function keepingTime(path: string, change: () => void): void {
  change();
  utimesSync(path, 1000, 1000);
}

test("equal trees have no differences, and everything in them is read", () => {
  const [a, b] = [readTree(plant("a")), readTree(plant("b"))];
  expect(differences(a, b)).toEqual([]);
  expect([...a.keys()].map((path) => Buffer.from(path, "latin1").toString()).sort()).toEqual(
    [
      "",
      'caf\u00e9 \\ "q"\nline',
      "device",
      "dir",
      "dir/file",
      "fifo",
      "file",
      "linked",
      "other",
      "symlink",
      "whiteout",
    ].sort(),
  );
  expect(a.get("other")?.xattrs).toContain("user.note=0x6f6e65");
  expect([...a.values()].filter(({ xattrs }) => xattrs.includes("trusted.note="))).toHaveLength(1);
  expect(new Set([...a.values()].map(({ kind }) => kind))).toEqual(
    new Set(["directory", "file", "symlink", "char", "fifo"]),
  );
});

test.each<[string, string, (path: string) => void]>([
  ["content", "dir/file", (path) => keepingTime(path, () => writeFileSync(path, "diff"))],
  ["size", "dir/file", (path) => keepingTime(path, () => writeFileSync(path, "longer"))],
  ["mode", "other", (path) => chmodSync(path, 0o4755)],
  ["owner", "other", (path) => chownSync(path, 3_000_000, 0)],
  ["mtimeNs", "other", (path) => utimesSync(path, 1000, 1000.5)],
  ["mtimeNs", "dir", (path) => utimesSync(path, 1000, 1001)],
  ["mtimeNs", "device", (path) => utimesSync(path, 1000, 1001)],
  ["xattrs", "other", (path) => setXattr(path, "user.note", "two")],
  ["xattrs", "dir", (path) => setXattr(path, "trusted.overlay.opaque", "y")],
  ["xattrs", 'caf\u00e9 \\ "q"\nline', (path) => setXattr(path, "trusted.note", "two")],
  ["linkedWith", "linked", (path) => replace(path, () => writeFileSync(path, "same"))],
  ["target", "symlink", (path) => replace(path, () => symlinkSync("elsewhere", path))],
  ["device", "device", (path) => replace(path, () => execFileSync("mknod", [path, "c", "1", "5"]))],
  ["kind", "device", (path) => replace(path, () => execFileSync("mknod", [path, "b", "1", "3"]))],
])("%s of %j", (key, entry, change) => {
  const [a, b] = [plant("a"), plant("b")];
  change(join(b, entry));
  const path = Buffer.from(entry).toString("latin1");
  const lines = differences(readTree(a), readTree(b));
  expect(lines.some((line) => line.startsWith(`${path}: ${key} `))).toBe(true);
  expect(lines.every((line) => line.startsWith(`${path}: `))).toBe(true);
});

/** Another entry in the place of one, with the directory's time kept. */
function replace(path: string, make: () => void): void {
  rmSync(path);
  make();
  lutimesSync(path, 1000, 1000);
  utimesSync(join(path, ".."), 1000, 1000);
}

test("an entry that only one side has is named, from either side", () => {
  const [a, b] = [plant("a"), plant("b")];
  writeFileSync(join(b, "dir/added"), "");
  utimesSync(join(b, "dir"), 1000, 1000);
  expect(differences(readTree(a), readTree(b))).toEqual(["dir/added: only in the second"]);
  expect(differences(readTree(b), readTree(a))).toEqual(["dir/added: only in the first"]);
});

test("times of the root, of whiteouts and of the paths that are named do not count; other changes of these do", () => {
  const [a, b] = [plant("a"), plant("b")];
  for (const entry of ["", "whiteout", "dir"]) utimesSync(join(b, entry), 1000, 2000);
  expect(differences(readTree(a), readTree(b), new Set(["dir"]))).toEqual([]);
  for (const entry of ["", "whiteout", "dir"]) chmodSync(join(b, entry), 0o700);
  const lines = differences(readTree(a), readTree(b), new Set(["dir"]));
  expect(new Set(lines.map((line) => line.split(":", 1)[0]))).toEqual(new Set(["", "dir", "whiteout"]));
});

test("what cannot be read is an error, not an empty tree", () => {
  expect(() => readTree(join(work, "missing"))).toThrow(/getfattr: .*No such file/);
});
