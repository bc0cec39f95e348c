// Settings that a running front cannot change: where it listens, and what it forwards to.

import type { Config } from "../config.ts";

const fixedKeys = [
  "cri.listen",
  "cri.max_message_size",
  "containerd.address",
  "fallback.enabled",
  "admin.listen",
  "admin.page",
  "admin.state_dir",
  "metrics.listen",
  "log.format",
] as const;

/** Those of them that differ. */
export function changedFixedKeys(present: Config, next: Config): string[] {
  return fixedKeys.filter((path) => valueAt(present, path) !== valueAt(next, path));
}

function valueAt(config: Config, path: (typeof fixedKeys)[number]): string {
  const [section, key] = path.split(".") as [keyof Config, string];
  return JSON.stringify((config[section] as Readonly<Record<string, unknown>>)[key]);
}
