// The leak gate sees what it is there for: each kind of leak is made, seen, and taken away again; and a run of tests
// that leave something behind fails, with its name.

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { expect, test } from "vitest";
import { leaksSince, look } from "../harness/leaks.ts";

const mark = `GATE_TEST=${process.pid}`;
const [name = "", value = ""] = mark.split("=");
const idle = "setInterval(() => {}, 1000)";

test("a file, a descriptor, a mount, a process, its child, a worker and a server are each seen", async () => {
  const place = mkdtempSync(join(tmpdir(), "gate-"));
  const before = look([place], mark);
  expect(await leaksSince(before, [place], mark)).toEqual([]);
  writeFileSync(join(place, "file"), "");
  const fd = openSync(join(place, "file"), "r");
  mkdirSync(join(place, "mount"));
  spawnSync("mount", ["-t", "tmpfs", "tmpfs", join(place, "mount")]);
  const child: ChildProcess = spawn("sleep", ["1000"], { stdio: "ignore" });
  // The shell ends, and the process below it belongs to nobody.
  const environment = { env: { ...process.env, [name]: value }, encoding: "utf8" } as const;
  const { stdout: orphan } = spawnSync(
    "sh",
    ["-c", "tail -f /dev/null >/dev/null 2>&1 & echo $!"],
    environment,
  );
  const worker = new Worker(idle, { eval: true });
  await once(worker, "online");
  const server = createServer();
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const seen = (await leaksSince(before, [place], mark)).sort();
  expect(seen).toEqual([
    `1 x descriptor ${place}/file`,
    `1 x file ${place}/file`,
    `1 x file ${place}/mount`,
    `1 x mount ${place}/mount`,
    "1 x process sleep",
    "1 x process tail",
    "1 x resource ProcessWrap",
    "1 x resource TCPServerWrap",
    `1 x worker ${worker.threadId}`,
  ]);
  closeSync(fd);
  spawnSync("umount", [join(place, "mount")]);
  child.kill();
  process.kill(Number(orphan));
  await Promise.all([once(child, "exit"), worker.terminate()]);
  await new Promise((resolve) => {
    server.close(resolve);
  });
  rmSync(place, { recursive: true });
});

test("a folder that is not there is no folder without leaks", () => {
  expect(() => look([join(tmpdir(), "missing")], mark)).toThrow("ENOENT");
});

test("without folders to look into there is no verdict", async () => {
  expect(await leaksSince(look([], mark), [], mark)).toEqual([
    "nothing was seen of folders, not even what is always there",
  ]);
});

/** A run of vitest on one file behind the gate: its output, and whether it failed. */
function run(body: string): { readonly output: string; readonly status: number | null } {
  const folder = mkdtempSync(join(tmpdir(), "gate-"));
  const local = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
  try {
    const config = { test: { globals: true, pool: "forks", setupFiles: [local("../gate.ts")] } };
    writeFileSync(join(folder, "vitest.config.mjs"), `export default ${JSON.stringify(config)};`);
    writeFileSync(join(folder, "case.test.js"), body);
    const args = [local("../../node_modules/vitest/vitest.mjs"), "run", "--root", folder];
    const { stdout, stderr, status } = spawnSync(process.execPath, args, {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    });
    return { output: stdout + stderr, status };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test("a file of tests that leaves nothing passes", () => {
  expect(run("test('x', () => {});")).toMatchObject({ status: 0 });
});

test("what is left fails the run, by test and by file, is told, and mounts are taken away", () => {
  const { output, status } = run(`
    const { writeFileSync, mkdirSync } = process.getBuiltinModule("fs");
    const { execFileSync } = process.getBuiltinModule("child_process");
    const folder = process.env.HAWSER_SCRATCH;
    afterAll(() => writeFileSync(folder + "/late", ""));
    test("one", () => writeFileSync(folder + "/file", ""));
    test("two", () => {
      mkdirSync(folder + "/m");
      execFileSync("mount", ["-t", "tmpfs", "gate", folder + "/m"]);
    });
  `);
  expect(status).toBe(1);
  expect(output.match(/left behind by this test/g)?.length).toBeGreaterThan(1);
  for (const what of ["file", "late"]) expect(output).toMatch(new RegExp(`1 x file \\S+/${what}"`));
  const [, path = ""] = /1 x mount (\S+\/m)"/.exec(output) ?? [];
  expect(path).not.toBe("");
  expect(readFileSync("/proc/self/mounts", "utf8")).not.toContain(path);
});
