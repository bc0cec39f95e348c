// What must not enter a bundle: other bytes than those that were pinned, machine code, licences that nobody looked at.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { buildBundle } from "../../config/release/bundle.ts";
import { checkNoMachineCode, checkPortable } from "../../config/release/modules.ts";
import { checkIntegrity } from "../../config/release/node.ts";
import { checkLicence } from "../../config/release/notices.ts";

let folder = "";

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "parts-"));
});

afterEach(() => {
  rmSync(folder, { recursive: true });
});

test("one byte that differs from the pin is told, with both digests", () => {
  const bytes = Buffer.from("a package");
  const pin = `sha512-${createHash("sha512").update(bytes).digest("base64")}`;
  expect(() => checkIntegrity(bytes, pin, "x@1")).not.toThrow();
  bytes[0] = 0x62;
  expect(() => checkIntegrity(bytes, pin, "x@1")).toThrow(
    /^x@1 is not what was pinned: expected sha512-\S+, got/,
  );
});

test("modules that are made for one kind of machine are refused by what they say and by what they are", async () => {
  expect(() => checkPortable("node_modules/x", {}, ["index.js"])).not.toThrow();
  for (const field of ["os", "cpu", "libc"])
    expect(() => checkPortable("node_modules/x", { [field]: ["linux"] }, []), field).toThrow(
      "node_modules/x is made",
    );
  expect(() => checkPortable("node_modules/x", {}, ["binding.gyp"])).toThrow("node_modules/x is made");
  mkdirSync(join(folder, "x/lib"), { recursive: true });
  writeFileSync(join(folder, "x/lib/index.js"), "");
  await checkNoMachineCode(folder);
  copyFileSync("/bin/true", join(folder, "x/lib/data.json"));
  await expect(checkNoMachineCode(folder)).rejects.toThrow("x/lib/data.json is machine code");
});

test("licences are accepted by name, every one in an expression", () => {
  for (const licence of ["MIT", "(MIT AND Zlib)", "(Apache-2.0 AND BSD-3-Clause)", "ISC OR 0BSD"])
    expect(() => checkLicence("x", licence), licence).not.toThrow();
  for (const licence of ["GPL-3.0", "(MIT AND AGPL-3.0)", "SEE LICENSE IN x", "", undefined, { type: "MIT" }])
    expect(() => checkLicence("x", licence), JSON.stringify(licence)).toThrow(
      "the licence of the module x is",
    );
});

describe("units", () => {
  const names = ["hawser-launch", "hawser.service", "hawser.socket"];

  test.each(names)("without %s there is no bundle", async (missing) => {
    for (const name of names.filter((one) => one !== missing)) writeFileSync(join(folder, name), "");
    const building = buildBundle({ architecture: "amd64", units: folder, out: join(folder, "out") });
    await expect(building).rejects.toThrow(`${join(folder, missing)} is missing`);
  });

  test("a file that has no place is not left out in silence", async () => {
    for (const name of [...names, "hawser.conf"]) writeFileSync(join(folder, name), "");
    const building = buildBundle({ architecture: "amd64", units: folder, out: join(folder, "out") });
    await expect(building).rejects.toThrow("hawser.conf has no place in a bundle");
  });
});

describe("the command", () => {
  const program = fileURLToPath(new URL("../../config/release/main.ts", import.meta.url));
  const release = (...args: string[]) =>
    spawnSync(process.execPath, ["--import", "tsx", program, ...args], {
      encoding: "utf8",
      // tsx keeps what it compiled there.
      env: { ...process.env, TMPDIR: folder },
    });

  test.each([
    [["--arch", "mips"], 'release: --arch is "mips", and bundles are made for amd64 and arm64\n'],
    [["--arch"], /^release: Option '--arch <value>' argument missing\n$/],
    [["--bogus"], /^release: Unknown option '--bogus'\n$/],
    [["amd64"], /^release: Unexpected argument 'amd64'\n$/],
  ])("%j is told in one line, with exit code 2", (args, said) => {
    const { status, stdout, stderr } = release(...args);
    expect([status, stdout]).toEqual([2, ""]);
    if (typeof said === "string") expect(stderr).toBe(said);
    else expect(stderr).toMatch(said);
  });

  test("--help is short", () => {
    const { status, stdout } = release("--help");
    expect(status).toBe(0);
    expect(stdout).toMatch(/^Usage: npm run release/);
  });
});

test("the version that the Dockerfile takes by default is the package's", () => {
  const text = (name: string): string => readFileSync(new URL(`../../${name}`, import.meta.url), "utf8");
  const { version } = JSON.parse(text("package.json")) as { version: string };
  expect(text("Dockerfile")).toContain(`\nARG VERSION=${version}\n`);
});
