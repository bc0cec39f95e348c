// The floor: the least that any puller must do for an image's layers on this machine, as a yardstick.
//
// For each layer: read the file, sha256 of what was read, inflate (ISA-L or libzstd), sha256 of what comes out, write that to
// one file on tmpfs. Layers run side by side in as many processes as there are cores, each in one from end to end, the
// largest first. There is no network, no containerd and no tree of files.

import { type ChildProcess, fork } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { loadNative } from "../src/native.ts";
import { scratch } from "../test/harness/containerd.ts";
import type { BuiltImage } from "./images.ts";
import type { Packing } from "./recipes.ts";

export interface Floor {
  readonly seconds: number;
  readonly cpu: number;
}

interface Task {
  readonly packing: Packing;
  readonly from: string;
  readonly to: string;
}

const inputBytes = 256 * 1024;
const outputBytes = 1024 * 1024;
/** Tells a child of measureFloor from a program that imports it. */
const role = "floor-child";

/** Does it once, in processes that are up before the clock starts. Throws unless all that was packed came out. */
export async function measureFloor(images: readonly BuiltImage[]): Promise<Floor> {
  const folder = mkdtempSync(join(scratch(), "floor-"));
  const tasks = images
    .flatMap(({ files, packing }) => files.map((from) => ({ from, packing })))
    .toSorted((a, b) => statSync(b.from).size - statSync(a.from).size)
    .map(({ from, packing }, index): Task => ({ from, packing, to: join(folder, String(index)) }));
  const unpackedBytes = images.reduce((sum, image) => sum + image.unpackedBytes, 0);
  const count = Math.min(availableParallelism(), tasks.length);
  const children = Array.from({ length: count }, () => fork(fileURLToPath(import.meta.url), [role]));
  try {
    await Promise.all(children.map(async (child) => await answer(child)));
    const began = performance.now();
    const costs = await Promise.all(children.map(async (child) => await work(child, tasks)));
    const seconds = (performance.now() - began) / 1000;
    const outBytes = readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
    if (outBytes !== unpackedBytes)
      throw new Error(`the floor unpacked ${outBytes} bytes instead of ${unpackedBytes}`);
    return { seconds, cpu: costs.reduce((sum, cost) => sum + cost, 0) };
  } finally {
    await Promise.all(children.map(async (child) => await end(child)));
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Gives a child one task after another until none is left; returns its CPU seconds. */
async function work(child: ChildProcess, tasks: Task[]): Promise<number> {
  let cpu = 0;
  for (let task = tasks.shift(); task !== undefined; task = tasks.shift()) {
    child.send(task);
    cpu += await answer(child);
  }
  return cpu;
}

/** The next message of a child, which is a number; throws when it ends instead. */
async function answer(child: ChildProcess): Promise<number> {
  const ended = new AbortController();
  const giveUp = (): void => ended.abort();
  child.once("exit", giveUp);
  try {
    const [message] = (await once(child, "message", { signal: ended.signal })) as [number];
    return message;
  } finally {
    child.off("exit", giveUp);
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.kill("SIGKILL");
  await exited;
}

function unpack({ packing, from, to }: Task): void {
  const [packed, unpacked] = [createHash("sha256"), createHash("sha256")];
  const input = Buffer.allocUnsafe(inputBytes);
  const [source, target] = [openSync(from, "r"), openSync(to, "wx")];
  const write = (bytes: Buffer): void => {
    unpacked.update(bytes);
    if (bytes.length > 0) writeSync(target, bytes);
  };
  const inflate = packing === "none" ? write : inflateWith(packing, from, write);
  for (let read = readSync(source, input); read > 0; read = readSync(source, input)) {
    const bytes = input.subarray(0, read);
    packed.update(bytes);
    inflate(bytes);
  }
  packed.digest();
  unpacked.digest();
  closeSync(source);
  closeSync(target);
}

function inflateWith(
  packing: "gzip" | "zstd",
  from: string,
  write: (bytes: Buffer) => void,
): (bytes: Buffer) => void {
  const native = loadNative();
  if (native.kind === "missing") throw new Error(native.reason);
  const { binding } = native;
  const inflater = packing === "gzip" ? binding.createGzip() : binding.createZstd();
  const output = Buffer.allocUnsafe(outputBytes);
  const results = new Float64Array(2);
  return (bytes) => {
    for (
      let [used, filled] = [0, 0];
      used < bytes.length || filled === outputBytes;
      used += results[0] ?? 0
    ) {
      const state = binding.inflate(inflater, bytes, used, bytes.length, output, 0, outputBytes, results);
      if (state < 0) throw new Error(`${from} is no ${packing}`);
      filled = results[1] ?? 0;
      write(output.subarray(0, filled));
    }
  };
}

if (process.argv[2] === role) {
  process.on("message", (task: Task) => {
    const before = process.cpuUsage();
    unpack(task);
    const { user, system } = process.cpuUsage(before);
    process.send?.((user + system) / 1e6);
  });
  process.send?.(0);
}
