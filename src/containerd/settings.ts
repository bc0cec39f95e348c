// What the connected containerd says of itself: version, roots, and the settings of its CRI plugin.
//
// Roots come from introspection. CRI settings come from CRI Status on 1.6 and 1.7, and from config.toml with its
// imports on 2.x, where Status shows only the runtime half (reference 2.10). Whatever Hawser could not honour makes
// this containerd unfit, and every pull then goes through to it.

import { readdir, readFile } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { parse } from "smol-toml";
import { PullError } from "../errors.ts";
import type { Channel } from "./channel.ts";
import type { ContainerdFacts } from "./containerd.ts";
import { introspection, runtime } from "./methods.ts";

export interface SettingsOptions {
  /** Containerd's configuration file, read for 2.x only. */
  readonly configFile: string;
  /** Snapshotter to assume instead of what CRI's settings say. */
  readonly snapshotter: string | undefined;
}

/** The image half of the CRI plugin's settings; on every version only what a pull needs. */
interface CriSettings {
  readonly snapshotter: string;
  readonly configPath: string;
  readonly discardUnpackedLayers: boolean;
  /** Names of deprecated registry settings that are in use. */
  readonly deprecated: readonly string[];
}

type Table = Readonly<Record<string, unknown>>;

const verifierFolder = "/opt/containerd/image-verifier/bin";

export async function readFacts(
  channel: Channel,
  options: SettingsOptions,
  signal: AbortSignal,
): Promise<ContainerdFacts> {
  const { version } = await channel.call(introspection.version, {}, { signal });
  const { plugins } = await channel.call(introspection.plugins, { filters: [] }, { signal });
  const plugin = (type: string, id: string) => plugins.find((one) => one.type === type && one.id === id);
  const overlay = plugin("io.containerd.snapshotter.v1", "overlayfs");
  const contentRoot = plugin("io.containerd.content.v1", "content")?.exports["root"];
  if (contentRoot === undefined)
    throw new PullError("unsupported", "containerd does not say where its content is");
  const cri = await criSettings(channel, version, options, signal);
  const snapshotter = options.snapshotter ?? cri.snapshotter;
  const verifies =
    plugins.some((one) => one.type === "io.containerd.image-verifier.v1") && (await hasVerifiers());
  return {
    version,
    contentRoot,
    snapshotterRoot: overlay?.exports["root"] ?? "",
    snapshotter,
    registryConfigPath: cri.configPath.split(":").filter((path) => path !== ""),
    discardUnpackedLayers: cri.discardUnpackedLayers,
    unfit: unfit(snapshotter, overlay?.exports["root"], overlay?.initErr?.message, cri, verifies),
  };
}

function unfit(
  snapshotter: string,
  overlayRoot: string | undefined,
  overlayError: string | undefined,
  cri: CriSettings,
  verifies: boolean,
): string | undefined {
  if (snapshotter !== "overlayfs")
    return `CRI uses the snapshotter ${snapshotter}, and only overlayfs is accelerated`;
  if (overlayError) return `containerd's overlayfs snapshotter did not start: ${overlayError}`;
  if (overlayRoot === undefined)
    return "containerd has no overlayfs snapshotter, or does not say where its root is";
  if (cri.deprecated.length > 0) {
    return `containerd's registry settings are of the deprecated kind (${cri.deprecated.join(", ")}); use config_path`;
  }
  if (verifies) return `containerd runs image verifiers from ${verifierFolder}`;
  return undefined;
}

async function hasVerifiers(): Promise<boolean> {
  const names = await readdir(verifierFolder).catch(() => []);
  return names.length > 0;
}

async function criSettings(
  channel: Channel,
  version: string,
  options: SettingsOptions,
  signal: AbortSignal,
): Promise<CriSettings> {
  if (!/^v?1\./.test(version)) return settingsOfFile(await readConfig(options.configFile, new Set()));
  const { info } = await channel.call(runtime.status, { verbose: true }, { signal });
  const config: unknown = JSON.parse(info["config"] ?? "{}");
  const registry = table(table(config)["registry"]);
  const text = table(table(config)["containerd"]);
  return {
    snapshotter: string(text["snapshotter"], "overlayfs"),
    configPath: string(registry["configPath"], ""),
    discardUnpackedLayers: text["discardUnpackedLayers"] === true,
    deprecated: inUse(registry),
  };
}

/** Settings of containerd 2.x; where a key is absent, the default of 2.2 and later (reference 6.1). */
function settingsOfFile(file: Table): CriSettings {
  const images = table(table(file["plugins"])["io.containerd.cri.v1.images"]);
  const registry = table(images["registry"]);
  const deprecated = inUse(registry);
  return {
    snapshotter: string(images["snapshotter"], "overlayfs"),
    configPath: string(registry["config_path"], "/etc/containerd/certs.d:/etc/docker/certs.d"),
    discardUnpackedLayers: images["discard_unpacked_layers"] === true,
    deprecated,
  };
}

function inUse(registry: Table): string[] {
  const names = ["mirrors", "configs", "auths", "headers"];
  return names.filter((name) => Object.keys(table(registry[name])).length > 0);
}

/** The file merged with what it imports, later files over earlier ones; an absent file is an empty one. */
async function readConfig(file: string, seen: Set<string>): Promise<Table> {
  if (seen.has(file)) return {};
  seen.add(file);
  const text = await readFile(file, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return "";
    throw new PullError("unsupported", `containerd's settings cannot be read: ${error.message}`, {
      cause: error,
    });
  });
  let merged: Table = parse(text);
  const imports = Array.isArray(merged["imports"]) ? merged["imports"] : [];
  for (const pattern of imports) {
    if (typeof pattern !== "string") continue;
    const path = isAbsolute(pattern) ? pattern : join(dirname(file), pattern);
    for (const name of (await expand(path)).sort()) merged = merge(merged, await readConfig(name, seen));
  }
  return merged;
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

function table(value: unknown): Table {
  return isTable(value) ? value : {};
}

function string(value: unknown, absent: string): string {
  return typeof value === "string" && value !== "" ? value : absent;
}
