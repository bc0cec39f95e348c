// What the configuration means for pulls: how much of everything may go on at once, and how large a layer may be.

import type { Config } from "./config.ts";
import { availableCores } from "./cores.ts";
import type { PullLimits } from "./pull/pull.ts";

/** Threads that unpack, which is also how many layers are unpacked at once. */
export function threadsOf({ unpack }: Config): number {
  return unpack.max_concurrent === "auto" ? availableCores() : unpack.max_concurrent;
}

export function limitsOf(config: Config): PullLimits {
  const { download, unpack, registry } = config;
  const threads = threadsOf(config);
  const perHost = [...registry.host].flatMap(([host, { max_concurrent }]): [string, number][] =>
    max_concurrent === undefined ? [] : [[host, max_concurrent]],
  );
  return {
    downloadsMax: download.max_concurrent,
    downloadsPerImageMax: download.max_concurrent_per_image,
    downloadsPerHostMax: download.max_concurrent_per_host,
    hosts: new Map(perHost),
    unpacksMax: threads,
    unpacksPerImageMax:
      unpack.max_concurrent_per_image === "auto" ? threads : unpack.max_concurrent_per_image,
    layer: {
      entriesMax: unpack.max_entries,
      bytesMax: unpack.max_layer_size,
      ratioMax: unpack.max_ratio,
    },
    durable: unpack.durability === "syncfs",
  };
}
