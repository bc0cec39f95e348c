// The sockets of pullers, beside the front's own and named after it: `<cri.listen>.<pid of the front>.<number>`.
//
// A puller takes its socket away when it ends, and its front when it was killed. When both were killed the file stays,
// so a front removes what was named after fronts that are dead. No socket of a living front is touched.

import { readdir, readFile, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

export function pullerSocket(listen: string, number: number): string {
  return `${listen}.${process.pid}.${number}`;
}

/** For a front that has started no puller yet. What cannot be removed stays: it is in nobody's way. */
export async function sweepPullerSockets(listen: string): Promise<void> {
  const stem = `${basename(listen)}.`;
  for (const name of await readdir(dirname(listen)).catch(() => [])) {
    if (!name.startsWith(stem)) continue;
    const [, pid] = /^(\d+)\.\d+$/.exec(name.slice(stem.length)) ?? [];
    if (pid === undefined || (await isOther(Number(pid)))) continue;
    await rm(join(dirname(listen), name), { force: true }).catch(() => {});
  }
}

/** Another process has this id. Our own may be a dead front's: in a container it is always the same. */
async function isOther(pid: number): Promise<boolean> {
  if (pid === process.pid) return false;
  // Signals still reach what has ended and was not reaped, but it has no command line any more.
  const command = await readFile(`/proc/${pid}/cmdline`).catch(() => "");
  return command.length > 0;
}
