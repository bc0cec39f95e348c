// A directory tree as values, and what differs between two of them.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { lstatSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";

/** Everything that an image's layer can say of a path. */
export interface Node {
  readonly kind: string;
  readonly mode: number;
  readonly owner: string;
  readonly size: bigint;
  readonly device: bigint;
  readonly mtimeNs: bigint;
  readonly content: string;
  readonly target: string;
  readonly xattrs: string;
  /** The first path of the same inode. */
  readonly linkedWith: string;
}

/** Paths relative to the root, byte strings ("latin1"); the root itself is "". */
export function readTree(root: string): Map<string, Node> {
  const nodes = new Map<string, Node>();
  const inodes = new Map<bigint, string>();
  const xattrs = readXattrs(root);
  const visit = (path: string): void => {
    const full = Buffer.from(path === "" ? root : `${root}/${path}`, "latin1");
    const stat = lstatSync(full, { bigint: true });
    const first = inodes.get(stat.ino) ?? path;
    inodes.set(stat.ino, first);
    nodes.set(path, {
      kind: kindOf(stat),
      mode: Number(stat.mode & 0o7777n),
      owner: `${stat.uid}:${stat.gid}`,
      size: stat.isFile() ? stat.size : 0n,
      device: stat.rdev,
      mtimeNs: stat.mtimeNs,
      content: stat.isFile() ? createHash("sha256").update(readFileSync(full)).digest("hex") : "",
      target: stat.isSymbolicLink() ? readlinkSync(full, "latin1") : "",
      xattrs: xattrs.get(path) ?? "",
      linkedWith: stat.isDirectory() ? "" : first,
    });
    if (!stat.isDirectory()) return;
    const names = readdirSync(full, "buffer").map((name) => name.toString("latin1"));
    for (const name of names.sort()) visit(path === "" ? name : `${path}/${name}`);
  };
  visit("");
  return nodes;
}

/** One line for each difference. `mtimesExcept` names paths whose time means nothing, besides the root's and whiteouts'. */
export function differences(
  a: ReadonlyMap<string, Node>,
  b: ReadonlyMap<string, Node>,
  mtimesExcept: ReadonlySet<string> = new Set(),
): string[] {
  const lines: string[] = [];
  for (const path of new Set([...a.keys(), ...b.keys()])) {
    const [left, right] = [a.get(path), b.get(path)];
    if (left === undefined || right === undefined) {
      lines.push(`${path}: only in the ${left ? "first" : "second"}`);
      continue;
    }
    for (const key of Object.keys(left) as (keyof Node)[]) {
      const isWhiteout = left.kind === "char" && left.device === 0n;
      if (key === "mtimeNs" && (path === "" || isWhiteout || mtimesExcept.has(path))) continue;
      if (left[key] !== right[key]) lines.push(`${path}: ${key} ${left[key]} / ${right[key]}`);
    }
  }
  return lines;
}

function kindOf(stat: ReturnType<typeof lstatSync> & object): string {
  if (stat.isFile()) return "file";
  if (stat.isDirectory()) return "directory";
  if (stat.isSymbolicLink()) return "symlink";
  if (stat.isCharacterDevice()) return "char";
  if (stat.isBlockDevice()) return "block";
  return stat.isFIFO() ? "fifo" : "other";
}

/** getfattr's dump in hexadecimal, attributes sorted. Paths with special bytes come octal-escaped. */
function readXattrs(root: string): Map<string, string> {
  const run = spawnSync(
    "getfattr",
    ["-R", "-P", "-h", "-d", "-m", "-", "-e", "hex", "--absolute-names", root],
    {
      encoding: "latin1",
      maxBuffer: 256 * 1024 * 1024,
    },
  );
  // It ends with 1 when it could not read something: two trees would then compare equal in what was read of neither.
  if (run.status !== 0) throw new Error(`getfattr: ${run.error?.message ?? run.stderr}`);
  const found = new Map<string, string>();
  for (const section of run.stdout.split("\n\n")) {
    const [head = "", ...lines] = section.split("\n").filter((line) => line !== "");
    const full = head
      .replace(/^# file: /, "")
      .replace(/\\(\d{3})/g, (_all, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
    if (head !== "") found.set(full === root ? "" : full.slice(root.length + 1), lines.sort().join(" "));
  }
  return found;
}

/** Names below a folder at any depth; empty when there is no such folder. */
export function namesBelow(folder: string): string[] {
  try {
    return readdirSync(folder, { recursive: true, encoding: "utf8" }).map((name) => join(folder, name));
  } catch {
    return [];
  }
}
