// The sides of a comparison: the same images by a containerd's own CRI and by Hawser, each on fresh roots on tmpfs.

import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { PrivateContainerd, scratch } from "../test/harness/containerd.ts";
import type { CriClient } from "../test/harness/cri.ts";
import { PrivateHawser } from "../test/harness/hawser.ts";
import type { Release } from "../test/harness/versions.ts";
import type { BuiltImage } from "./images.ts";
import type { Load } from "./load.ts";
import { cpuSeconds, peakMiB } from "./measure.ts";

/** One or several pulls at once, from the first call to the last answer. */
export interface Run {
  readonly seconds: number;
  /** CPU seconds, of containerd with the programs that it started (unpigz among them). */
  readonly containerdCpu: number;
  /** 0 when Hawser took no part. */
  readonly hawserCpu: number;
  readonly registryCpu: number;
  /** Of the daemon that was asked. */
  readonly peakMiB: number;
}

/** Pulls a load on fresh roots. */
export type Side = (load: Load, signal: AbortSignal) => Promise<Run>;

/** containerd's own fetching of one blob by several requests, where it has that. */
const parallelFetch = `[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 8
  concurrent_layer_fetch_buffer = 8388608
`;

export function containerdSide(release?: Release): Side {
  const newest =
    release?.minor === "2.1"
      ? ({ format: 3, more: parallelFetch, env: { CONTAINERD_DISABLE_IGZIP: "0" } } as const)
      : {};
  return async (load, signal) => {
    await touchMemory(load.images, signal);
    const own = { ...(release && { release }), ...newest, ...certsOf(load) };
    await using containerd = await PrivateContainerd.start(own);
    return await timed({ containerd }, load, signal);
  };
}

/** Beside the machine's own containerd, with settings in TOML. */
export function hawserSide(config: string): Side {
  return async (load, signal) => {
    await touchMemory(load.images, signal);
    await using containerd = await PrivateContainerd.start(certsOf(load));
    await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
    const run = await timed({ containerd, hawser }, load, signal);
    await mustBeAccelerated(hawser, load.images.length);
    return run;
  };
}

/** What a containerd must be started with. */
export function certsOf({ certs }: Load): { readonly configPath?: string } {
  return certs === undefined ? {} : { configPath: certs };
}

/** Throws, with the daemon's log, unless all that it pulled was its own work. */
export async function mustBeAccelerated(hawser: PrivateHawser, pulls = 1): Promise<void> {
  const metrics = await hawser.metrics();
  if (!metrics.includes(`hawser_pulls_total{result="ok",path="accelerated"} ${pulls}\n`))
    throw new Error(`Hawser left the pull to containerd:\n${hawser.logs()}`);
}

/** Pulls and returns the image's id; throws what the pull answered otherwise. */
export async function pull(cri: CriClient, reference: string, signal: AbortSignal): Promise<string> {
  signal.throwIfAborted();
  const reply = await cri.pull(reference, undefined, { signal });
  if ("value" in reply) return reply.value;
  throw new Error(`pull of ${reference}: code ${reply.code}: ${reply.message}`);
}

/** Seconds from the first of these calls, made at once, to the last answer. */
export async function timeOfPulls(
  cri: CriClient,
  references: readonly string[],
  signal: AbortSignal,
): Promise<number> {
  const began = performance.now();
  await Promise.all(references.map((reference) => pull(cri, reference, signal)));
  return (performance.now() - began) / 1000;
}

/** As much memory as pulling these needs, and as much again. */
export async function touchMemory(images: readonly BuiltImage[], signal: AbortSignal): Promise<void> {
  await touchBytes(
    images.reduce((sum, one) => sum + 2 * (one.compressedBytes + one.unpackedBytes), 0),
    signal,
  );
}

/**
 * Takes and gives back so much memory, and returns how many seconds that took. Some virtual machines return free pages to their host, and the first touch of
 * each then costs far more than it would on a node that has been up for a while.
 */
export async function touchBytes(bytes: number, signal: AbortSignal): Promise<number> {
  const folder = await mkdtemp(join(scratch(), "touch-"));
  const write = `exec head -c ${Math.ceil(bytes)} /dev/zero > ${folder}/zeros`;
  try {
    const began = performance.now();
    await promisify(execFile)("sh", ["-c", write], { signal });
    return (performance.now() - began) / 1000;
  } finally {
    await rm(folder, { recursive: true });
  }
}

interface Servers {
  readonly containerd: PrivateContainerd;
  readonly hawser?: PrivateHawser;
}

async function timed({ containerd, hawser }: Servers, load: Load, signal: AbortSignal): Promise<Run> {
  const { registryPid, references } = load;
  const asked = hawser ?? containerd;
  const pids = [containerd.pid, hawser?.pid, registryPid];
  const cpu = (): number[] => pids.map((pid) => (pid === undefined ? 0 : cpuSeconds(pid)));
  const before = cpu();
  const seconds = await timeOfPulls(asked.cri, references, signal);
  const [containerdCpu = 0, hawserCpu = 0, registryCpu = 0] = cpu().map(
    (now, index) => now - (before[index] ?? 0),
  );
  return { seconds, containerdCpu, hawserCpu, registryCpu, peakMiB: peakMiB(asked.pid) };
}
