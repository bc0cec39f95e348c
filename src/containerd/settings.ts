// What the connected containerd says of itself: version, roots, and the settings of its CRI plugin.
//
// Roots come from introspection. CRI settings come from CRI Status on 1.6 and 1.7, and from config.toml with its
// imports on 2.x, where Status shows only the runtime half (reference 2.10). Whatever Hawser could not honour makes
// this containerd unfit, and every pull then goes through to it.

import { readdir } from "node:fs/promises";
import { PullError } from "../errors.ts";
import type { Channel } from "./channel.ts";
import { type ConfigFile, readConfigFile, type Table, table } from "./configfile.ts";
import type { ContainerdFacts, CriSettings, Inspection } from "./containerd.ts";
import { introspection, runtime } from "./methods.ts";

export interface SettingsOptions {
  /** Containerd's configuration file, read for 2.x only. */
  readonly configFile: string;
  /** Snapshotter to assume instead of what CRI's settings say. */
  readonly snapshotter: string | undefined;
}

const defaultVerifierFolder = "/opt/containerd/image-verifier/bin";
const defaultConfigPath = "/etc/containerd/certs.d:/etc/docker/certs.d";

/** Versions that test/e2e/parity.int.test.ts runs on; what another one makes of an image beyond these is not known. */
const proven = /^v?(?:1\.6|1\.7|2\.1)\.\d/;

/** Only what could not be asked for is thrown; what containerd says wrongly or not at all is part of the answer. */
export async function inspect(
  channel: Channel,
  options: SettingsOptions,
  signal: AbortSignal,
): Promise<Inspection> {
  const { version } = await channel.call(introspection.version, {}, { signal });
  const { plugins } = await channel.call(introspection.plugins, { filters: [] }, { signal });
  const cri = await criSettings(channel, version, options, signal).catch((error: unknown) =>
    PullError.from(error),
  );
  const verifies = plugins.some((one) => one.type === "io.containerd.image-verifier.v1");
  const folder = cri instanceof PullError ? defaultVerifierFolder : cri.verifierFolder;
  return {
    version,
    plugins: plugins.map(({ type, id, exports, initErr }) => ({
      type,
      id,
      root: exports["root"],
      error: initErr?.message || undefined,
    })),
    cri,
    verifiers: verifies ? await readdir(folder).catch(() => []) : [],
  };
}

export async function readFacts(
  channel: Channel,
  options: SettingsOptions,
  signal: AbortSignal,
): Promise<ContainerdFacts> {
  const { version, plugins, cri, verifiers } = await inspect(channel, options, signal);
  const plugin = (type: string, id: string) => plugins.find((one) => one.type === type && one.id === id);
  const overlay = plugin("io.containerd.snapshotter.v1", "overlayfs");
  const contentRoot = plugin("io.containerd.content.v1", "content")?.root;
  if (contentRoot === undefined)
    throw new PullError("unsupported", "containerd does not say where its content is");
  if (cri instanceof PullError) throw cri;
  const snapshotter = options.snapshotter ?? cri.snapshotter;
  return {
    version,
    contentRoot,
    snapshotterRoot: overlay?.root ?? "",
    snapshotter,
    registryConfigPath: cri.configPath,
    discardUnpackedLayers: cri.discardUnpackedLayers,
    syncsLayers: cri.syncsLayers,
    takesRecords: proven.test(version),
    pinnedImages: cri.pinnedImages,
    unfit: unfit(snapshotter, overlay?.root, overlay?.error, cri, verifiers.length > 0),
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
  if (cri.labelsSnapshots)
    return "containerd labels snapshots with their images (disable_snapshot_annotations = false)";
  if (verifies) return `containerd runs image verifiers from ${cri.verifierFolder}`;
  return undefined;
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
    configPath: folders(string(registry["configPath"], "")),
    discardUnpackedLayers: containerd["discardUnpackedLayers"] === true,
    syncsLayers: config["imagePullWithSyncFs"] === true,
    labelsSnapshots: containerd["disableSnapshotAnnotations"] === false,
    pinnedImages: [config["sandboxImage"]].filter((name) => typeof name === "string"),
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
    configPath: folders(
      string(registry["config_path"], /^v?2\.[01]\./.test(version) ? "" : defaultConfigPath),
    ),
    discardUnpackedLayers: images["discard_unpacked_layers"] === true,
    syncsLayers: images["image_pull_with_sync_fs"] === true,
    labelsSnapshots: images["disable_snapshot_annotations"] === false,
    pinnedImages: [images["sandbox_image"], ...Object.values(table(images["pinned_images"]))].filter(
      (name) => typeof name === "string",
    ),
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

function folders(list: string): string[] {
  return list.split(":").filter((path) => path !== "");
}
