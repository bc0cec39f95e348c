// How many cores this process may keep busy: the fewer of its CPU affinity and of what its control groups allow.
//
// Node counts affinity; that control groups limit CPU time it has only known since libuv 1.49, so not on Node 20. Only
// read once, at start; nothing that cannot be read is ever an error, it just does not limit. Another process's are for
// whoever looks at the daemon from outside.

import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";

/** At least 1. Part of a core counts as one: half a core less would be idle, half a thread more is only throttled. */
export function availableCores(root = "/", pid?: number): number {
  const limits = groupsOf(root, pid ?? "self").flatMap((group) => coresOf(group));
  const affinity = pid === undefined ? availableParallelism() : affinityOf(root, pid);
  return Math.max(1, Math.ceil(Math.min(affinity, ...limits)));
}

/** Numbers in a list such as `0-3,8` (proc_pid_status(5)). */
function affinityOf(root: string, pid: number): number {
  const list = /^Cpus_allowed_list:\s*(\S+)$/m.exec(read(join(root, `proc/${pid}/status`)))?.[1];
  if (list === undefined) return availableParallelism();
  const counts = list.split(",").map((range) => {
    const [first = 0, last = first] = range.split("-").map(Number);
    return last - first + 1;
  });
  return counts.reduce((sum, count) => sum + count, 0);
}

/** Directories of our control groups and of those above them, any of which may hold the limit (cgroups(7)). */
function groupsOf(root: string, pid: number | "self"): string[] {
  return read(join(root, `proc/${pid}/cgroup`))
    .split("\n")
    .flatMap((line) => {
      const [, controllers = "", path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
      const isUnified = controllers === "";
      if (path === undefined || !(isUnified || controllers.split(",").includes("cpu"))) return [];
      const groups = [path];
      for (let group = path; group !== "/"; ) groups.push((group = dirname(group)));
      // Inside of a container without a namespace of its own, only the last of these directories exists: its own.
      return groups.map((group) => join(root, "sys/fs/cgroup", controllers, group));
    });
}

function coresOf(group: string): number[] {
  const unified = /^(\d+) (\d+)$/m.exec(read(join(group, "cpu.max")));
  const quota = Number(unified?.[1] ?? read(join(group, "cpu.cfs_quota_us")));
  const period = Number(unified?.[2] ?? read(join(group, "cpu.cfs_period_us")));
  // "max", -1, or nothing there: no limit.
  return quota > 0 && period > 0 ? [quota / period] : [];
}

function read(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
