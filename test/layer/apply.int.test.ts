// Entries become the tree that containerd makes of them, whiteouts in the form that overlayfs reads; and nothing of a
// layer ever lands outside of its root.

import { lstatSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { serialize } from "node:v8";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { implicitOnes } from "../../src/layer/directories.ts";
import type { WholeLayer } from "../../src/layer/unpack.ts";
import {
  dir,
  file,
  gnuLong,
  gnuMagic,
  hardlink,
  paxHeader,
  record,
  symlink,
  type TarEntry,
  tar,
} from "../fakes/tar.ts";
import { differences, type Node, readTree } from "../harness/tree.ts";
import { Staging } from "./staging.ts";

let staging: Staging;

beforeEach(async () => {
  staging = await Staging.make();
});

afterEach(async () => {
  await staging[Symbol.asyncDispose]();
});

const isWhiteout = (node: Node | undefined): boolean => node?.kind === "char" && node.device === 0n;
const opaque = "trusted.overlay.opaque=0x79";
const seconds = (node: Node | undefined): bigint => (node?.mtimeNs ?? 0n) / 1_000_000_000n;

const implicitOf = ({ implicitDirectories }: WholeLayer) => [...implicitOnes(implicitDirectories)];

async function failure(
  entries: readonly TarEntry[],
  base = false,
): Promise<{ code: string; message: string }> {
  const outcome = await staging.tree(entries, base).catch((error: unknown) => error);
  expect(outcome).toMatchObject({ name: "PullError" });
  return outcome as { code: string; message: string };
}

describe("attributes", () => {
  test("owner, mode with setuid, nanosecond times and content are what the header says", async () => {
    const tree = await staging.tree([
      dir("d", { mode: 0o2751, uid: 7, gid: 8, mtime: 1_000_000_000 }),
      file("d/f", "content", {
        mode: 0o4755,
        uid: 3_000_000,
        gid: 4_294_967_294,
        pax: { mtime: "1234567890.123456789" },
      }),
      symlink("d/l", "f", { uid: 5, gid: 6, mtime: 1_111_111_111 }),
      file("d/empty", "", { mode: 0, mtime: 0 }),
      file("d/sticky", "", { mode: 0o1666 }),
    ]);
    expect(tree.get("d")).toMatchObject({ mode: 0o2751, owner: "7:8", mtimeNs: 1_000_000_000_000_000_000n });
    expect(tree.get("d/f")).toMatchObject({
      mode: 0o4755,
      owner: "3000000:4294967294",
      size: 7n,
      mtimeNs: 1_234_567_890_123_456_789n,
    });
    expect(tree.get("d/l")).toMatchObject({ target: "f", owner: "5:6", mtimeNs: 1_111_111_111_000_000_000n });
    expect(tree.get("d/empty")).toMatchObject({ mode: 0, mtimeNs: 0n });
    expect(tree.get("d/sticky")).toMatchObject({ mode: 0o1666 });
  });

  test("times that the kernel's 64-bit nanoseconds cannot hold become 1970", async () => {
    const tree = await staging.tree([
      file("before", "", { pax: { mtime: "-0.5" } }),
      file("after", "", { pax: { mtime: "9223372037" } }),
      file("last", "", { pax: { mtime: "4294967297.25" } }),
    ]);
    expect(tree.get("before")?.mtimeNs).toBe(0n);
    expect(tree.get("after")?.mtimeNs).toBe(0n);
    expect(tree.get("last")?.mtimeNs).toBe(4_294_967_297_250_000_000n);
  });

  test("atime is never before mtime", async () => {
    const { root } = await staging.unpack({
      bytes: tar([
        file("early", "", { mtime: 2000, pax: { atime: "1000" } }),
        file("late", "", { mtime: 2000, pax: { atime: "3000.5" } }),
      ]),
    });
    expect(lstatSync(join(root, "early"), { bigint: true }).atimeNs).toBe(2_000_000_000_000n);
    expect(lstatSync(join(root, "late"), { bigint: true }).atimeNs).toBe(3_000_500_000_000n);
  });

  test("extended attributes are set, trusted ones are not, and special files do without user ones", async () => {
    const capability = Buffer.from("0100000200040000000000000000000000000000", "hex");
    const tree = await staging.tree([
      file("cap", "x", { uid: 9, mode: 0o755, pax: { "SCHILY.xattr.security.capability": capability } }),
      file("user", "", {
        pax: { "SCHILY.xattr.user.note": Buffer.from([0, 255, 61, 10]), "SCHILY.xattr.user.empty": "" },
      }),
      dir("d", { pax: { "SCHILY.xattr.user.d": "1", "SCHILY.xattr.trusted.overlay.opaque": "y" } }),
      { name: "fifo", type: "6", pax: { "SCHILY.xattr.user.note": "x" } },
      symlink("link", "cap", { pax: { "SCHILY.xattr.user.note": "x" } }),
    ]);
    expect(tree.get("cap")).toMatchObject({
      owner: "9:0",
      xattrs: `security.capability=0x${capability.toString("hex")}`,
    });
    expect(tree.get("user")?.xattrs).toMatch(/^user\.empty(=0x)? user\.note=0x00ff3d0a$/);
    expect(tree.get("d")?.xattrs).toBe("user.d=0x31");
    expect(tree.get("fifo")?.xattrs).toBe("");
    expect(tree.get("link")?.xattrs).toBe("");
  });

  test("an attribute with a name that no kernel takes fails the layer", async () => {
    const bad = await failure([file("f", "", { pax: { [`SCHILY.xattr.user.${"k".repeat(300)}`]: "v" } })]);
    expect(bad.code).toBe("corrupt");
  });

  test("directories get their own times whatever is put into them later, and merge with a second naming", async () => {
    const tree = await staging.tree([
      dir("a", { mtime: 1000 }),
      dir("a/b", { mtime: 2000, mode: 0o700 }),
      file("a/b/c"),
      dir("a/b", { mtime: 3000, mode: 0o711, uid: 4 }),
      file("a/later"),
      hardlink("a/b/again", "a/later"),
    ]);
    expect(seconds(tree.get("a"))).toBe(1000n);
    expect(seconds(tree.get("a/b"))).toBe(3000n);
    expect(tree.get("a/b")).toMatchObject({ mode: 0o711, owner: "4:0" });
    expect(tree.has("a/b/c")).toBe(true);
  });

  test("more directories than are kept open get their times too", async () => {
    const names = Array.from({ length: 700 }, (_, index) => `top/d${index}`);
    const entries = names.flatMap((name, index) => [
      dir(name, { mtime: 1000 + index }),
      dir(`${name}/inner`, { mtime: 5 }),
      file(`${name}/inner/f`),
    ]);
    const tree = await staging.tree([dir("top", { mtime: 77 }), ...entries]);
    expect(seconds(tree.get("top"))).toBe(77n);
    for (const [index, name] of names.entries()) {
      expect(seconds(tree.get(name))).toBe(BigInt(1000 + index));
      expect(seconds(tree.get(`${name}/inner`))).toBe(5n);
    }
  });

  test("devices and fifos", async () => {
    const tree = await staging.tree([
      { name: "null", type: "3", mode: 0o666, major: 1, minor: 3 },
      { name: "disk", type: "4", mode: 0o660, gid: 6, major: 259, minor: 70_000 },
      { name: "pipe", type: "6", mode: 0o4640 },
    ]);
    expect(tree.get("null")).toMatchObject({ kind: "char", mode: 0o666, device: 0x103n });
    expect(tree.get("disk")).toMatchObject({ kind: "block", owner: "0:6" });
    expect(lstatSync("/dev/null", { bigint: true }).rdev).toBe(tree.get("null")?.device);
    expect(tree.get("pipe")).toMatchObject({ kind: "fifo", mode: 0o4640 });
  });
});

describe("what is left to containerd", () => {
  test.each<[string, TarEntry[]]>([
    ["an owner of -1, which is none", [file("f", "", { pax: { uid: "-1" } })]],
    ["a group of 2^32 - 1", [dir("d", { gid: 2 ** 32 - 1 })]],
    ["device 0:0, which is a whiteout under another name", [{ name: "c", type: "3" }]],
    ["a global header in a folder, which it makes", [{ ...paxHeader("g", ""), name: "made/g" }]],
    [
      "a global header in the place of a file, which it removes",
      [file("g"), { ...paxHeader("g", ""), name: "./g" }],
    ],
    ["a global header whose own record names the file", [file("g"), paxHeader("g", record("path", "g"))]],
    ["a global header that is a whiteout", [{ ...paxHeader("g", ""), name: ".wh.f" }]],
  ])("%s", async (_what, entries) => {
    for (const base of [true, false])
      expect(await failure(entries, base)).toMatchObject({ code: "unsupported" });
  });

  test("no owner that is far away, no other device, and no global header at the root", async () => {
    const tree = await staging.tree([
      { ...paxHeader("g", record("comment", "x")), name: "pax_global_header" },
      paxHeader("g", record("path", "/")),
      file("f", "", { uid: 2 ** 32 - 2 }),
      { name: "c", type: "3", major: 0, minor: 1 },
      { name: "b", type: "4" },
    ]);
    expect([...tree.keys()]).toEqual(["", "b", "c", "f"]);
  });
});

describe("names", () => {
  test("long ones of every format, and ones that are not UTF-8, are exact", async () => {
    const long = `l/${"n".repeat(200)}/${"m".repeat(255)}`;
    const target = "t/".repeat(300);
    const tree = await staging.tree([
      file(long, "pax"),
      gnuLong("L", `g/${"n".repeat(200)}`),
      file("short", "gnu"),
      gnuLong("K", target),
      symlink("link", "short"),
      file("named", "prefix", { raw: { 345: "some/prefix" } }),
      file("old", "gnu without prefix", { raw: gnuMagic }),
      file(Buffer.from("latin-\xe9\xff", "latin1"), "bytes"),
    ]);
    expect([...tree.keys()].filter((path) => tree.get(path)?.kind === "file").sort()).toEqual(
      [long, `g/${"n".repeat(200)}`, "some/prefix/named", "old", "latin-\xe9\xff"].sort(),
    );
    expect(tree.get("link")?.target).toBe(target);
  });

  test("components and paths that are too long fail the layer", async () => {
    expect(await failure([file("n".repeat(256))])).toMatchObject({
      code: "corrupt",
      message: expect.stringContaining("ENAMETOOLONG"),
    });
    const parts = Array.from({ length: 20 }, () => "p".repeat(250));
    expect(await failure([file(parts.join("/"))])).toMatchObject({ code: "corrupt" });
    // Each name is short enough, but together with the link they lead deeper than a path can say.
    const half = parts.slice(0, 10).join("/");
    expect(
      await failure([symlink("s", half), file("s/x"), symlink("t", `s/${half}`), file("t/x")]),
    ).toMatchObject({ code: "corrupt" });
  });

  test("the root itself is left alone", async () => {
    const { root } = await staging.unpack({
      bytes: tar([
        dir(".", { mode: 0o700, uid: 5, mtime: 1 }),
        dir("./", { mode: 0o711 }),
        file("a/..", "x"),
      ]),
    });
    expect(readTree(root).get("")).toMatchObject({ mode: 0o755, owner: "0:0" });
  });
});

describe("replacing", () => {
  test("anything replaces anything but a directory, which only merges with another", async () => {
    const kinds: Record<string, (name: string) => TarEntry[]> = {
      file: (name) => [file(name, "content")],
      directory: (name) => [dir(name), file(`${name}/inside`)],
      symlink: (name) => [symlink(name, "nowhere")],
      fifo: (name) => [{ name, type: "6" }],
      hardlink: (name) => [hardlink(name, "target")],
    };
    for (const [before, make] of Object.entries(kinds)) {
      for (const [after, remake] of Object.entries(kinds)) {
        const entries = [file("target", "t"), ...make("x"), ...remake("x")];
        if (before === "directory" && after !== "directory") {
          expect(await failure(entries), after).toMatchObject({ code: "unsupported" });
          continue;
        }
        const tree = await staging.tree(entries);
        expect(tree.get("x")?.kind, `${before} then ${after}`).toBe(after === "hardlink" ? "file" : after);
        expect(tree.has("x/inside")).toBe(after === "directory");
      }
    }
    const merged = await staging.tree([dir("x"), file("x/1"), dir("x"), file("x/2")]);
    expect([...merged.keys()]).toEqual(["", "x", "x/1", "x/2"]);
  });

  test("a link in a link's place: entries go where the path leads at that time", async () => {
    const tree = await staging.tree([
      dir("one"),
      dir("two"),
      symlink("l", "one"),
      file("l/first"),
      symlink("l", "two"),
      file("l/second"),
    ]);
    expect([...tree.keys()]).toEqual(["", "l", "one", "one/first", "two", "two/second"]);
  });

  test("an implicit directory, and a link that a named directory was reached through, stay or are left", async () => {
    expect(await failure([file("d/f"), file("d", "now a file")])).toMatchObject({ code: "unsupported" });
    const named = [dir("d"), symlink("l", "d"), dir("l/named", { mtime: 5 })];
    expect(seconds((await staging.tree(named)).get("d/named"))).toBe(5n);
    expect(await failure([...named, symlink("l", "elsewhere")])).toMatchObject({ code: "unsupported" });
  });
});

describe("links", () => {
  test("hard links share an inode; a link's own attributes are applied to it", async () => {
    const tree = await staging.tree([
      file("a", "x", { mode: 0o755 }),
      hardlink("b", "a", { mode: 0o4755, uid: 3, mtime: 50 }),
      symlink("s", "a"),
      hardlink("s2", "s", { mode: 0o777, uid: 4 }),
      dir("d"),
      symlink("through", "d"),
      file("d/f", "y"),
      hardlink("e", "through/f"),
      hardlink("g", "/./a", { mode: 0o4755, uid: 3 }),
    ]);
    expect(tree.get("b")).toMatchObject({ linkedWith: "a", mode: 0o4755, owner: "3:0" });
    expect(tree.get("s2")).toMatchObject({ kind: "symlink", linkedWith: "s", owner: "4:0" });
    expect(tree.get("e")).toMatchObject({ linkedWith: "d/f" });
    expect(tree.get("g")).toMatchObject({ linkedWith: "a" });
  });

  test("a hard link to what this layer does not have, or to itself, fails the layer", async () => {
    expect(await failure([hardlink("b", "missing")])).toMatchObject({ code: "corrupt" });
    expect(await failure([hardlink("b", "no/such/dir")])).toMatchObject({ code: "corrupt" });
    expect(await failure([file("a"), hardlink("a", "a")])).toMatchObject({ code: "corrupt" });
    expect(await failure([dir("d"), hardlink("e", "d")])).toMatchObject({ code: "corrupt" });
  });

  test.each(["d/../a", "../a", "l/", "l/.", "a/..", "/"])(
    "a hard link to %s, which containerd reads in its own way, is left to it",
    async (target) => {
      const entries = [file("a"), dir("d"), symlink("l", "a"), hardlink("h", target)];
      expect(await failure(entries)).toMatchObject({ code: "unsupported" });
    },
  );

  test.each<[string, TarEntry[], boolean]>([
    ["up from its own folder", [symlink("d/l", "../e"), file("d/l/f")], true],
    [
      "up from its own folder, to another link",
      [symlink("e", "x"), symlink("d/l", "../e"), file("d/l/f")],
      true,
    ],
    ["to another link, which goes up", [symlink("d/x", "../e"), symlink("l", "d/x"), file("l/f")], false],
    ["up after another link", [symlink("e", "d"), symlink("d/l", "../x"), file("e/l/f")], false],
    ["down and up", [symlink("l", "d/../e"), file("l/f")], false],
    ["up, down and up", [symlink("d/l", "../e/.."), file("d/l/f")], false],
  ])("a parent that is a link %s", async (_where, entries, isTaken) => {
    if (isTaken) expect([...(await staging.tree(entries)).keys()].join()).toMatch(/[ex]\/f/);
    else expect(await failure(entries)).toMatchObject({ code: "unsupported" });
  });

  test("parents through links: relative, absolute, dangling, chained, and loops fail", async () => {
    const tree = await staging.tree([
      symlink("abs", "/one/two"),
      file("abs/f", "made through a dangling link"),
      symlink("one/two/up", "../../../../three"),
      file("one/two/up/g", "clamped"),
      symlink("c1", "c2"),
      symlink("c2", "c3"),
      symlink("c3", "one"),
      file("c1/h"),
    ]);
    expect([...tree.keys()].filter((path) => tree.get(path)?.kind === "file").sort()).toEqual([
      "one/h",
      "one/two/f",
      "three/g",
    ]);
    expect(await failure([symlink("a", "b"), symlink("b", "a"), file("a/x")])).toMatchObject({
      code: "corrupt",
    });
    expect(await failure([symlink("a", "./a"), file("a/x")])).toMatchObject({ code: "corrupt" });
    expect(await failure([file("f"), file("f/x")])).toMatchObject({ code: "corrupt" });
  });
});

describe("implicit directories", () => {
  test("are 0755 and reported, parents first, with whether they were named later", async () => {
    const { root, layer } = await staging.unpack({
      bytes: tar([file("a/b/c/f"), dir("a/b", { mode: 0o700 }), dir("n"), symlink("l", "m"), file("l/k/f")]),
    });
    expect(implicitOf(layer).toSorted((x, y) => (x.path < y.path ? -1 : 1))).toEqual([
      { path: "a", named: false },
      { path: "a/b", named: true },
      { path: "a/b/c", named: false },
      { path: "m", named: false },
      { path: "m/k", named: false },
    ]);
    const order = implicitOf(layer).map(({ path }) => path);
    expect(order.indexOf("a")).toBeLessThan(order.indexOf("a/b"));
    expect(readTree(root).get("a")).toMatchObject({ mode: 0o755, owner: "0:0" });
    expect(readTree(root).get("a/b")).toMatchObject({ mode: 0o700 });
  });

  test("deep ones leave the worker as names, not as paths, which are hundreds of times as long", async () => {
    const deep = "d/".repeat(500);
    const entries = Array.from({ length: 4 }, (_, index) => file(`${index}/${deep}f`));
    const { layer } = await staging.unpack({ bytes: tar(entries) });
    const found = implicitOf(layer);
    expect(found).toHaveLength(4 * 501);
    expect(found.at(-1)?.path).toHaveLength("0/".length + deep.length - 1);
    expect(serialize(layer.implicitDirectories).length).toBeLessThan(10 * found.length);
  });

  test("do not take a setgid bit from above", async () => {
    const tree = await staging.tree([dir("g", { mode: 0o2755, gid: 50 }), file("g/implied/f")]);
    expect(tree.get("g/implied")).toMatchObject({ mode: 0o755 });
  });
});

describe("whiteouts above other layers", () => {
  test("become device 0:0 with the header's owner, and need nothing below", async () => {
    const tree = await staging.tree([file("d/.wh.gone", "ignored content", { uid: 12, gid: 13 })]);
    expect(isWhiteout(tree.get("d/gone"))).toBe(true);
    expect(tree.get("d/gone")).toMatchObject({ mode: 0, owner: "12:13" });
    expect([...tree.keys()]).toEqual(["", "d", "d/gone"]);
  });

  test("opaque ones mark their directory, wherever they stand", async () => {
    const tree = await staging.tree([
      dir("d"),
      file("d/x"),
      file("d/.wh..wh..opq"),
      file("d/y"),
      file(".wh..wh..opq"),
    ]);
    expect(tree.get("d")?.xattrs).toBe(opaque);
    expect(tree.get("")?.xattrs).toBe(opaque);
    expect([...tree.keys()]).toEqual(["", "d", "d/x", "d/y"]);
  });

  test("beside an entry of the same layer they leave it alone; a directory becomes opaque (spec, unlike containerd)", async () => {
    const tree = await staging.tree([
      file("f", "stays"),
      file(".wh.f"),
      dir("d"),
      file("d/in"),
      file(".wh.d"),
      symlink("l", "f"),
      file(".wh.l"),
    ]);
    expect(tree.get("f")).toMatchObject({ kind: "file", size: 5n });
    expect(tree.get("d")).toMatchObject({ kind: "directory", xattrs: opaque });
    expect(tree.has("d/in")).toBe(true);
    expect(tree.get("l")?.kind).toBe("symlink");
    expect(await failure([file(".wh.twice"), file(".wh.twice")])).toMatchObject({ code: "unsupported" });
  });

  test("before an entry of the same name: a directory, named or implied, is opaque; others replace it", async () => {
    const { root, layer } = await staging.unpack({
      bytes: tar([
        file(".wh.named"),
        dir("named", { mode: 0o700 }),
        file("named/x"),
        file(".wh.implied"),
        file("implied/deep/x"),
        file(".wh.file"),
        file("file", "new"),
        file(".wh.link"),
        symlink("link", "file"),
      ]),
    });
    const tree = readTree(root);
    expect(tree.get("named")).toMatchObject({ mode: 0o700, xattrs: opaque });
    expect(tree.get("implied")).toMatchObject({ kind: "directory", xattrs: opaque });
    expect(tree.get("implied/deep")?.xattrs).toBe("");
    expect(tree.get("file")).toMatchObject({ kind: "file", size: 3n });
    expect(tree.get("link")?.kind).toBe("symlink");
    // What is hidden has nothing to pass on.
    expect(implicitOf(layer)).toEqual([{ path: "implied/deep", named: false }]);
  });

  test("AUFS leftovers become what containerd makes of them", async () => {
    const tree = await staging.tree([file(".wh..wh.plnk"), file(".wh..wh.aufs")]);
    expect(isWhiteout(tree.get(".wh.plnk"))).toBe(true);
    expect(isWhiteout(tree.get(".wh.aufs"))).toBe(true);
  });

  test.each([".wh.", ".wh..", ".wh...", "d/.wh."])("%s is no name for one", async (name) => {
    for (const base of [false, true]) {
      expect(await failure([file(name)], base)).toMatchObject({
        code: "corrupt",
        message: expect.stringContaining("invalid whiteout name"),
      });
    }
  });
});

describe("whiteouts in the bottom layer", () => {
  test("remove what this layer wrote there, and leave nothing behind", async () => {
    const tree = await staging.tree(
      [
        file("f"),
        dir("d"),
        symlink("d/l", "x"),
        file(".wh.f"),
        file("d/.wh.l"),
        file(".wh.never"),
        file("kept"),
      ],
      true,
    );
    expect([...tree.keys()]).toEqual(["", "d", "kept"]);
    expect(await failure([dir("d"), file(".wh.d")], true)).toMatchObject({ code: "unsupported" });
  });

  test("opaque ones find nothing to remove, or are left to containerd", async () => {
    const entries = [dir("d"), dir("d/named"), file("d/named/f"), file("d/f"), file("d/.wh..wh..opq")];
    const tree = await staging.tree([...entries, file("e/implied/x")], true);
    expect([...tree.keys()]).toEqual([
      "",
      "d",
      "d/f",
      "d/named",
      "d/named/f",
      "e",
      "e/implied",
      "e/implied/x",
    ]);
    expect(tree.get("d")?.xattrs).toBe("");
    const implying = [file("d/named/implied/x"), ...entries];
    expect(await failure(implying, true)).toMatchObject({ code: "unsupported" });
  });

  test("a directory after its own whiteout is not opaque: there is nothing below to hide", async () => {
    const tree = await staging.tree([file("d"), file(".wh.d"), dir("d"), file("d/x")], true);
    expect(tree.get("d")).toMatchObject({ kind: "directory", xattrs: "" });
  });
});

describe("nothing leaves the root", () => {
  const hostile: Record<string, TarEntry[]> = {
    "names with ..": [
      file("../canary", "x"),
      file("../../canary", "x"),
      file("a/../../other/f", "x"),
      file("/../canary", "x"),
    ],
    "absolute names": [file("/canary", "x"), dir("/canary2")],
    "a link up": [symlink("up", ".."), file("up/canary", "x"), dir("up/canary2", { mode: 0o777 })],
    "a link to the outside": [symlink("out", "OUTSIDE"), file("out/canary", "x"), file("out/new", "x")],
    "a chain of links": [
      symlink("a", ".."),
      symlink("a/b", "../.."),
      symlink("c", "a/b"),
      file("b/canary", "x"),
    ],
    "writing through a link": [symlink("canary", "OUTSIDE/canary"), file("canary", "overwritten")],
    "a directory over a link": [
      symlink("canary", "OUTSIDE"),
      dir("canary", { mode: 0o777, uid: 66 }),
      file("canary/canary", "x"),
    ],
    "attributes through a link": [
      symlink("canary", "OUTSIDE/canary"),
      hardlink("again", "canary", { mode: 0o777, uid: 66, mtime: 5 }),
    ],
    whiteouts: [
      file("../.wh.canary"),
      symlink("up", "OUTSIDE"),
      file("up/.wh.canary"),
      file("up/.wh..wh..opq"),
    ],
    "a device through a link": [
      symlink("out", "OUTSIDE"),
      { name: "out/canary", type: "3", major: 1, minor: 3 },
    ],
  };
  const failing: Record<string, TarEntry[]> = {
    "hard link to an absolute path": [hardlink("stolen", "OUTSIDE/canary")],
    "a chain of links that climbs": [
      symlink("a", ".."),
      symlink("a/b", "../.."),
      symlink("c", "a/b/.."),
      file("c/canary", "x"),
    ],
    "hard link by ..": [hardlink("stolen", "../canary")],
    "hard link through a link": [symlink("out", "OUTSIDE"), hardlink("stolen", "out/canary")],
  };

  /** The folder around the root, with a canary in it. */
  function outside(): string {
    const folder = join(staging.folder, "outside");
    mkdirSync(folder);
    writeFileSync(join(folder, "canary"), "alive");
    writeFileSync(join(staging.folder, "canary"), "alive");
    return folder;
  }

  function aim(entries: readonly TarEntry[], folder: string): TarEntry[] {
    return entries.map((entry) => ({
      ...entry,
      ...(entry.linkName !== undefined && { linkName: entry.linkName.replace("OUTSIDE", folder) }),
    }));
  }

  /** Everything but the layers' roots and spools. */
  function surroundings(): Map<string, Node> {
    return new Map([...readTree(staging.folder)].filter(([path]) => !/^(root|spool)-/.test(path)));
  }

  test.each([false, true])("by any of the known ways (bottom layer: %s)", async (base) => {
    const folder = outside();
    const before = surroundings();
    for (const [name, entries] of Object.entries(hostile)) {
      await staging.unpack({ bytes: tar(aim(entries, folder)), base });
      expect(differences(before, surroundings(), new Set([""])), name).toEqual([]);
    }
    for (const [name, entries] of Object.entries(failing)) {
      expect(["corrupt", "unsupported"]).toContain((await failure(aim(entries, folder), base)).code);
      expect(differences(before, surroundings(), new Set([""])), name).toEqual([]);
    }
    expect(readFileSync(join(folder, "canary"), "utf8")).toBe("alive");
  });
});
