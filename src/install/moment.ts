// Time since boot, and when a process was started in it.

import { readFileSync } from "node:fs";
import type { Moment } from "./record.ts";

/** USER_HZ, which is 100 on every architecture that Hawser has a bundle for (proc(5)). */
const ticksPerSecond = 100;

export function thisMoment(): Moment {
  const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  return { boot, seconds: Number(readFileSync("/proc/uptime", "utf8").split(" ", 1)[0]) };
}

/** Undefined when it has ended. */
export function startOf(pid: number): Moment | undefined {
  try {
    // Its name may hold anything, brackets included.
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
      .replace(/^.*\)\s/s, "")
      .split(" ");
    return { ...thisMoment(), seconds: Number(fields[19]) / ticksPerSecond };
  } catch {
    return undefined;
  }
}

/** A moment of an earlier boot is before all of this one. */
export function isAfter(one: Moment, other: Moment): boolean {
  return one.boot !== other.boot || one.seconds >= other.seconds;
}
