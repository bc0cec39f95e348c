// What the configuration means for pulls: how much of everything may go on at once, and how large a layer may be.

import type { Config } from "./config.ts";
import type { ContainerdFacts } from "./containerd/containerd.ts";
import { availableCores } from "./cores.ts";
import type { PullLimits, Spare } from "./pull/pull.ts";
import { hostRequests } from "./pull/tuning.ts";

/** A connection receives into up to 512 KiB. */
const nodeRequests = 64;

function numberOf(setting: number | "auto", automatic: number): number {
  return setting === "auto" ? automatic : setting;
}

/** Connections for one blob, unless they are said for a host: as many as its other limits let it have. */
export function streamsOf({ download }: Config): number {
  return numberOf(download.max_concurrent_per_image, hostRequests.most);
}

/** The same for the hosts for which it is said (host:port). */
export function hostStreamsOf({ registry }: Config): ReadonlyMap<string, number> {
  return new Map(
    [...registry.host].flatMap(([host, { streams }]) => (streams === undefined ? [] : [[host, streams]])),
  );
}

/** Threads that unpack, which is also how many layers are unpacked at once. */
export function threadsOf({ unpack }: Config): number {
  return unpack.max_concurrent === "auto" ? availableCores() : unpack.max_concurrent;
}

/** Whether layer blobs go into the content store. */
export function keepLayersOf({ content }: Config): (facts: ContainerdFacts) => boolean {
  const { keep_layers } = content;
  return ({ discardUnpackedLayers }) => (keep_layers === "auto" ? !discardUnpackedLayers : keep_layers);
}

/** What is to be left free of a file system by whatever nobody waits for. */
export function spareOf({ prewarm }: Config): Spare {
  const { min_free_disk: least } = prewarm;
  return ({ sizeBytes }) => (least.kind === "bytes" ? least.bytes : least.share * sizeBytes);
}

export function limitsOf(config: Config): PullLimits {
  const { download, unpack, registry, prewarm } = config;
  const threads = threadsOf(config);
  const perHost = [...registry.host].flatMap(([host, { max_concurrent }]): [string, number][] =>
    max_concurrent === undefined ? [] : [[host, max_concurrent]],
  );
  return {
    downloadsMax: numberOf(download.max_concurrent, nodeRequests),
    downloadsPerImageMax: numberOf(download.max_concurrent_per_image, nodeRequests),
    downloadsPerHostMax: download.max_concurrent_per_host,
    hosts: new Map(perHost),
    unpacksMax: threads,
    areUnpacksTuned: unpack.max_concurrent === "auto",
    unpacksPerImageMax: numberOf(unpack.max_concurrent_per_image, threads),
    layer: {
      entriesMax: unpack.max_entries,
      bytesMax: unpack.max_layer_size,
      ratioMax: unpack.max_ratio,
    },
    cores: availableCores(),
    ahead: {
      unpacksMax: threads,
      bytesPerSecond: prewarm.bandwidth_limit === "off" ? undefined : prewarm.bandwidth_limit,
    },
    durable: unpack.durability === "syncfs",
  };
}

/** What is bounded on this node or for an image, by the configuration's key and in its unit. */
export function limitsByKey(config: Config): ReadonlyMap<string, number> {
  const { downloadsMax, downloadsPerImageMax, unpacksMax, unpacksPerImageMax } = limitsOf(config);
  const { content, download, prewarm } = config;
  const all: readonly (readonly [string, number | "off"])[] = [
    ["download.max_concurrent", downloadsMax],
    ["download.max_concurrent_per_image", downloadsPerImageMax],
    ["unpack.max_concurrent", unpacksMax],
    ["unpack.max_concurrent_per_image", unpacksPerImageMax],
    ["content.spool_max_size", content.spool_max_size],
    ["download.bandwidth_limit", download.bandwidth_limit],
    ["prewarm.bandwidth_limit", prewarm.bandwidth_limit],
  ];
  return new Map(all.flatMap(([key, most]) => (most === "off" ? [] : [[key, most]])));
}
