// The two sides of a comparison: the same image by containerd's own CRI and by Hawser, each on fresh roots on tmpfs.

import { execFileSync } from "node:child_process";
import { PrivateContainerd } from "../test/harness/containerd.ts";
import { PrivateHawser } from "../test/harness/hawser.ts";
import type { PrivateRegistry } from "../test/harness/registry.ts";
import { cpuSeconds, peakMiB } from "./measure.ts";

export interface Run {
  readonly seconds: number;
  /** Of containerd with its helpers and, on Hawser's side, of Hawser. */
  readonly cpu: number;
  readonly registryCpu: number;
  /** Of the daemon that did the work. */
  readonly peakMiB: number;
}

export async function pullByContainerd(registry: PrivateRegistry, reference: string): Promise<Run> {
  await using containerd = await PrivateContainerd.start();
  return await timed([containerd.pid], containerd.pid, registry, async () => {
    await containerd.cri.mustPull(reference);
  });
}

export async function pullByHawser(registry: PrivateRegistry, reference: string, config = ""): Promise<Run> {
  await using containerd = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const run = await timed([containerd.pid, hawser.pid], hawser.pid, registry, async () => {
    await hawser.cri.mustPull(reference);
  });
  const metrics = await hawser.metrics();
  if (!metrics.includes('hawser_pulls_total{result="ok",path="accelerated"} 1')) {
    throw new Error(`the pull was not accelerated:\n${hawser.logs()}`);
  }
  return run;
}

/**
 * Takes and gives back as much memory as a pull needs. Some virtual machines return free pages to their host, and the
 * first touch of each then costs far more than it would on a node that has been up for a while.
 */
export function touchMemory(bytes: number): void {
  const file = `/dev/shm/touch-${process.pid}`;
  execFileSync("sh", ["-c", `head -c ${bytes} /dev/zero > ${file}; rm -f ${file}`]);
}

async function timed(
  pids: readonly number[],
  daemon: number,
  registry: PrivateRegistry,
  work: () => Promise<void>,
): Promise<Run> {
  const cpu = (): number => pids.reduce((sum, pid) => sum + cpuSeconds(pid), 0);
  const before = { cpu: cpu(), registry: cpuSeconds(registry.pid) };
  const began = performance.now();
  await work();
  const seconds = (performance.now() - began) / 1000;
  return {
    seconds,
    cpu: cpu() - before.cpu,
    registryCpu: cpuSeconds(registry.pid) - before.registry,
    peakMiB: peakMiB(daemon),
  };
}
