// The closing line of a test run: what continuous integration believes. Each case is a run of its own.

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { spent } from "../budgets.ts";

const vitest = fileURLToPath(new URL("../../node_modules/vitest/vitest.mjs", import.meta.url));
const reporter = fileURLToPath(new URL("../reporter.ts", import.meta.url));

function run(tests: string | undefined): { status: number | null; last: string | undefined } {
  const folder = mkdtempSync(join(tmpdir(), "reporter-"));
  try {
    writeFileSync(join(folder, "vitest.config.mjs"), "export default { test: { globals: true } };");
    if (tests !== undefined) writeFileSync(join(folder, "case.test.ts"), tests);
    const args = [vitest, "run", "--root", folder, "--reporter", "default", "--reporter", reporter];
    const { status, stdout } = spawnSync(process.execPath, args, {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    });
    return { status, last: stdout.trimEnd().split("\n").at(-1) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const fails = "() => { throw new Error('x'); }";

test.each([
  ["a run that passes", "test('a', () => {}); test('b', () => {});", 0, "2 passed, 0 failed"],
  ["skipped tests", "test('a', () => {}); test.skip('b', () => {});", 0, "1 passed, 0 failed, 1 skipped"],
  ["a test that fails", `test('a', () => {}); test('b', ${fails});`, 1, "1 passed, 1 failed"],
  ["a hook of the file", `afterAll(${fails}); test('a', () => {});`, 1, "1 passed, 1 failed"],
  [
    "a hook of a suite",
    `describe('s', () => { beforeAll(${fails}); test('a', () => {}); });`,
    1,
    "0 passed, 1 failed, 1 skipped",
  ],
  ["a file that does not load", "import './nothing.ts';", 1, "0 passed, 1 failed"],
  [
    "a stray error",
    "test('a', () => { queueMicrotask(() => { void Promise.reject(new Error('x')); }); });",
    1,
    "1 passed, 1 failed",
  ],
  ["a run without tests", undefined, 1, "0 passed, 1 failed"],
] as const)("%s", (_, tests, status, last) => {
  expect(run(tests)).toEqual({ status, last });
});

test("time is told kind by kind, and what is over its budget is marked", () => {
  expect(
    spent([
      { path: "/x/test/fuzz/a.int.test.ts", seconds: 50.4 },
      { path: "/x/test/fuzz/b.int.test.ts", seconds: 20 },
      { path: "/x/test/e2e/crash.int.test.ts", seconds: 1.2 },
      { path: "/x/test/oci/digest.test.ts", seconds: 0.1 },
    ]),
  ).toEqual([
    "time for fuzz: 70 s of 60 s, 2 files: OVER",
    "time for faults: 1 s of 600 s, 1 files",
    "time for all else: 0 s of 600 s, 1 files",
  ]);
});
