// The configuration file of containerd 2.x, with what it imports: the tables that say how CRI pulls images.
//
// Each file is brought into the shape of its newest version before it is merged, as containerd does. A file that
// cannot be read or parsed is an error, never an empty one: a setting that is overlooked would pull an image from
// somewhere else than the operator said.

import { readdir, readFile } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { parse } from "smol-toml";
import { PullError } from "../errors.ts";

export type Table = Readonly<Record<string, unknown>>;

/** What the files say, in the keys of version 3; tables that are not there are empty. */
export interface ConfigFile {
  /** `io.containerd.cri.v1.images`. */
  readonly images: Table;
  /** `io.containerd.image-verifier.v1.bindir`. */
  readonly verifier: Table;
}

/** Reads the file and its imports, later files over earlier ones. An absent file is containerd's defaults. */
export async function readConfigFile(file: string): Promise<ConfigFile> {
  const merged = await readMerged(file, new Set());
  return { images: table(merged["images"]), verifier: table(merged["verifier"]) };
}

async function readMerged(file: string, seen: Set<string>): Promise<Table> {
  if (seen.has(file)) return {};
  seen.add(file);
  const content = await readTable(file);
  let merged = newest(content);
  const imports = Array.isArray(content["imports"]) ? content["imports"] : [];
  for (const pattern of imports) {
    if (typeof pattern !== "string") continue;
    const path = isAbsolute(pattern) ? pattern : join(dirname(file), pattern);
    for (const name of (await expand(path)).sort()) merged = merge(merged, await readMerged(name, seen));
  }
  return merged;
}

async function readTable(file: string): Promise<Table> {
  try {
    return parse(await readFile(file, "utf8"));
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return {};
    // The first line only: a TOML error goes on with an excerpt of the file, which may hold a password.
    const [reason] = String(error instanceof Error ? error.message : error).split("\n");
    throw new PullError("unsupported", `containerd's settings in ${file} cannot be read: ${reason}`);
  }
}

/** What version 3 took out of the table of the runtime. */
const movedKeys = new Set(["snapshotter", "discard_unpacked_layers", "disable_snapshot_annotations"]);

/** What was of CRI's own table before, and of that of images since; `sandbox_image` has become one of `pinned_images`. */
const keptKeys = new Set(["registry", "image_pull_with_sync_fs", "sandbox_image"]);

/** The tables of one file. Before version 3 one plugin held all of CRI, and a file without a version is of version 1. */
function newest(content: Table): Table {
  const plugins = table(content["plugins"]);
  const verifier = table(plugins["io.containerd.image-verifier.v1.bindir"]);
  const version = Number(content["version"] ?? 1);
  if (version >= 3) return { images: table(plugins["io.containerd.cri.v1.images"]), verifier };
  const cri = table(plugins[version === 2 ? "io.containerd.grpc.v1.cri" : "cri"]);
  const moved = Object.entries(table(cri["containerd"])).filter(([key]) => movedKeys.has(key));
  const kept = Object.entries(cri).filter(([key]) => keptKeys.has(key));
  return { images: Object.fromEntries([...moved, ...kept]), verifier };
}

/** Files that match a path whose last component may hold `*`. */
async function expand(path: string): Promise<string[]> {
  const folder = dirname(path);
  const pattern = path.slice(folder.length + 1);
  if (!pattern.includes("*")) return [path];
  const parts = pattern.split("*").map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&"));
  const matching = new RegExp(`^${parts.join("[^/]*")}$`);
  const names = await readdir(folder).catch(() => []);
  return names.filter((name) => matching.test(name)).map((name) => join(folder, name));
}

function merge(below: Table, above: Table): Table {
  const merged: Record<string, unknown> = { ...below };
  for (const [key, value] of Object.entries(above)) {
    const old = merged[key];
    merged[key] = isTable(old) && isTable(value) ? merge(old, value) : value;
  }
  return merged;
}

function isTable(value: unknown): value is Table {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The value if it is a table, else an empty one. */
export function table(value: unknown): Table {
  return isTable(value) ? value : {};
}
