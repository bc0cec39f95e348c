// What this machine and this process have done until now, read a few times a pull, to tell afterwards whether cores were
// short. What cannot be read says nothing, and never fails a pull.

import { readFileSync } from "node:fs";
import type { Vitals } from "./trace.ts";
import { threadUsage } from "./usage.ts";

/** Of a clock tick (USER_HZ), which Linux has fixed at a hundredth of a second for programs. */
const tickMs = 10;

/** To be called in the main thread. */
export function vitals(): Vitals {
  const { active } = performance.eventLoopUtilization();
  return {
    atMs: performance.now(),
    loopMs: active,
    mainUsage: threadUsage(),
    ...coresOf(readStat()),
  };
}

/** The first line of /proc/stat (proc_stat(5)): user nice system idle iowait irq softirq steal, for all cores together. */
function coresOf(stat: string): Pick<Vitals, "coresMs" | "idleMs"> {
  const numbers = /^cpu +([\d ]+)/.exec(stat)?.[1]?.trim().split(" ").map(Number) ?? [];
  // Time of guests, which follows, is in user time already.
  const [user = 0, nice = 0, system = 0, idle = 0, waiting = 0, irq = 0, softirq = 0, steal = 0] = numbers;
  const busy = user + nice + system + irq + softirq + steal;
  return { coresMs: (busy + idle + waiting) * tickMs, idleMs: (idle + waiting) * tickMs };
}

function readStat(): string {
  try {
    return readFileSync("/proc/stat", "utf8");
  } catch {
    return "";
  }
}
