// Archives by chance that are mostly in order: what tools write, in any order, with a rare oddity in each place.
//
// Whiteouts hide names that no entry has, since beside an entry of their own layer we follow the specification and
// containerd does not (test/README.md).

import { dir, file, gnuLong, hardlink, paxHeader, record, symlink, type TarEntry } from "../fakes/tar.ts";
import type { Randomness } from "../soak/random.ts";

const common = ["a", "b", "c", "d"];
/** Of the layers below, too. */
const rare = ["e", "g", "h", "i", "f", "low", "gone", "relative", "absolute", "up", "dangling"];
const modes = [0o644, 0o755, 0o4755, 0o2755, 0o6711, 0o1777, 0, 0o7777, 0o100644];
const moments = [
  "1234567890.5",
  "-5.25",
  "9223372036.854775807",
  "9223372036.854775808",
  "12.",
  "0.1234567899",
];
const capability = Buffer.from("0100000200040000000000000000000000000000", "hex");
const attributes = [
  "user.x",
  "user.y",
  "user.x",
  "security.capability",
  "trusted.z",
  "trusted.overlay.opaque",
  "security.foo",
];

export function randomArchive(random: Randomness): TarEntry[] {
  const files: string[] = [];
  return Array.from({ length: random.integer(8) + 1 }, () => randomEntry(random, files));
}

function randomEntry(random: Randomness, files: string[]): TarEntry {
  const name = randomName(random);
  const more = randomHeader(random);
  switch (random.integer(20)) {
    case 0:
    case 1:
    case 2:
    case 3:
      return dir(name, more);
    case 4:
    case 5:
      return symlink(name, pick(random, ["", "../", "/"]) + randomName(random), more);
    case 6:
    case 7:
      return hardlink(name, random.chance(0.9) ? pick(random, [...files, "a"]) : randomName(random), more);
    case 8:
      return {
        name,
        type: pick(random, ["3", "4", "6"]),
        major: pick(random, [0, 1, 300]),
        minor: pick(random, [0, 3, 70000]),
        ...more,
      };
    case 9:
      return file(
        `${parentOf(name)}.wh.${pick(random, ["hidden", "v", "w", ".wh..opq", ".wh..opq", ".wh.plnk"])}`,
        "",
        more,
      );
    case 10:
      return random.chance(0.8) ? file(name, "x", more) : randomOddity(random, name, more);
    default:
      files.push(name);
      return file(name, "x".repeat(random.integer(600)), more);
  }
}

function randomOddity(random: Randomness, name: string, more: Partial<TarEntry>): TarEntry {
  switch (random.integer(4)) {
    case 0:
      return { ...paxHeader("g", record("comment", "x")), name };
    case 1:
      return gnuLong(pick(random, ["L", "K"]), randomName(random));
    case 2:
      return { name, type: pick(random, ["\0", "7", "9"]), content: "x", ...more };
    default:
      return file(`${parentOf(name)}.wh.${pick(random, ["", ".", ".."])}`, "", more);
  }
}

function randomName(random: Randomness): string {
  const parts = Array.from({ length: random.integer(3) + 1 }, () =>
    pick(random, random.chance(0.6) ? common : rare),
  );
  if (random.chance(0.08)) parts.splice(random.integer(parts.length + 1), 0, pick(random, [".", "..", ""]));
  const end = random.chance(0.03) ? pick(random, ["/", "/.", "/.."]) : "";
  return pick(random, ["", "", "", "", "./", "/"]) + parts.join("/") + end;
}

function randomHeader(random: Randomness): Partial<TarEntry> {
  const pax: Record<string, string | Buffer> = {};
  if (random.chance(0.1)) {
    const value = pick(random, [capability, "text", "", Buffer.from([0, 255, 10, 61])]);
    pax[`SCHILY.xattr.${pick(random, attributes)}`] = value;
  }
  if (random.chance(0.08)) pax["mtime"] = pick(random, moments);
  if (random.chance(0.04)) pax["atime"] = pick(random, moments);
  if (random.chance(0.03)) pax["ctime"] = pick(random, [...moments, "no time"]);
  if (random.chance(0.03))
    pax["uid"] = pick(random, ["5", "4294967296", "2147483648", "+7", "007", "-1", "x"]);
  return {
    mode: pick(random, modes),
    uid: pick(random, [0, 0, 1, 1000, 3_000_000]),
    gid: pick(random, [0, 0, 5, 2 ** 31]),
    mtime: pick(random, [1_600_000_000, 0, 1, -1, 2 ** 33]),
    ...(Object.keys(pax).length > 0 && { pax }),
  };
}

function parentOf(name: string): string {
  return name.slice(0, name.lastIndexOf("/") + 1);
}

function pick<Item>(random: Randomness, items: readonly Item[]): Item {
  return items[random.integer(items.length)] as Item;
}
