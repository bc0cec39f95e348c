// The program is built anew while somebody starts it, as a test of the quick start does beside others: it was away for as long
// as that took, and whoever started it then found nothing.

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));

test("a program that is built anew can be started all the while", async () => {
  // What builds it keeps a cache where temporary files are.
  const scratch = mkdtempSync(join(tmpdir(), "rebuilt-"));
  const env = { ...process.env, TMPDIR: scratch };
  const build = spawn("npm", ["run", "--silent", "build"], { cwd: root, env, stdio: "inherit" });
  const over = once(build, "exit");
  const failures: string[] = [];
  for (let starts = 0; build.exitCode === null || starts < 2; starts++) {
    const { status, stderr } = spawnSync(process.execPath, ["dist/main.js", "version"], {
      cwd: root,
      encoding: "utf8",
    });
    if (status !== 0) failures.push(stderr);
    // Events of the build's come in between.
    await new Promise<void>((resolve) => {
      setImmediate(resolve);
    });
  }
  expect(await over).toEqual([0, null]);
  rmSync(scratch, { recursive: true });
  expect(failures).toEqual([]);
});
