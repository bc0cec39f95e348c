// Limits of the processes that pulls need: descriptors, which connections, spools and unpacking all take.

import type { Context, Finding } from "./doctor.ts";
import { daemonOf } from "./processes.ts";

/** Connections, spools and trees of many pulls at once stay far below this. */
const descriptorsMin = 4096;

export async function* checkLimits({ options, tree, processes }: Context): AsyncGenerator<Finding> {
  const [containerd] = await processes.listening(options.containerd.address);
  const daemon = daemonOf(await processes.listening(options.socket));
  for (const [name, unit, pid] of [
    ["the daemon", "hawser.service", daemon?.pid],
    ["containerd", "containerd.service", containerd?.pid],
  ] as const) {
    const what = `open files of ${name}`;
    if (pid === undefined) yield { state: "unknown", what, finding: "its process was not found" };
    else yield judge(what, unit, await tree.read(`/proc/${pid}/limits`));
  }
}

function judge(what: string, unit: string, limits: string): Finding {
  const soft = /^Max open files\s+(\d+|unlimited)/m.exec(limits)?.[1];
  if (soft === undefined) return { state: "unknown", what, finding: "its limits do not say" };
  if (soft === "unlimited" || Number(soft) >= descriptorsMin) return { state: "ok", what, finding: soft };
  const todo = `set LimitNOFILE=${descriptorsMin * 16} for ${unit} and restart it`;
  return { state: "slow", what, finding: `${soft}, which many pulls at once may use up`, todo };
}
