// The generated code is what the generator makes of our messages: nobody edits it, and nobody forgets to run it.

import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

test("npm run generate changes nothing", () => {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const source = join(root, "src/proto");
  const copy = mkdtempSync(join(tmpdir(), "proto-"));
  try {
    for (const name of readdirSync(source).filter((file) => !file.startsWith("gen")))
      cpSync(join(source, name), join(copy, name));
    const template = JSON.stringify({
      version: "v2",
      plugins: [{ local: "protoc-gen-es", out: "gen", opt: ["target=js+dts"] }],
    });
    const env = {
      ...process.env,
      PATH: `${join(root, "node_modules/.bin")}${delimiter}${process.env["PATH"]}`,
    };
    const run = spawnSync("buf", ["generate", "--template", template], { cwd: copy, env, encoding: "utf8" });
    expect(run.status, run.stderr).toBe(0);
    const names = readdirSync(join(copy, "gen"));
    expect(names.length).toBeGreaterThanOrEqual(4);
    expect(readdirSync(join(source, "gen"))).toEqual(names);
    for (const name of names) {
      expect(readFileSync(join(source, "gen", name), "utf8"), name).toBe(
        readFileSync(join(copy, "gen", name), "utf8"),
      );
    }
  } finally {
    rmSync(copy, { recursive: true });
  }
});
