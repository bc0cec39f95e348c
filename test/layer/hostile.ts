// Layers that nobody means well with, each with the reason why it is here. Used on both engines and on real containerd.
//
// `outside` is a folder beside the root that must not change, by its absolute path.

import { gzipSync } from "node:zlib";
import { gzipMember } from "../fakes/gzip.ts";
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
import { packZstd } from "../fakes/zstd.ts";

export interface Hostile {
  readonly name: string;
  readonly why: string;
  /** What becomes of it with the native engine: refused with a code, or a tree. */
  readonly outcome: "tree" | "corrupt" | "unsupported" | "exhausted";
  readonly entries?: (outside: string) => readonly TarEntry[];
  /**
   * The blob and its stream, where it is not simply an archive. It is given a harmless archive that no other entry has:
   * of a layer that is there already nobody looks at the blob.
   */
  readonly blob?: (innocent: Buffer) => {
    readonly bytes: Buffer;
    readonly tar: Buffer;
    readonly mediaType?: string;
  };
  /** A limit of ours, which containerd does not have. */
  readonly oursAlone?: true;
  /** containerd does not notice, so the image is pulled all the same: by containerd. */
  readonly lenient?: true;
}

const escapes: readonly Hostile[] = [
  {
    name: "dot dot",
    why: "a name climbs out; it is clamped at the root",
    outcome: "tree",
    entries: () => [file("../../../../../../../../tmp-escape", "x"), file("a/../../b", "x"), dir("..")],
  },
  {
    name: "absolute names",
    why: "a name is a path of the host; it is taken below the root",
    outcome: "tree",
    entries: (outside) => [file(`${outside}/file`, "x"), dir(`${outside}/made`)],
  },
  {
    name: "through an absolute link",
    why: "a link to a folder of the host, then a file through it",
    outcome: "tree",
    entries: (outside) => [symlink("door", outside), file("door/planted", "x")],
  },
  {
    name: "through a climbing link",
    why: "a relative link that climbs above the root, then a file and a folder through it",
    outcome: "tree",
    entries: () => [symlink("up", "../../../../../../.."), file("up/etc/planted", "x"), dir("up/made")],
  },
  {
    name: "through links in turn",
    why: "each link is harmless, together they climb; containerd has a way of its own to read them",
    outcome: "unsupported",
    entries: () => [
      dir("a"),
      symlink("a/b", ".."),
      symlink("c", "a/b/.."),
      symlink("d", "c/../../.."),
      file("d/planted", "x"),
    ],
  },
  {
    name: "a link instead of a folder",
    why: "a folder is replaced by a link after something was put into it; left to containerd",
    outcome: "unsupported",
    entries: (outside) => [dir("d"), file("d/one", "1"), symlink("d", outside), file("d/two", "2")],
  },
  {
    name: "a folder over a link and back",
    why: "the same name is link, folder, link; containerd sets the folder's times on what is there in the end",
    outcome: "unsupported",
    entries: (outside) => [
      symlink("x", outside),
      dir("x"),
      file("x/in", "1"),
      symlink("x", outside),
      file("x/again", "2"),
    ],
  },
  {
    name: "hard link to a path of the host",
    why: "a hard link's target is inside the root whatever it says; there is nothing there",
    outcome: "corrupt",
    entries: (outside) => [hardlink("stolen", `${outside}/file`)],
  },
  {
    name: "hard link that climbs",
    why: "the same with dots, which containerd reads in its own way",
    outcome: "unsupported",
    entries: () => [hardlink("stolen", "../../../../../../../etc/passwd")],
  },
  {
    name: "hard link through a link",
    why: "a target's parent is a link out of the root",
    outcome: "corrupt",
    entries: (outside) => [symlink("door", outside), hardlink("stolen", "door/file")],
  },
  {
    name: "hard link to a link, then written through",
    why: "a hard link to a symbolic link is that link, and a file in its place replaces it",
    outcome: "tree",
    entries: (outside) => [
      symlink("l", `${outside}/file`),
      hardlink("h", "l"),
      file("h", "replaces the name"),
    ],
  },
  {
    name: "times of a link's target",
    why: "owner, mode and times of a link are its own, never its target's",
    outcome: "tree",
    entries: (outside) => [symlink("l", `${outside}/file`, { mode: 0o000, uid: 12, mtime: 1 })],
  },
  {
    name: "disk device",
    why: "a device node is made, as containerd does, and nothing is written through it",
    outcome: "tree",
    entries: () => [
      { name: "disk", type: "4", mode: 0o666, major: 8, minor: 0 },
      file("disk", "a file takes its place"),
      { name: "null", type: "3", mode: 0o666, major: 1, minor: 3 },
    ],
  },
  {
    name: "below a file",
    why: "a path goes through a regular file",
    outcome: "corrupt",
    entries: () => [file("f", "x"), file("f/below", "x")],
  },
  {
    name: "link loop",
    why: "a parent that is a link to itself",
    outcome: "corrupt",
    entries: () => [symlink("loop", "loop"), file("loop/x", "x")],
  },
];

const whiteouts: readonly Hostile[] = [
  ...[".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..."].map(
    (name): Hostile => ({
      name: `whiteout ${name}`,
      why: "it would name its own folder or the one above",
      outcome: "corrupt",
      entries: () => [dir("d"), file(name)],
    }),
  ),
  {
    name: "whiteout through a link",
    why: "the folder of a whiteout is a link out of the root",
    outcome: "tree",
    entries: (outside) => [symlink("door", outside), file("door/.wh.file"), file("door/.wh..wh..opq")],
  },
  {
    name: "whiteout that climbs",
    why: "a whiteout's folder climbs; it is clamped",
    outcome: "tree",
    entries: () => [file("../../../.wh.etc")],
  },
  {
    name: "whiteout with content",
    why: "its bytes are skipped",
    outcome: "tree",
    entries: () => [file(".wh.x", "some content"), file("after", "x")],
  },
  {
    name: "whiteout that is a folder, a link, a device",
    why: "the name says what it is, not the type",
    outcome: "tree",
    entries: () => [dir(".wh.a"), symlink(".wh.b", "/etc"), { name: ".wh.c", type: "3", major: 1, minor: 3 }],
  },
];

const metadata: readonly Hostile[] = [
  {
    name: "duplicates",
    why: "the last of a name counts, and folders grow together",
    outcome: "tree",
    entries: () => [file("f", "1"), symlink("f", "x"), file("f", "22"), dir("f"), file("f/x"), dir("f")],
  },
  {
    name: "a file instead of a folder",
    why: "in the end containerd sets the folder's times on the file",
    outcome: "unsupported",
    entries: () => [dir("f", { mtime: 5 }), file("f/x"), file("f", "3")],
  },
  {
    name: "a file instead of a folder that was not named",
    why: "containerd has looked for the folder below already",
    outcome: "unsupported",
    entries: () => [file("f/x"), file("f", "3")],
  },
  {
    name: "a folder behind a link that is taken away",
    why: "in the end containerd looks for the folder where the link no longer leads",
    outcome: "unsupported",
    entries: () => [dir("a"), symlink("l", "a"), dir("l/d"), file("l", "x")],
  },
  {
    name: "global header in the place of a file",
    why: "containerd removes the file before it passes the header over",
    outcome: "unsupported",
    entries: () => [file("pax", "x"), paxHeader("g", record("comment", "x"))],
  },
  {
    name: "global header that is a whiteout",
    why: "containerd looks at its name first",
    outcome: "unsupported",
    entries: () => [paxHeader("g", record("path", "d/.wh.x"))],
  },
  {
    name: "device 0:0",
    why: "a whiteout under another name",
    outcome: "unsupported",
    entries: () => [{ name: "w", type: "3", major: 0, minor: 0 }],
  },
  {
    name: "owner of -1",
    why: "to chown it is none, so that it stays what the kernel made it",
    outcome: "unsupported",
    entries: () => [file("f", "x", { pax: { uid: "-1" } })],
  },
  {
    name: "ctime that is none",
    why: "nothing can set it, but Go reads it",
    outcome: "corrupt",
    entries: () => [file("f", "x", { pax: { ctime: "yesterday" } })],
  },
  {
    name: "name with a NUL",
    why: "a pax path with a NUL byte cannot be a file's",
    outcome: "corrupt",
    entries: () => [file("x", "", { pax: { path: "a\0b" } })],
  },
  {
    name: "name with newlines",
    why: "any other byte can",
    outcome: "tree",
    entries: () => [file("a\nb\r\x1b[31m", "x")],
  },
  {
    name: "component of 256 bytes",
    why: "no file system takes it",
    outcome: "corrupt",
    entries: () => [file("n".repeat(256), "x")],
    oursAlone: true,
  },
  {
    name: "path of 5000 bytes",
    why: "longer than any path",
    outcome: "corrupt",
    entries: () => [file("d/".repeat(2500), "x")],
    oursAlone: true,
  },
  {
    name: "pax header of 2 MiB",
    why: "memory; Go refuses more than 1 MiB",
    outcome: "corrupt",
    entries: () => [paxHeader("x", Buffer.alloc(2 * 1024 * 1024, "1")), file("f")],
  },
  {
    name: "pax record with a wrong length",
    why: "it would be read past its end",
    outcome: "corrupt",
    entries: () => [paxHeader("x", "99 path=x\n"), file("f")],
  },
  {
    name: "pax record without newline",
    why: "torn",
    outcome: "corrupt",
    entries: () => [paxHeader("x", "9 path=x-"), file("f")],
  },
  {
    name: "pax size that lies",
    why: "content is taken from what follows",
    outcome: "corrupt",
    entries: () => [file("f", "x", { pax: { size: "99999999999" } })],
  },
  {
    name: "pax size below zero",
    why: "no such file",
    outcome: "corrupt",
    entries: () => [file("f", "x", { pax: { size: "-1" } })],
  },
  {
    name: "GNU long name of 2 MiB",
    why: "memory",
    outcome: "corrupt",
    entries: () => [gnuLong("L", "n".repeat(2 * 1024 * 1024)), file("f")],
  },
  {
    name: "GNU long names on top of each other",
    why: "the last counts",
    outcome: "tree",
    entries: () => [gnuLong("L", "first"), gnuLong("L", "second"), gnuLong("K", "unused"), file("f")],
  },
  {
    name: "GNU long name without an entry",
    why: "the archive ends behind it",
    outcome: "tree",
    entries: () => [gnuLong("L", "name")],
  },
  {
    name: "GNU sparse",
    why: "left to containerd",
    outcome: "unsupported",
    entries: () => [file("s", "", { type: "S", raw: gnuMagic })],
  },
  {
    name: "pax sparse 1.0",
    why: "left to containerd",
    outcome: "unsupported",
    entries: () => [
      paxHeader(
        "x",
        Buffer.concat([
          record("GNU.sparse.major", "1"),
          record("GNU.sparse.minor", "0"),
          record("GNU.sparse.name", "s"),
          record("GNU.sparse.realsize", "10"),
        ]),
      ),
      file("s", Buffer.alloc(512, "0\n")),
    ],
  },
  {
    name: "size in base 256 below zero",
    why: "no such file",
    outcome: "corrupt",
    entries: () => [file("f", "", { size: -1 })],
  },
  {
    name: "size of 8 EiB",
    why: "it cannot be counted",
    outcome: "corrupt",
    entries: () => [file("f", "", { raw: { 124: Buffer.from("8000000000000000ffffffff", "hex") } })],
  },
  {
    name: "owner of 2^40",
    why: "beyond 32 bits: the kernel takes the lower ones",
    outcome: "tree",
    entries: () => [file("f", "", { pax: { uid: String(2 ** 40) } })],
    oursAlone: true,
  },
  {
    name: "bad checksum",
    why: "damage",
    outcome: "corrupt",
    entries: () => [file("f", "x", { damage: { 10: 1 } })],
  },
  {
    name: "unknown type",
    why: "containerd refuses it",
    outcome: "corrupt",
    entries: () => [file("f", "", { type: "9" })],
  },
  {
    name: "xattr of a name that no kernel takes",
    why: "the kernel refuses it, and containerd goes on without it",
    outcome: "tree",
    entries: () => [file("f", "", { pax: { "SCHILY.xattr.nonsense": "x" } })],
    oursAlone: true,
  },
  {
    name: "xattr that would make a folder opaque",
    why: "trusted ones are skipped",
    outcome: "tree",
    entries: () => [dir("d", { pax: { "SCHILY.xattr.trusted.overlay.opaque": "y" } })],
  },
  {
    name: "folders 600 deep",
    why: "a path near the kernel's limit",
    outcome: "tree",
    entries: () => [file(`${"d/".repeat(600)}f`, "x")],
  },
];

const streams: readonly Hostile[] = [
  {
    name: "zero blocks without end",
    why: "8 MiB of them after the archive",
    outcome: "tree",
    blob: () => gz(Buffer.concat([tar([file("f", "x")]), Buffer.alloc(8 * 1024 * 1024)])),
  },
  {
    name: "bytes after the archive",
    why: "they belong to the diffID and to nothing else",
    outcome: "tree",
    blob: () => gz(Buffer.concat([tar([file("f", "x")]), Buffer.alloc(10_000, 7)])),
  },
  {
    name: "a second archive behind the first",
    why: "not unpacked",
    outcome: "tree",
    blob: () => gz(Buffer.concat([tar([file("f", "x")]), tar([file("../g", "x")])])),
  },
  {
    name: "cut inside a header",
    why: "torn",
    outcome: "corrupt",
    blob: () => gz(tar([file("f", "x"), file("g", "x")]).subarray(0, 1024 + 100)),
  },
  {
    name: "cut inside content",
    why: "torn",
    outcome: "corrupt",
    blob: () => gz(tar([file("f", Buffer.alloc(5000))]).subarray(0, 512 + 1000)),
  },
  {
    name: "gzip bomb",
    why: "a thousand times what it seems",
    outcome: "exhausted",
    oursAlone: true,
    blob: () => gz(Buffer.alloc(40 * 1024 * 1024)),
  },
  {
    name: "zstd bomb",
    why: "much more from even less",
    outcome: "exhausted",
    oursAlone: true,
    blob: () => zstd(Buffer.alloc(41 * 1024 * 1024)),
  },
  {
    name: "gzip with a wrong CRC",
    why: "damage",
    outcome: "corrupt",
    blob: (innocent) => damaged(innocent, -8),
  },
  {
    name: "gzip with a wrong length",
    why: "damage",
    outcome: "corrupt",
    blob: (innocent) => damaged(innocent, -4),
  },
  { name: "gzip cut off", why: "torn", outcome: "corrupt", blob: (innocent) => shortened(innocent, 20) },
  {
    name: "gzip without its trailer",
    why: "torn",
    outcome: "corrupt",
    blob: (innocent) => shortened(innocent, 8),
  },
  {
    name: "gzip and garbage",
    why: "neither a member nor padding",
    lenient: true,
    outcome: "corrupt",
    blob: (innocent) => followed(innocent, Buffer.from("garbage")),
  },
  {
    name: "gzip with a reserved flag",
    why: "RFC 1952 refuses it; Go does not, unpigz does",
    outcome: "corrupt",
    blob: (innocent) => ({ bytes: gzipMember(innocent, { flags: 0x80 }), tar: innocent }),
  },
  {
    name: "gzip with a long name",
    why: "Go refuses more than 511 bytes; unpigz does not",
    lenient: true,
    outcome: "corrupt",
    blob: (innocent) => ({ bytes: gzipMember(innocent, { name: "n".repeat(512) }), tar: innocent }),
  },
  {
    name: "gzip and an empty member",
    why: "harmless",
    outcome: "tree",
    blob: (innocent) => followed(innocent, gzipSync(Buffer.alloc(0))),
  },
  {
    name: "zstd cut off",
    why: "torn",
    outcome: "corrupt",
    blob: (innocent) => {
      const whole = zstd(innocent);
      return { ...whole, bytes: whole.bytes.subarray(0, -3) };
    },
  },
  {
    name: "no archive",
    why: "text",
    outcome: "corrupt",
    blob: () => gz(Buffer.from("this is no archive at all".repeat(100))),
  },
];

export const corpus: readonly Hostile[] = [...escapes, ...whiteouts, ...metadata, ...streams];

const types = {
  gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
  zstd: "application/vnd.oci.image.layer.v1.tar+zstd",
} as const;

/** The blob of a corpus entry. */
export function blobOf(hostile: Hostile, outside: string): { bytes: Buffer; tar: Buffer; mediaType: string } {
  const innocent = tar([file("f", "x".repeat(5000)), file(`only in ${hostile.name}`)]);
  const made = hostile.blob?.(innocent) ?? gz(tar(hostile.entries?.(outside) ?? []));
  return { mediaType: types.gzip, ...made };
}

function gz(stream: Buffer): { bytes: Buffer; tar: Buffer } {
  return { bytes: gzipSync(stream), tar: stream };
}

function zstd(stream: Buffer): { bytes: Buffer; tar: Buffer; mediaType: string } {
  return { bytes: packZstd(stream), tar: stream, mediaType: types.zstd };
}

function damaged(innocent: Buffer, offset: number): { bytes: Buffer; tar: Buffer } {
  const bytes = gzipSync(innocent);
  const at = bytes.length + offset;
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  return { bytes, tar: innocent };
}

function shortened(innocent: Buffer, count: number): { bytes: Buffer; tar: Buffer } {
  return { bytes: gzipSync(innocent).subarray(0, -count), tar: innocent };
}

function followed(innocent: Buffer, by: Buffer): { bytes: Buffer; tar: Buffer } {
  return { bytes: Buffer.concat([gzipSync(innocent), by]), tar: innocent };
}
