// The leak gate, around every test and around every test file: files, mounts, descriptors, workers, processes and servers
// that stay fail what has left them behind. A setup file of vitest, so its hooks are the first before and the last after
// those of the tests.

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, expect } from "vitest";
import { leaksSince, look } from "./harness/leaks.ts";

// Folders of this file's own, so that whatever is in them at the end is its doing.
const places = [mkdtempSync(join(tmpdir(), "hawser-")), mkdtempSync("/dev/shm/hawser-")];
const [temporary = "", scratch = ""] = places;
process.env["TMPDIR"] = temporary;
process.env["HAWSER_SCRATCH"] = scratch;
const mark = `HAWSER_SCRATCH=${scratch}`;
const before = look(places, mark);
let beforeTest = before;

beforeEach(() => {
  beforeTest = look(places, mark);
});

afterEach(async () => {
  // Tests of a file share servers and engines, which keep connections and start threads as they need them.
  const isShared = (what: string): boolean => /^\d+ x (?:resource TCPSocketWrap|worker \d+)$/.test(what);
  expect(await leaksSince(beforeTest, places, mark, isShared), "left behind by this test").toEqual([]);
});

afterAll(async () => {
  try {
    expect(await leaksSince(before, places, mark), "left behind").toEqual([]);
  } finally {
    unmountBelow(places);
    for (const place of places) rmSync(place, { recursive: true, force: true });
    // A later file in this process makes its own.
    delete process.env["TMPDIR"];
    mkdirSync(tmpdir(), { recursive: true });
  }
});

/** A mount that was left would keep its folder, and what was found from being told. */
function unmountBelow(folders: readonly string[]): void {
  for (const line of readFileSync("/proc/self/mounts", "utf8").split("\n").toReversed()) {
    const path = line.split(" ")[1] ?? "";
    if (folders.some((folder) => path.startsWith(`${folder}/`))) execFileSync("umount", ["-l", path]);
  }
}
