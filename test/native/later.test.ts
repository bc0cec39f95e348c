// What is done beside the main thread: syncfs and removing a tree, and what they say of a place that is not there.

import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { native } from "../layer/staging.ts";

test("0 for a directory, ENOENT for none, ENOTDIR for a file", async () => {
  expect(await native().syncFileSystem(tmpdir())).toBe(0);
  expect(await native().syncFileSystem("/nonexistent")).toBe(-2);
  expect(await native().syncFileSystem("/etc/hostname")).toBe(-20);
  expect(() => native().syncFileSystem("a\0b")).toThrow(TypeError);
});

test("a tree goes with all that is below it, links and what they point at apart; ENOENT for none", async () => {
  const folder = mkdtempSync(join(tmpdir(), "later-"));
  try {
    mkdirSync(join(folder, `tree/${"d/".repeat(100)}`), { recursive: true });
    for (const name of ["a", "d/b", "d/d/c"]) writeFileSync(join(folder, "tree", name), name);
    writeFileSync(join(folder, "kept"), "kept");
    symlinkSync("../kept", join(folder, "tree/file"));
    symlinkSync("..", join(folder, "tree/d/folder"));
    symlinkSync("tree", join(folder, "link"));
    const path = (name: string): string => Buffer.from(join(folder, name)).toString("latin1");
    expect(await native().removePath(path("link"))).toBe(0);
    expect(await native().removePath(path("tree"))).toBe(0);
    expect(readdirSync(folder)).toEqual(["kept"]);
    expect(await native().removePath(path("tree"))).toBe(-2);
    expect(await native().removePath(path("kept/below"))).toBe(-20);
    expect(() => native().removePath("a\0b")).toThrow(TypeError);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
