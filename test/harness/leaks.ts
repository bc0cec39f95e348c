// What a process holds and what it has put on disk, so that a test can tell what it has left behind.
//
// Looked at are files in given folders, mounts below them, descriptors into them, worker threads, what keeps libuv's loop
// alive, child processes, and processes further down, which are told by a variable of their environment.

import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import type { Worker } from "node:worker_threads";

export interface Looked {
  /** How many things of each kind were looked at, leaks or not; who sees none of a kind is blind for it. */
  readonly looked: Readonly<Record<"folders" | "mounts" | "descriptors" | "threads" | "processes", number>>;
  readonly found: ReadonlyMap<string, number>;
}

/** Resources of libuv that come and go by themselves: of vitest's own, and of its messages. */
const passing = new Set(["Timeout", "Immediate", "FSReqPromise", "FSReqCallback", "PipeWrap", "TTYWrap"]);

const workers = new Set<Worker>();
process.on("worker", (worker) => {
  workers.add(worker);
  worker.once("exit", () => workers.delete(worker));
});

/** `mark` is a "NAME=value" that only this process gives to its children. */
export function look(places: readonly string[], mark: string): Looked {
  const mounts = readFileSync("/proc/self/mounts", "utf8").trim().split("\n");
  const descriptors = readDescriptors();
  const threads = readdirSync("/proc/self/task");
  const processes = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  const children = threads.flatMap(childrenOf);
  const marked = processes.filter((pid) => !children.includes(pid) && isMarked(pid, mark));
  const all = [
    ...places.flatMap((place) => readdirSync(place).map((name) => `file ${join(place, name)}`)),
    ...mounts
      .map((line) => line.split(" ")[1] ?? "")
      .filter((path) => isBelow(path, places))
      .map((path) => `mount ${path}`),
    ...descriptors.filter((target) => isBelow(target, places)).map((target) => `descriptor ${target}`),
    ...Array.from(workers, ({ threadId }) => `worker ${threadId}`),
    ...process
      .getActiveResourcesInfo()
      .filter((kind) => !passing.has(kind))
      .map((kind) => `resource ${kind}`),
    ...[...children, ...marked].map((pid) => `process ${nameOf(pid)}`),
  ];
  const found = new Map<string, number>();
  for (const one of all) found.set(one, (found.get(one) ?? 0) + 1);
  return {
    looked: {
      folders: places.length,
      mounts: mounts.length,
      descriptors: descriptors.length,
      threads: threads.length,
      processes: processes.length,
    },
    found,
  };
}

/** What there is more of than before, given a moment for what is closing, but for what may stay. */
export async function leaksSince(
  before: Looked,
  places: readonly string[],
  mark: string,
  mayStay: (what: string) => boolean = () => false,
): Promise<string[]> {
  for (let patience = 100; ; patience--) {
    const now = look(places, mark);
    const blind = Object.entries(now.looked).filter(([, count]) => count === 0);
    if (blind.length > 0)
      return blind.map(([kind]) => `nothing was seen of ${kind}, not even what is always there`);
    const more = [...now.found].filter(([what, count]) => count > (before.found.get(what) ?? 0));
    const left = more.map(([what, count]) => `${count} x ${what}`).filter((what) => !mayStay(what));
    if (left.length === 0 || patience === 0) return left;
    await new Promise((resolve) => {
      setTimeout(resolve, 20);
    });
  }
}

function isBelow(path: string, places: readonly string[]): boolean {
  return places.some((place) => path.startsWith(`${place}/`));
}

/** Where they lead; those of removed files, too. */
function readDescriptors(): string[] {
  return readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      // The one that read the directory is closed by now.
      return [];
    }
  });
}

function childrenOf(thread: string): string[] {
  const children = textOf(`/proc/self/task/${thread}/children`).trim();
  return children === "" ? [] : children.split(" ");
}

function isMarked(pid: string, mark: string): boolean {
  return textOf(`/proc/${pid}/environ`).split("\0").includes(mark) && nameOf(pid) !== "ended";
}

function nameOf(pid: string): string {
  return textOf(`/proc/${pid}/comm`).trim() || "ended";
}

/** Empty for what is gone by now. */
function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
