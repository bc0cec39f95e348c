// Loading the addon: a state with one clear line, whatever is wrong with the file.

import { execFileSync, spawnSync } from "node:child_process";
import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterEach, beforeEach, expect, test } from "vitest";
import { buildProgram } from "../../config/build.ts";
import { loadNative } from "../../src/native.ts";

let folder = "";

beforeEach(async () => {
  // With characters that a URL writes in another way than a path.
  folder = await mkdtemp(join(tmpdir(), "native 100%-"));
  await mkdir(join(folder, "native/build"), { recursive: true });
  await writeFile(join(folder, "package.json"), '{"type":"module"}');
  await buildProgram(join(folder, "dist"), { native: "src/native.ts" });
});

afterEach(async () => {
  await rm(folder, { recursive: true });
});

/** What a program finds whose addon is that of the temporary folder. */
function loadElsewhere(): unknown {
  const program = `import { loadNative } from ${JSON.stringify(pathToFileURL(join(folder, "dist/native.js")))};
    console.log(JSON.stringify(loadNative()));`;
  const run = spawnSync(process.execPath, ["--input-type=module", "-e", program], { encoding: "utf8" });
  expect(run.stderr).toBe("");
  return JSON.parse(run.stdout);
}

test("the built addon loads", () => {
  expect(loadNative().kind).toBe("loaded");
});

test("zstd's functions are its own: Node exports others of the same names, which would be found first", () => {
  const addon = new URL("../../native/build/hawser.node", import.meta.url).pathname;
  const symbols = execFileSync("readelf", ["--dyn-syms", "--wide", addon], { encoding: "utf8" });
  const wanted = [...symbols.matchAll(/ GLOBAL +DEFAULT +UND (\w+)/g)].map(([, name = ""]) => name);
  expect(wanted).toContain("isal_inflate");
  expect(wanted.filter((name) => name.startsWith("ZSTD_"))).toEqual([]);
});

test("it is found in whatever folder the program lies", async () => {
  const built = new URL("../../native/build/hawser.node", import.meta.url);
  await copyFile(built, join(folder, "native/build/hawser.node"));
  expect(loadElsewhere()).toMatchObject({ kind: "loaded" });
});

test("a missing file and a broken one are said in one line", async () => {
  expect(loadElsewhere()).toEqual({
    kind: "missing",
    reason: expect.stringMatching(/^the native addon cannot be loaded: [^\n]+$/),
  });
  await writeFile(join(folder, "native/build/hawser.node"), "no library at all");
  expect(loadElsewhere()).toEqual({
    kind: "missing",
    reason: expect.stringMatching(/^the native addon cannot be loaded: [^\n]+$/),
  });
});
