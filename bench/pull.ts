// npm run bench: one image pulled by containerd and by Hawser in turn, on fresh roots on tmpfs, medians in one table.

import { execFileSync } from "node:child_process";
import { parseArgs } from "node:util";
import { PrivateRegistry } from "../test/harness/registry.ts";
import { goLike, pushRecipe } from "./images.ts";
import { machine, median, table } from "./measure.ts";
import { pullByContainerd, pullByHawser, type Run, touchMemory } from "./sides.ts";

const usage = `Usage: npm run bench [-- --runs N] [--config TOML]

  --runs N        pairs of pulls, after one that is not counted (default 5)
  --config TOML   settings for Hawser, such as '[download]
chunk_size = "4MiB"'
`;

const { values } = parseArgs({
  options: {
    runs: { type: "string", default: "5" },
    config: { type: "string", default: "" },
    help: { type: "boolean" },
  },
});
const runs = Number(values.runs);
if (values.help || !Number.isInteger(runs) || runs < 1) {
  console.log(usage);
  process.exit(values.help ? 0 : 2);
}

const say = (text: string): void => console.error(text);
await using registry = await PrivateRegistry.start();
const image = await pushRecipe(registry, goLike, say);
const pairs: { readonly theirs: Run; readonly ours: Run }[] = [];
for (let index = 0; index <= runs; index++) {
  touchMemory(2 * (image.compressedBytes + image.unpackedBytes));
  const theirs = await pullByContainerd(registry, image.reference);
  const ours = await pullByHawser(registry, image.reference, values.config);
  const ratio = (theirs.seconds / ours.seconds).toFixed(2);
  say(
    `${index === 0 ? "warm-up" : `pair ${index}`}: containerd ${theirs.seconds.toFixed(2)} s, Hawser ${ours.seconds.toFixed(2)} s (${ratio}x)`,
  );
  if (index > 0) pairs.push({ theirs, ours });
}

const mib = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MiB`;
const row = (name: string, all: readonly Run[]): string[] => [
  name,
  median(all.map((run) => run.seconds)).toFixed(2),
  `${Math.min(...all.map((run) => run.seconds)).toFixed(2)}-${Math.max(...all.map((run) => run.seconds)).toFixed(2)}`,
  median(all.map((run) => run.cpu)).toFixed(2),
  median(all.map((run) => run.registryCpu)).toFixed(2),
  Math.max(...all.map((run) => run.peakMiB)).toFixed(0),
];
const version = execFileSync("containerd", ["--version"], { encoding: "utf8" }).split(" ")[2];
console.log(
  `\n${goLike.title}: ${mib(image.compressedBytes)} compressed, ${mib(image.unpackedBytes)} unpacked`,
);
console.log(
  `${machine()}; containerd ${version} with unpigz; ${runs} interleaved pairs, fresh roots on tmpfs, medians\n`,
);
console.log(
  table([
    ["", "seconds", "range", "CPU s", "registry CPU s", "peak MiB"],
    row(
      "containerd",
      pairs.map((pair) => pair.theirs),
    ),
    row(
      "Hawser (and containerd)",
      pairs.map((pair) => pair.ours),
    ),
  ]),
);
const ratios = pairs.map(({ theirs, ours }) => theirs.seconds / ours.seconds);
console.log(`\nHawser is ${median(ratios).toFixed(2)}x faster (median of the pairs' ratios)`);
