// What a thread has had of the cores, by the kernel's own clocks.

import { readFileSync } from "node:fs";
import { hrtime } from "node:process";

/** Milliseconds since the thread began: at work, and able to work while others had the cores. */
export interface ThreadUsage {
  readonly onCoreMs: number;
  readonly queuedMs: number;
}

/** Of the thread that asks (proc_pid_schedstat, Documentation/scheduler/sched-stats); undefined on a kernel that does not count. */
export function threadUsage(): ThreadUsage | undefined {
  try {
    const [onCore, queued] = readFileSync("/proc/thread-self/schedstat", "latin1").split(" ").map(Number);
    if (!onCore || queued === undefined) return undefined;
    return { onCoreMs: onCore / 1e6, queuedMs: queued / 1e6 };
  } catch {
    return undefined;
  }
}

/** Milliseconds by the one clock that all threads have: `performance.now()` begins anew in each of them. */
export function sharedNowMs(): number {
  return Number(hrtime.bigint()) / 1e6;
}

/** What the thread that asks has had from now on. */
export function stopwatch(): () => ThreadUsage | undefined {
  const before = threadUsage();
  return () => {
    const after = threadUsage();
    return before && after && usageBetween(before, after);
  };
}

export function usageBetween(before: ThreadUsage, after: ThreadUsage): ThreadUsage {
  return { onCoreMs: after.onCoreMs - before.onCoreMs, queuedMs: after.queuedMs - before.queuedMs };
}
