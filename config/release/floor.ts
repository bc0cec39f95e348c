// What a node must have for a bundle to run, read from the version symbols of every ELF file in it.
//
// The dynamic loader refuses a file that wants a symbol version which the system's library does not define, so the
// highest version that anything in the bundle wants is the oldest library that it runs with.

import { open, readdir } from "node:fs/promises";
import { join, relative } from "node:path";
import { ReleaseError, run } from "./command.ts";

/**
 * The oldest libraries that a bundle may ask for: what Node's own builds ask for. GLIBCXX and CXXABI are of libstdc++
 * (GCC 5), GCC is of libgcc. README.md says the same, and a test holds the two together.
 */
export const floor: Readonly<Record<string, string>> = {
  GLIBC: "2.28",
  GLIBCXX: "3.4.21",
  CXXABI: "1.3.9",
  GCC: "4.2.0",
};

/** Libraries that the node brings: those of glibc, and libstdc++ with libgcc. */
const systemLibraries = /^(lib(c|m|dl|pthread)|ld-linux-[\w-]+|libstdc\+\+|libgcc_s)\.so\.\d+$/;

interface ElfFile {
  /** Relative to the bundle's top. */
  readonly path: string;
  readonly machine: string;
  /** Names of the libraries that it is linked with. */
  readonly needed: readonly string[];
  /** Symbol versions that it wants, such as GLIBC_2.28. */
  readonly versions: readonly string[];
}

/** Returns the highest version of each library that is wanted; throws when one is above the floor or nothing was found. */
export async function checkFloor(top: string, machine: string): Promise<ReadonlyMap<string, string>> {
  const files = await readElfFiles(top);
  const own = new Set(files.map(({ path }) => path.slice(path.lastIndexOf("/") + 1)));
  const highest = new Map<string, string>();
  for (const file of files) {
    if (file.machine !== machine)
      throw new ReleaseError(`${file.path} is for ${file.machine}, and the bundle for ${machine}`);
    const foreign = file.needed.find((name) => !own.has(name) && !systemLibraries.test(name));
    if (foreign !== undefined)
      throw new ReleaseError(`${file.path} is linked with ${foreign}, which is not in the bundle`);
    for (const wanted of file.versions) raise(highest, file.path, wanted);
  }
  if (!highest.has("GLIBC"))
    throw new ReleaseError(
      `no symbol versions of glibc were found in ${files.length} ELF files: nothing was checked`,
    );
  return highest;
}

function raise(highest: Map<string, string>, path: string, wanted: string): void {
  const [space = "", version = ""] = wanted.split("_", 2);
  const most = floor[space];
  if (most === undefined || !/^[\d.]+$/.test(version))
    throw new ReleaseError(`${path} wants ${wanted}, and no floor is stated for that`);
  if (compareVersions(version, most) > 0)
    throw new ReleaseError(`${path} wants ${wanted}, which is above the stated floor, ${space}_${most}`);
  if (compareVersions(version, highest.get(space) ?? "0") > 0) highest.set(space, version);
}

export function compareVersions(a: string, b: string): number {
  const [left, right] = [a, b].map((text) => text.split(".").map(Number)) as [number[], number[]];
  for (let index = 0; index < Math.max(left.length, right.length); index++) {
    const difference = (left[index] ?? 0) - (right[index] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

async function readElfFiles(top: string): Promise<ElfFile[]> {
  const entries = await readdir(top, { recursive: true, withFileTypes: true });
  const paths = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  const files: ElfFile[] = [];
  for (const path of paths.toSorted()) {
    if (await isElf(path)) files.push(await readElf(top, path));
  }
  return files;
}

export async function isElf(path: string): Promise<boolean> {
  await using file = await open(path);
  const { bytesRead, buffer } = await file.read(Buffer.alloc(4), 0, 4, 0);
  return bytesRead === 4 && buffer.toString("latin1") === "\x7fELF";
}

async function readElf(top: string, path: string): Promise<ElfFile> {
  const flags = ["--wide", "--file-header", "--dynamic", "--version-info"];
  const text = await run("readelf", [...flags, path], { missing: "apt-get install binutils" });
  const all = (pattern: RegExp): string[] => [...text.matchAll(pattern)].map(([, found = ""]) => found);
  return {
    path: relative(top, path),
    machine: all(/^ {2}Machine: +(.+)$/gm)[0] ?? "",
    needed: all(/\(NEEDED\).*\[(.+)\]$/gm),
    // The versions that it wants; those that it defines itself are printed with "Rev:".
    versions: [...new Set(all(/^ +0x[0-9a-f]+: +Name: (\S+) +Flags: /gm))],
  };
}
