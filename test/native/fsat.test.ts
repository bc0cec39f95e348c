// System calls relative to descriptors: exact names, no way through links, and no descriptor that outlives its thread.

import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterEach, beforeEach, expect, test } from "vitest";
import { native } from "../layer/staging.ts";

const { EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EXDEV } = constants.errno;
const binding = native();
const [uid, gid] = [process.getuid?.() ?? 0, process.getgid?.() ?? 0];

let folder = "";
let root = -1;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fsat-"));
  root = binding.openRoot(folder);
  expect(root).toBeGreaterThanOrEqual(0);
});

afterEach(() => {
  binding.close(root);
  rmSync(folder, { recursive: true });
});

test("a file's whole life: content, mode, and times to the nanosecond; an existing one is left alone", () => {
  const bytes = Buffer.from("..content..");
  const put = (): number =>
    binding.putFile(root, "f", bytes, 2, 9, uid, gid, 0o640, 1_234_567_890, 123_456_789, 1_234_567_891, 5);
  expect(put()).toBe(0);
  const stat = statSync(join(folder, "f"), { bigint: true });
  expect([stat.mode & 0o7777n, stat.mtimeNs, stat.atimeNs]).toEqual([
    0o640n,
    1_234_567_890_123_456_789n,
    1_234_567_891_000_000_005n,
  ]);
  expect(readFileSync(join(folder, "f"), "utf8")).toBe("content");
  expect(put()).toBe(-EEXIST);
});

test("names are bytes", () => {
  const name = "\xff\xfe\x01 name";
  expect(binding.makeDirectory(root, name, 0o755)).toBe(0);
  expect(readdirSync(folder, "buffer")).toEqual([Buffer.from(name, "latin1")]);
  expect(binding.makeSymlink(root, "l", "\xe9/\xff")).toBe(0);
  expect(binding.readLink(root, "l")).toBe("\xe9/\xff");
  expect(readlinkSync(join(folder, "l"), "buffer")).toEqual(Buffer.from("\xe9/\xff", "latin1"));
});

test("no call follows a link in its name, and none in a path", () => {
  mkdirSync(join(folder, "in/deep"), { recursive: true });
  writeFileSync(join(folder, "file"), "");
  symlinkSync("in", join(folder, "link"));
  symlinkSync("/", join(folder, "slash"));
  symlinkSync("../link", join(folder, "in/up"));
  expect([-ELOOP, -ENOTDIR]).toContain(binding.openDirectory(root, "link"));
  expect(binding.createFile(root, "link")).toBe(-EEXIST);
  const results = new Float64Array(8);
  expect(binding.status(root, "link", results)).toBe(0);
  expect((results[0] ?? 0) & 0o170000).toBe(0o120000);
  for (const path of ["in", "in/deep", ".", "./in/.", "in/deep/.."]) {
    const fd = binding.openBelow(root, path);
    expect(fd, path).toBeGreaterThanOrEqual(0);
    expect(binding.close(fd)).toBe(0);
  }
  for (const path of ["link", "link/deep", "slash/etc", "in/up/deep", "link/missing"])
    expect(binding.openBelow(root, path), path).toBe(-ELOOP);
  for (const path of ["missing", "in/missing/deep"]) expect(binding.openBelow(root, path)).toBe(-ENOENT);
  for (const path of ["file", "file/below"]) expect(binding.openBelow(root, path)).toBe(-ENOTDIR);
  for (const path of ["..", "in/../..", "/etc"]) expect(binding.openBelow(root, path)).toBe(-EXDEV);
});

test("devices: large numbers are exact, and those that the kernel cannot take are refused", () => {
  const results = new Float64Array(8);
  const isCharacter = 0o020000;
  for (const [major, minor] of [
    [1, 3],
    [0, 0],
    [4095, 2 ** 20 - 1],
  ] as const) {
    const name = `${major}-${minor}`;
    expect(binding.makeNode(root, name, isCharacter | 0o640, major, minor)).toBe(0);
    expect(binding.status(root, name, results)).toBe(0);
    const stat = statSync(join(folder, name));
    expect([results[0], results[3]]).toEqual([stat.mode, stat.rdev]);
    expect(stat.mode).toBe(isCharacter | 0o640);
  }
  expect(new Set(["1-3", "0-0", "4095-1048575"].map((name) => statSync(join(folder, name)).rdev)).size).toBe(
    3,
  );
  expect(binding.makeNode(root, "large", isCharacter, 4096, 0)).toBe(-EINVAL);
});

test("anything but a directory is removed, and a link is not followed", () => {
  mkdirSync(join(folder, "outside"));
  writeFileSync(join(folder, "outside/canary"), "alive");
  symlinkSync("outside", join(folder, "link"));
  symlinkSync("outside/canary", join(folder, "another"));
  writeFileSync(join(folder, "file"), "");
  for (const name of ["link", "another", "file"]) expect(binding.removeFile(root, name)).toBe(0);
  expect(binding.removeFile(root, "outside")).toBe(-EISDIR);
  expect(binding.removeFile(root, "file")).toBe(-ENOENT);
  expect(readdirSync(folder)).toEqual(["outside"]);
  expect(readFileSync(join(folder, "outside/canary"), "utf8")).toBe("alive");
});

test("a tree is removed with all that is in it, and links in it are not followed", () => {
  mkdirSync(join(folder, "outside"));
  writeFileSync(join(folder, "outside/canary"), "alive");
  mkdirSync(join(folder, "t/a/b/c"), { recursive: true });
  writeFileSync(join(folder, "t/a/f"), "");
  symlinkSync(join(folder, "outside"), join(folder, "t/a/link"));
  expect(binding.removeTree(root, "t")).toBe(0);
  expect(readdirSync(folder)).toEqual(["outside"]);
  expect(readFileSync(join(folder, "outside/canary"), "utf8")).toBe("alive");
  expect(binding.removeTree(root, "t")).toBe(-ENOENT);
});

test("a tree that is too deep to be walked is refused instead of walked", () => {
  let at = binding.openRoot(folder);
  for (let depth = 0; depth < 2100; depth++) {
    expect(binding.makeDirectory(at, "d", 0o755)).toBe(0);
    const next = binding.openDirectory(at, "d");
    binding.close(at);
    at = next;
  }
  binding.close(at);
  expect(binding.removeTree(root, "d")).toBe(-ENAMETOOLONG);
  // Half of it goes first, so that the rest can.
  at = binding.openRoot(folder);
  for (let depth = 0; depth < 1000; depth++) {
    const next = binding.openDirectory(at, "d");
    binding.close(at);
    at = next;
  }
  expect(binding.removeTree(at, "d")).toBe(0);
  binding.close(at);
  expect(binding.removeTree(root, "d")).toBe(0);
});

test("only descriptors of its own can be closed, and each once", () => {
  const fd = binding.openDirectory(root, ".");
  expect(binding.close(fd)).toBe(0);
  expect(binding.close(fd)).toBe(-EBADF);
  for (const other of [0, 1, 2, -1, 1e9, 2 ** 40]) expect(binding.close(other)).toBe(-EBADF);
});

test("a worker that dies leaves no descriptor open, and its umask is its own", async () => {
  const before = readdirSync("/proc/self/fd").length;
  const umask = process.umask();
  const source = `
    const { parentPort, workerData } = require("node:worker_threads");
    const binding = require(workerData.addon);
    const root = binding.openRoot(workerData.folder);
    const status = [binding.ownUmask(), binding.makeDirectory(root, "all", 0o777)];
    for (let index = 0; index < 40; index++) binding.openDirectory(root, ".");
    binding.createFile(root, "open");
    parentPort.postMessage(status);
    setInterval(() => {}, 1000);
  `;
  const addon = new URL("../../native/build/hawser.node", import.meta.url).pathname;
  const worker = new Worker(source, { eval: true, workerData: { addon, folder } });
  const status = await new Promise((resolve, reject) =>
    worker.once("message", resolve).once("error", reject),
  );
  expect(status).toEqual([0, 0]);
  expect(readdirSync("/proc/self/fd").length).toBeGreaterThan(before + 40);
  await worker.terminate();
  expect(readdirSync("/proc/self/fd").length).toBeLessThanOrEqual(before);
  expect(statSync(join(folder, "all")).mode & 0o777).toBe(0o777);
  expect(process.umask()).toBe(umask);
});

test("wrong arguments throw before anything is done", () => {
  const call = binding as unknown as Record<string, (...all: unknown[]) => unknown>;
  const wrong: [string, ...unknown[]][] = [
    ["openRoot"],
    ["openRoot", 1],
    ["openDirectory", "0", "x"],
    ["openDirectory", root, "nul\0byte"],
    ["makeDirectory", root, "n".repeat(5000), 0o755],
    ["makeSymlink", root, "l", "t".repeat(5000)],
    ["writeFile", root, Buffer.alloc(4), 0, 5],
    ["putFile", root, "f", Buffer.alloc(4), 3, 2, 0, 0, 0, 0, 0, 0, 0],
    ["status", root, "", new Float64Array(7)],
    ["setXattr", root, "", "k".repeat(300), Buffer.alloc(1)],
  ];
  for (const [name, ...parameters] of wrong)
    expect(() => call[name]?.(...parameters), name).toThrow(TypeError);
  expect(readdirSync(folder)).toEqual([]);
});
