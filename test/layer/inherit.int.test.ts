// Implicit directories take after the nearest lower layer that has a directory there, and never after anything outside.

import { spawnSync } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Directories, noDirectories } from "../../src/layer/directories.ts";
import { inheritNative, inheritPortable } from "../../src/layer/inherit.ts";
import type { ImplicitDirectories } from "../../src/layer/layer.ts";
import { type Node, readTree } from "../harness/tree.ts";
import { native, Staging } from "./staging.ts";

const never = new AbortController().signal;
let staging: Staging;
let upper = "";

beforeEach(async () => {
  staging = await Staging.make();
  upper = await staging.root();
});

afterEach(async () => {
  await staging[Symbol.asyncDispose]();
});

/** user::rwx,group::r-x,other::r-x, as setfacl writes it. */
const defaultAcl = "0x0200000001000700ffffffff04000500ffffffff20000500ffffffff";

interface Look {
  readonly mode: number;
  readonly uid?: number;
  readonly mtime?: number;
  readonly xattrs?: Readonly<Record<string, string>>;
}

/** Makes a directory, with those above it, that looks like this. */
function put(root: string, path: string, { mode, uid = 0, mtime = 1000, xattrs = {} }: Look): void {
  const full = join(root, path);
  mkdirSync(full, { recursive: true });
  chownSync(full, uid, uid);
  for (const [key, value] of Object.entries(xattrs)) spawnSync("setfattr", ["-n", key, "-v", value, full]);
  chmodSync(full, mode);
  utimesSync(full, mtime + 1, mtime);
}

async function inherit(lowers: readonly string[], paths: readonly string[]): Promise<Map<string, Node>> {
  for (const path of paths) put(upper, path, { mode: 0o755, mtime: 5 });
  await inheritNative(native(), upper, lowers, implied(paths), never);
  return readTree(upper);
}

function implied(paths: readonly string[], named: readonly string[] = []): ImplicitDirectories {
  const directories = new Directories();
  const time = { seconds: 0, nanoseconds: 0 };
  for (const path of [...paths, ...named]) directories.imply(path);
  for (const path of named) directories.name(path, { mtime: time, atime: time });
  return directories.implicit();
}

test("owner, mode, times and attributes of the nearest lower directory; trusted attributes stay below", async () => {
  const [near, middle, far] = [await staging.root(), await staging.root(), await staging.root()];
  put(far, "a", { mode: 0o700, uid: 1 });
  put(middle, "a", {
    mode: 0o2750,
    uid: 44,
    mtime: 12_345,
    xattrs: { "user.note": "kept", "trusted.overlay.opaque": "y" },
  });
  put(far, "a/b", { mode: 0o1777, uid: 2 });
  const tree = await inherit([near, middle, far], ["a", "a/b", "a/b/none"]);
  expect(tree.get("a")).toMatchObject({
    mode: 0o2750,
    owner: "44:44",
    mtimeNs: 12_345_000_000_000n,
    xattrs: "user.note=0x6b657074",
  });
  expect(tree.get("a/b")).toMatchObject({ mode: 0o1777, owner: "2:2" });
  expect(tree.get("a/b/none")).toMatchObject({ mode: 0o755, owner: "0:0" });
});

test("a directory that the archive named gets only the attributes that it lacks", async () => {
  const lower = await staging.root();
  put(lower, "d", { mode: 0o700, uid: 44, xattrs: { "user.a": "lower", "user.b": "lower" } });
  put(upper, "d", { mode: 0o751, uid: 7, mtime: 77, xattrs: { "user.a": "own" } });
  await inheritNative(native(), upper, [lower], implied([], ["d"]), never);
  expect(readTree(upper).get("d")).toMatchObject({
    mode: 0o751,
    owner: "7:7",
    mtimeNs: 77_000_000_000n,
    xattrs: "user.a=0x6f776e user.b=0x6c6f776572",
  });
});

test("an attribute that a directory has already stays, as the label does that the kernel has given it", async () => {
  const lower = await staging.root();
  put(lower, "d", { mode: 0o700, uid: 44, xattrs: { "security.selinux": "lower", "user.a": "lower" } });
  put(upper, "d", { mode: 0o755, xattrs: { "security.selinux": "own" } });
  await inheritNative(native(), upper, [lower], implied(["d"]), never);
  expect(readTree(upper).get("d")).toMatchObject({
    mode: 0o700,
    owner: "44:44",
    xattrs: "security.selinux=0x6f776e user.a=0x6c6f776572",
  });
});

test("whatever else is there ends the search: a file, a whiteout, a link to either", async () => {
  const [near, far] = [await staging.root(), await staging.root()];
  for (const path of ["file", "gone", "link"]) put(far, path, { mode: 0o700, uid: 9 });
  writeFileSync(join(near, "file"), "");
  spawnSync("mknod", [join(near, "gone"), "c", "0", "0"]);
  symlinkSync("file", join(near, "link"));
  const tree = await inherit([near, far], ["file", "gone", "link"]);
  for (const path of ["file", "gone", "link"])
    expect(tree.get(path)).toMatchObject({ mode: 0o755, owner: "0:0" });
});

test.each(["file/below", "gone/below", "link/below", "loop", "loop/below"])(
  "something else on the way to a directory, as with %s, is left to containerd, which gives up there",
  async (path) => {
    const near = await staging.root();
    writeFileSync(join(near, "file"), "");
    spawnSync("mknod", [join(near, "gone"), "c", "0", "0"]);
    symlinkSync("file", join(near, "link"));
    symlinkSync("loop", join(near, "loop"));
    await expect(inherit([near], [path])).rejects.toMatchObject({ code: "unsupported" });
  },
);

test("links of a lower layer are followed inside of it, wherever they point", async () => {
  const [near, far] = [await staging.root(), await staging.root()];
  put(near, "usr/lib", { mode: 0o711, uid: 3 });
  put(staging.folder, "outside", { mode: 0o700, uid: 66 });
  symlinkSync("/usr/lib", join(near, "lib"));
  symlinkSync("../lib", join(near, "usr/again"));
  symlinkSync("/", join(near, "root"));
  symlinkSync(join(staging.folder, "outside"), join(near, "out"));
  symlinkSync("../../../../../outside", join(near, "up"));
  symlinkSync("nowhere", join(near, "dangling"));
  put(far, "dangling", { mode: 0o700, uid: 8 });
  put(near, "usr/lib/deep", { mode: 0o701, uid: 4 });
  const paths = ["lib", "lib/deep", "usr", "usr/again", "root", "root/usr", "out", "up", "dangling"];
  const tree = await inherit([near, far], paths);
  expect(tree.get("lib")).toMatchObject({ mode: 0o711, owner: "3:3" });
  expect(tree.get("usr/again")).toMatchObject({ mode: 0o711, owner: "3:3" });
  expect(tree.get("lib/deep")).toMatchObject({ mode: 0o701, owner: "4:4" });
  for (const path of ["root", "root/usr", "out", "up"])
    expect(tree.get(path)).toMatchObject({ mode: 0o755, owner: "0:0" });
  expect(tree.get("dangling")).toMatchObject({ mode: 0o700, owner: "8:8" });
});

test("a link of a lower layer that goes up in the middle is left to containerd", async () => {
  const near = await staging.root();
  put(near, "usr/lib", { mode: 0o711 });
  symlinkSync("usr/lib/../lib", join(near, "lib"));
  await expect(inherit([near], ["lib"])).rejects.toMatchObject({ code: "unsupported" });
});

test("a directory that passes on its group does so to the directories that are made in it", async () => {
  const lower = await staging.root();
  put(lower, "d", { mode: 0o2775, uid: 50 });
  const tree = await inherit([lower], ["d", "d/new", "d/new/deeper"]);
  expect(tree.get("d")).toMatchObject({ mode: 0o2775, owner: "50:50" });
  expect(tree.get("d/new")).toMatchObject({ mode: 0o755, owner: "0:50" });
  expect(tree.get("d/new/deeper")).toMatchObject({ mode: 0o755, owner: "0:0" });
});

test("it is left to containerd when the archive has named the directory at some time, and with ACLs", async () => {
  const lower = await staging.root();
  put(lower, "d", { mode: 0o2775, uid: 50 });
  put(upper, "d/new", { mode: 0o755 });
  const directories = implied(["d/new"], ["d"]);
  await expect(inheritNative(native(), upper, [lower], directories, never)).rejects.toMatchObject({
    code: "unsupported",
  });
  put(lower, "acl", { mode: 0o755 });
  const run = spawnSync("setfattr", ["-n", "system.posix_acl_default", "-v", defaultAcl, join(lower, "acl")]);
  expect(run.status).toBe(0);
  await expect(inherit([lower], ["acl"])).rejects.toMatchObject({ code: "unsupported" });
});

test("names that are not UTF-8", async () => {
  const lower = await staging.root();
  const name = Buffer.concat([Buffer.from(`${lower}/`), Buffer.from([0xff, 0xe9])]);
  mkdirSync(name);
  chmodSync(name, 0o711);
  mkdirSync(Buffer.concat([Buffer.from(`${upper}/`), Buffer.from([0xff, 0xe9])]));
  await inheritNative(native(), upper, [lower], implied(["\xff\xe9"]), never);
  expect(readTree(upper).get("\xff\xe9")?.mode).toBe(0o711);
});

test("the event loop turns while many directories inherit", async () => {
  const lower = await staging.root();
  const paths = Array.from({ length: 4000 }, (_, index) => `d${index}`);
  for (const path of paths) put(upper, path, { mode: 0o755 });
  let turns = 0;
  let isOver = false;
  const count = (): void => {
    turns += 1;
    if (!isOver) setImmediate(count);
  };
  setImmediate(count);
  await inheritNative(native(), upper, [lower], implied(paths), never);
  isOver = true;
  expect(turns).toBeGreaterThan(10);
});

test("the portable engine leaves it, unless there is nothing to take after", async () => {
  await expect(inheritPortable(upper, ["/lower"], implied(["a"]))).rejects.toMatchObject({
    code: "unsupported",
  });
  await inheritPortable(upper, [], implied(["a"]));
  await inheritPortable(upper, ["/lower"], noDirectories);
});

test("many directories over many layers: others have their turn, and an abort ends it", async () => {
  const lowers: string[] = [];
  for (let index = 0; index < 40; index++) lowers.push(await staging.root());
  const paths = Array.from({ length: 3000 }, (_, index) => `d${index}`);
  for (const path of paths) mkdirSync(join(upper, path));
  const abort = new AbortController();
  let turns = 0;
  const timer = setInterval(() => {
    turns += 1;
    if (turns === 2) abort.abort();
  });
  await expect(inheritNative(native(), upper, lowers, implied(paths), abort.signal)).rejects.toMatchObject({
    code: "cancelled",
  });
  clearInterval(timer);
});
