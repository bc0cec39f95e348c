// An image with one of everything that layers can hold, for comparing what two unpackers make of it.

import { gzipSync } from "node:zlib";
import { dir, file, hardlink, symlink, tar, tarGz } from "../fakes/tar.ts";
import { packZstd } from "../fakes/zstd.ts";
import { layerTypes, type TestLayer } from "./images.ts";

/** cap_net_bind_service=ep, version 2, as setcap writes it. */
const capability = Buffer.from("0100000200040000000000000000000000000000", "hex");

/** Implicit directories, whose times depend on when things were put into them. */
export const implicit: ReadonlySet<string> = new Set([
  "implied",
  "implied/deep",
  "lower",
  "lower/owned",
  "base-implied",
  "gone",
  "usr-lib",
]);

export function oddLayers(): TestLayer[] {
  return [base(), changes(), multiMember(), plain(), zstd(), empty(), last()];
}

function base(): TestLayer {
  const long = `long/${"n".repeat(90)}/${"m".repeat(120)}`;
  return {
    bytes: tarGz([
      dir("."),
      dir("bin", { mode: 0o755, mtime: 1_500_000_000 }),
      file("bin/tool", "x".repeat(3000), { mode: 0o4755 }),
      file("bin/group", "g", { mode: 0o2711, gid: 7 }),
      hardlink("bin/tool-again", "bin/tool", { mode: 0o755 }),
      file("bin/cap", "c", { mode: 0o755, pax: { "SCHILY.xattr.security.capability": capability } }),
      file("bin/user", "u", { pax: { "SCHILY.xattr.user.note": "hello", "SCHILY.xattr.user.empty": "" } }),
      file("bin/trusted", "t", { pax: { "SCHILY.xattr.trusted.overlay.opaque": "y" } }),
      dir("tmp", { mode: 0o1777 }),
      symlink("link", "bin/tool", { uid: 5, gid: 6, mtime: 1_111_111_111 }),
      symlink("absolute", "/bin"),
      file("absolute/through", "through a link"),
      symlink("dangling", "nowhere/at/all"),
      dir("dev"),
      { name: "dev/null", type: "3", mode: 0o666, major: 1, minor: 3 },
      { name: "dev/disk", type: "4", mode: 0o660, gid: 6, major: 8, minor: 17 },
      { name: "dev/pipe", type: "6", mode: 0o640 },
      dir("owners"),
      file("owners/large", "", { uid: 3_000_000, gid: 4_000_000 }),
      file("owners/pax", "", { pax: { uid: "2147483647", gid: "123456789" } }),
      file("times", "", { pax: { mtime: "1234567890.123456789", atime: "1234567891.5" } }),
      file("old", "", { mtime: 0 }),
      dir("long"),
      dir(`long/${"n".repeat(90)}`),
      file(long, "a name over 255 bytes in all"),
      file(Buffer.from("latin-\xe9\xff", "latin1"), "not UTF-8"),
      file("base-implied/file", "its parent is not named"),
      dir("lower", { mode: 0o711, uid: 42, gid: 43, mtime: 1_000_000_000 }),
      dir("lower/owned", {
        mode: 0o2750,
        uid: 44,
        gid: 45,
        mtime: 1_000_000_001,
        pax: { "SCHILY.xattr.user.dir": "kept" },
      }),
      file("lower/owned/file", "below"),
      dir("gone"),
      file("gone/file", "hidden later"),
      file("removed", "hidden later"),
      dir("opaque"),
      file("opaque/below", "hidden later"),
      dir("becomes-file"),
      file("becomes-file/x"),
      file("becomes-dir", "x"),
      file("twice", "first"),
      file("twice", "second", { mode: 0o600 }),
      symlink("usr-lib", "bin"),
    ]),
  };
}

function changes(): TestLayer {
  return {
    bytes: tarGz([
      file("gone/.wh.file"),
      file(".wh.removed", "", { uid: 12, gid: 13 }),
      dir("opaque"),
      file("opaque/.wh..wh..opq"),
      file("opaque/new", "on top"),
      file("becomes-file", "now a file"),
      dir("becomes-dir"),
      file("becomes-dir/inside", "now a directory"),
      file("lower/owned/added", "its parents are implied"),
      file("implied/deep/file", "nothing like it below"),
      file("usr-lib/new", "hides the link below"),
      file(".wh.never-there"),
      dir("bin", { mode: 0o700, uid: 9, mtime: 1_700_000_000 }),
      file("../../escape", "clamped at the root"),
      file("/rooted", "absolute"),
      symlink("up", "../../.."),
      file("up/landed", "still inside"),
      hardlink("rooted-again", "/rooted"),
      symlink("symlink-target", "rooted"),
      hardlink("symlink-again", "symlink-target", { mode: 0o777 }),
    ]),
  };
}

function multiMember(): TestLayer {
  const stream = tar([
    dir("multi"),
    file("multi/a", "a".repeat(100_000)),
    file("multi/b", "b".repeat(70_000)),
  ]);
  const cut = [0, 700, 80_000, stream.length];
  const members = cut.slice(1).map((end, index) => gzipSync(stream.subarray(cut[index], end)));
  return { bytes: Buffer.concat(members), tar: stream };
}

function plain(): TestLayer {
  const stream = tar([dir("plain"), file("plain/file", "not compressed")]);
  return { bytes: stream, tar: stream, mediaType: layerTypes.ociPlain };
}

function zstd(): TestLayer {
  const stream = tar([dir("zstd"), file("zstd/file", "z".repeat(300_000))]);
  return { bytes: packZstd(stream), tar: stream, mediaType: layerTypes.ociZstd };
}

function empty(): TestLayer {
  return { bytes: gzipSync(tar([])), tar: tar([]) };
}

/** Trailing bytes after the archive's end belong to the diffID. */
function last(): TestLayer {
  const stream = Buffer.concat([tar([file("last", "the end")]), Buffer.alloc(10_240, 7)]);
  return { bytes: gzipSync(stream), tar: stream };
}
