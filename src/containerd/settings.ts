// What the connected containerd says of itself: version, roots, and the settings of its CRI plugin.
//
// Roots come from introspection. CRI settings come from CRI Status on 1.6 and 1.7, and from config.toml with its
// imports on 2.x, where Status shows only the runtime half (reference 2.10). Whatever Hawser could not honour makes
// this containerd unfit, and every pull then goes through to it.

import { readdir } from "node:fs/promises";
import { PullError } from "../errors.ts";
import type { Channel } from "./channel.ts";
import { type ConfigFile, readConfigFile, type Table, table } from "./configfile.ts";
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
  /** Where image verifiers are, on a containerd that has the plugin. */
  readonly verifierFolder: string;
}

const defaultVerifierFolder = "/opt/containerd/image-verifier/bin";
const defaultConfigPath = "/etc/containerd/certs.d:/etc/docker/certs.d";

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
    plugins.some((one) => one.type === "io.containerd.image-verifier.v1") &&
    (await hasVerifiers(cri.verifierFolder));
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
  if (verifies) return `containerd runs image verifiers from ${cri.verifierFolder}`;
  return undefined;
}

async function hasVerifiers(folder: string): Promise<boolean> {
  const names = await readdir(folder).catch(() => []);
  return names.length > 0;
}

async function criSettings(
  channel: Channel,
  version: string,
  options: SettingsOptions,
  signal: AbortSignal,
): Promise<CriSettings> {
  if (!/^v?1\./.test(version)) return settingsOfFile(await readConfigFile(options.configFile), version);
  const { info } = await channel.call(runtime.status, { verbose: true }, { signal });
  const config = parsed(info["config"]);
  const registry = table(config["registry"]);
  const containerd = table(config["containerd"]);
  return {
    snapshotter: string(containerd["snapshotter"], "overlayfs"),
    configPath: string(registry["configPath"], ""),
    discardUnpackedLayers: containerd["discardUnpackedLayers"] === true,
    deprecated: inUse(registry),
    verifierFolder: defaultVerifierFolder,
  };
}

/** Settings that cannot be read are not defaults: somebody may have set them. */
function parsed(text: string | undefined): Table {
  try {
    return table(JSON.parse(text ?? ""));
  } catch {
    throw new PullError("unsupported", "containerd does not show the settings of its CRI plugin");
  }
}

/** Settings of containerd 2.x; where a key is absent, that version's default (reference 6.1). */
function settingsOfFile({ images, verifier }: ConfigFile, version: string): CriSettings {
  const registry = table(images["registry"]);
  return {
    snapshotter: string(images["snapshotter"], "overlayfs"),
    configPath: string(registry["config_path"], /^v?2\.[01]\./.test(version) ? "" : defaultConfigPath),
    discardUnpackedLayers: images["discard_unpacked_layers"] === true,
    deprecated: inUse(registry),
    verifierFolder: string(verifier["bin_dir"], defaultVerifierFolder),
  };
}

function inUse(registry: Table): string[] {
  const names = ["mirrors", "configs", "auths"].filter(
    (name) => Object.keys(table(registry[name])).length > 0,
  );
  // Containerd writes its own User-Agent into this table with the first pull, where the file has the table at all.
  const headers = Object.keys(table(registry["headers"])).filter((name) => name !== "User-Agent");
  return headers.length > 0 ? [...names, "headers"] : names;
}

function string(value: unknown, absent: string): string {
  return typeof value === "string" && value !== "" ? value : absent;
}
