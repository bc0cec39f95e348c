// npm run scale: what one more layer, entry, byte or image costs, up to far more than images have, and how long calls that
// only pass through take meanwhile.

import { parseArgs } from "node:util";
import { PrivateContainerd } from "../test/harness/containerd.ts";
import type { CriClient } from "../test/harness/cri.ts";
import { PrivateHawser } from "../test/harness/hawser.ts";
import { pushImage, type TestLayer } from "../test/harness/images.ts";
import { PrivateRegistry } from "../test/harness/registry.ts";
import { interruptible } from "./interrupt.ts";
import { bulkLayer, entriesLayer, noiseLayer } from "./made.ts";
import { machine, median, peakMiB, programs, table } from "./measure.ts";
import { mustBeAccelerated, pull, timeOfPulls, touchBytes } from "./sides.ts";

const mib = 1024 * 1024;

/** Something that there can be more of. */
interface Dimension {
  readonly unit: string;
  readonly counts: readonly number[];
  /** So many pulls of each, of which the median counts. */
  readonly runs: number;
  /** What a pull of so many writes, where that is much. */
  readonly writtenBytes?: (count: number) => number;
  readonly images: (
    count: number,
  ) => Promise<readonly (readonly TestLayer[])[]> | readonly (readonly TestLayer[])[];
}

const dimensions: Readonly<Record<string, Dimension>> = {
  layers: {
    unit: "layers of 100 KiB",
    counts: [1, 16, 64, 127],
    runs: 5,
    images: (count) => [Array.from({ length: count }, (_, index) => noiseLayer(`f${index}`, mib / 10))],
  },
  entries: {
    unit: "entries of one layer",
    counts: [1, 30_000, 100_000, 300_000],
    runs: 3,
    images: (count) => [[entriesLayer(count)]],
  },
  bytes: {
    unit: "MiB of one layer",
    counts: [1, 1024, 4096, 10_240],
    runs: 1,
    writtenBytes: (count) => count * mib,
    images: async (count) => [[await bulkLayer(count * mib)]],
  },
  images: {
    unit: "images of 10 MiB at once",
    counts: [1, 5, 10, 20],
    runs: 3,
    images: (count) => Array.from({ length: count }, (_, index) => [noiseLayer(`f${index}`, 10 * mib)]),
  },
};
const all = [...Object.keys(dimensions), "calls"];
const usage = `Usage: npm run scale [-- --only NAME[,NAME…]]

  --only NAME    ${all.join(", ")} (default: all of them)
`;

const { values } = parseArgs({
  options: { only: { type: "string", default: all.join(",") }, help: { type: "boolean" } },
});
const wanted = values.only.split(",");
if (values.help || !wanted.every((name) => all.includes(name))) {
  console.log(usage);
  process.exit(values.help ? 0 : 2);
}

await interruptible(async (signal) => {
  console.log(`${machine()}\n${programs()}`);
  for (const [name, dimension] of Object.entries(dimensions))
    if (wanted.includes(name)) console.log(`\n${await grow(dimension, signal)}`);
  if (wanted.includes("calls")) console.log(`\n${await callsUnderLoad(signal)}`);
});

/** A row for each count: seconds, and what each one above the least cost. */
async function grow(
  { unit, counts, runs, writtenBytes, images }: Dimension,
  signal: AbortSignal,
): Promise<string> {
  const rows: string[][] = [];
  let least: { readonly count: number; readonly seconds: number } | undefined;
  for (const count of counts) {
    await using registry = await PrivateRegistry.start();
    const references: string[] = [];
    for (const layers of await images(count))
      references.push((await pushImage(registry, `scale/${references.length}:v1`, layers)).reference);
    const measured: Measured[] = [];
    for (let run = 0; run < runs; run++) {
      const bytes = writtenBytes?.(count) ?? 0;
      await touchBytes(1.2 * bytes, signal);
      const zeros = await touchBytes(bytes, signal);
      measured.push({ zeros, ...(await pullAll(references, signal)) });
    }
    const seconds = median(measured.map((one) => one.seconds));
    const peak = Math.max(...measured.map((one) => one.peakMiB)).toFixed(0);
    least ??= { count, seconds };
    const more = count - least.count;
    const each = more === 0 ? "" : ((1e6 * (seconds - least.seconds)) / more).toFixed(0);
    const zeros = writtenBytes && median(measured.map((one) => one.zeros)).toFixed(2);
    rows.push([String(count), seconds.toFixed(2), each, peak, ...(zeros ? [zeros] : [])]);
  }
  const zeros = writtenBytes ? ["zeros, seconds"] : [];
  return table([[unit, "seconds", "µs for each more", "peak MiB", ...zeros], ...rows]);
}

interface Measured {
  /** Seconds that as many zeros took to write: a machine's memory need not be linear itself. */
  readonly zeros: number;
  readonly seconds: number;
  readonly peakMiB: number;
}

async function pullAll(references: readonly string[], signal: AbortSignal): Promise<Omit<Measured, "zeros">> {
  await using containerd = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const seconds = await timeOfPulls(hawser.cri, references, signal);
  await mustBeAccelerated(hawser, references.length);
  return { seconds, peakMiB: peakMiB(hawser.pid) };
}

/** ListImages through Hawser and at containerd itself, in turn, while images are pulled through Hawser. */
async function callsUnderLoad(signal: AbortSignal): Promise<string> {
  await using registry = await PrivateRegistry.start();
  await using containerd = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const references: string[] = [];
  for (let index = 0; index < 40; index++) {
    const layers = [noiseLayer(`noise${index}`, 10 * mib), entriesLayer(2000 + index)];
    references.push((await pushImage(registry, `calls/${index}:v1`, layers)).reference);
  }
  const over = new AbortController();
  const pulls = pullInTurn(hawser.cri, references, 4, signal).finally(() => over.abort());
  const [through, direct]: [number[], number[]] = [[], []];
  while (!over.signal.aborted) {
    through.push(await timeOfList(hawser.cri));
    direct.push(await timeOfList(containerd.cri));
  }
  await pulls;
  await mustBeAccelerated(hawser, references.length);
  const [ours, theirs] = [percentile(through, 0.99), percentile(direct, 0.99)];
  const bound = Math.max(2 * theirs, theirs + 20);
  const rows = [through, direct].map((times) =>
    [0.5, 0.99, 1].map((part) => percentile(times, part).toFixed(1)),
  );
  return `${table([
    [`ListImages while 40 images are pulled, ${through.length} calls each, ms`, "median", "p99", "worst"],
    ["through Hawser"].concat(rows[0] ?? []),
    ["containerd itself"].concat(rows[1] ?? []),
  ])}\np99 ${ours.toFixed(1)} ms, may be ${bound.toFixed(1)} ms: ${ours <= bound ? "met" : "MISSED"}`;
}

async function pullInTurn(
  cri: CriClient,
  references: readonly string[],
  atOnce: number,
  signal: AbortSignal,
): Promise<void> {
  const left = [...references];
  const one = async (): Promise<void> => {
    for (let next = left.shift(); next !== undefined; next = left.shift()) await pull(cri, next, signal);
  };
  await Promise.all(Array.from({ length: atOnce }, one));
}

async function timeOfList(cri: CriClient): Promise<number> {
  const began = performance.now();
  await cri.listImages();
  return performance.now() - began;
}

function percentile(times: readonly number[], part: number): number {
  const sorted = times.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? Number.NaN;
}
