// The floor is read from real ELF files, and a bundle that is above it, or that nothing was read from, is refused.

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { checkFloor, compareVersions, floor } from "../../config/release/floor.ts";
import { machines } from "../../config/release/place.ts";

const own = machines.amd64.elf;
let folder = "";

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "floor-"));
});

afterEach(() => {
  rmSync(folder, { recursive: true });
});

/** Compiles a shared library into the folder. */
function library(name: string, source: string, flags: readonly string[] = []): void {
  const input = join(tmpdir(), `${name}.cc`);
  writeFileSync(input, source);
  execFileSync("g++", ["-shared", "-fPIC", "-o", join(folder, name), input, ...flags]);
  rmSync(input);
}

const modest = "#include <unistd.h>\nint modest() { return getpid(); }\n";

test("what is wanted is told, the highest of each", async () => {
  library("modest.so", modest);
  library("newer.node", "#include <sys/random.h>\nlong newer(void *p) { return getrandom(p, 1, 0); }\n");
  writeFileSync(join(folder, "text"), "no library");
  expect(await checkFloor(folder, own)).toEqual(new Map([["GLIBC", "2.25"]]));
});

test("what wants more is named, with the symbol's version and the floor", async () => {
  library("modest.so", modest);
  library("high.so", "#include <stdlib.h>\nunsigned high() { return arc4random(); }\n");
  await expect(checkFloor(folder, own)).rejects.toThrow(
    `high.so wants GLIBC_2.36, which is above the stated floor, GLIBC_${floor["GLIBC"]}`,
  );
});

test("versions of libraries that no floor is stated for are refused", async () => {
  const script = join(tmpdir(), "versions");
  writeFileSync(script, "OTHER_1.0 { global: *; };\n");
  library("libother.so", 'extern "C" int other() { return 1; }\n', [
    `-Wl,--version-script=${script}`,
    "-Wl,-soname,libother.so",
  ]);
  rmSync(script);
  library("user.so", 'extern "C" int other();\nint user() { return other(); }\n', [
    join(folder, "libother.so"),
  ]);
  await expect(checkFloor(folder, own)).rejects.toThrow("user.so wants OTHER_1.0, and no floor is stated");
});

test("nothing that was read is no pass", async () => {
  await expect(checkFloor(folder, own)).rejects.toThrow("0 ELF files: nothing was checked");
  library("bare.so", "int bare() { return 1; }\n", ["-nostdlib"]);
  await expect(checkFloor(folder, own)).rejects.toThrow("1 ELF files: nothing was checked");
});

test("a file for another machine is refused", async () => {
  library("modest.so", modest);
  library("other.so", modest);
  // e_machine of its header, as elf.h has it: EM_AARCH64.
  const other = readFileSync(join(folder, "other.so"));
  other.writeUInt16LE(183, 18);
  writeFileSync(join(folder, "other.so"), other);
  await expect(checkFloor(folder, own)).rejects.toThrow(
    "other.so is for AArch64, and the bundle for Advanced Micro Devices X86-64",
  );
});

test("a library that is neither in the bundle nor the system's is missed", async () => {
  library("user.so", modest, ["-Wl,--no-as-needed", "-lisal"]);
  await expect(checkFloor(folder, own)).rejects.toThrow(
    "user.so is linked with libisal.so.2, which is not in the bundle",
  );
  copyFileSync("/usr/lib/x86_64-linux-gnu/libisal.so.2", join(folder, "libisal.so.2"));
  expect((await checkFloor(folder, own)).has("GLIBC")).toBe(true);
});

test("versions are numbers between dots", () => {
  const sorted = ["2", "2.2.5", "2.3", "2.28", "2.28.1", "3"];
  expect(sorted.toReversed().sort(compareVersions)).toEqual(sorted);
});

test("README.md states the same floor", () => {
  const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
  expect(readme).toContain(`glibc ${floor["GLIBC"]}`);
  expect(readme).toContain(`GLIBCXX_${floor["GLIBCXX"]}`);
});
