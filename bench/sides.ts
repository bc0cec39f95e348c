// The two sides of a comparison: the same image by containerd's own CRI and by Hawser, each on fresh roots on tmpfs.

import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { PrivateContainerd, scratch } from "../test/harness/containerd.ts";
import type { CriClient } from "../test/harness/cri.ts";
import { PrivateHawser } from "../test/harness/hawser.ts";
import type { PrivateRegistry } from "../test/harness/registry.ts";
import type { BuiltImage } from "./images.ts";
import { cpuSeconds, peakMiB } from "./measure.ts";

/** One pull, from the call to its answer. */
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

export async function pullByContainerd(
  registry: PrivateRegistry,
  image: BuiltImage,
  signal: AbortSignal,
): Promise<Run> {
  await touchMemory(image, signal);
  await using containerd = await PrivateContainerd.start();
  return await timedPull({ registry, containerd }, image, signal);
}

export async function pullByHawser(
  registry: PrivateRegistry,
  image: BuiltImage,
  config: string,
  signal: AbortSignal,
): Promise<Run> {
  await touchMemory(image, signal);
  await using containerd = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const run = await timedPull({ registry, containerd, hawser }, image, signal);
  await mustBeAccelerated(hawser);
  return run;
}

/** Throws, with the daemon's log, unless its only pull was its own work. */
export async function mustBeAccelerated(hawser: PrivateHawser): Promise<void> {
  const metrics = await hawser.metrics();
  if (!metrics.includes('hawser_pulls_total{result="ok",path="accelerated"} 1'))
    throw new Error(`Hawser left the pull to containerd:\n${hawser.logs()}`);
}

/** Pulls and returns the image's id; throws what the pull answered otherwise. */
export async function pull(cri: CriClient, reference: string, signal: AbortSignal): Promise<string> {
  signal.throwIfAborted();
  const reply = await cri.pull(reference, undefined, { signal });
  if ("value" in reply) return reply.value;
  throw new Error(`pull of ${reference}: code ${reply.code}: ${reply.message}`);
}

/**
 * Takes and gives back as much memory as a pull needs. Some virtual machines return free pages to their host, and the
 * first touch of each then costs far more than it would on a node that has been up for a while.
 */
export async function touchMemory(image: BuiltImage, signal: AbortSignal): Promise<void> {
  const folder = await mkdtemp(join(scratch(), "touch-"));
  const bytes = 2 * (image.compressedBytes + image.unpackedBytes);
  try {
    await promisify(execFile)("sh", ["-c", `exec head -c ${bytes} /dev/zero > ${folder}/zeros`], { signal });
  } finally {
    await rm(folder, { recursive: true });
  }
}

interface Servers {
  readonly registry: PrivateRegistry;
  readonly containerd: PrivateContainerd;
  readonly hawser?: PrivateHawser;
}

async function timedPull(servers: Servers, image: BuiltImage, signal: AbortSignal): Promise<Run> {
  const { registry, containerd, hawser } = servers;
  const asked = hawser ?? containerd;
  const cpu = (): number[] => [containerd, hawser, registry].map((one) => (one ? cpuSeconds(one.pid) : 0));
  const before = cpu();
  const began = performance.now();
  await pull(asked.cri, image.reference, signal);
  const seconds = (performance.now() - began) / 1000;
  const [containerdCpu = 0, hawserCpu = 0, registryCpu = 0] = cpu().map(
    (now, index) => now - (before[index] ?? 0),
  );
  return { seconds, containerdCpu, hawserCpu, registryCpu, peakMiB: peakMiB(asked.pid) };
}
