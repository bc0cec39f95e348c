// Results as they are kept under bench/results/: one file a run, and what a later run makes of an earlier one.

import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Floor } from "./floor.ts";
import { median } from "./measure.ts";
import type { Run } from "./sides.ts";

/** All that was measured of one scenario, round by round; the n-th of each side were measured within seconds of each other. */
export interface ScenarioResult {
  readonly name: string;
  readonly title: string;
  readonly compressedBytes: number;
  readonly unpackedBytes: number;
  readonly floors: readonly Floor[];
  readonly sides: Readonly<Record<string, readonly Run[]>>;
}

export interface Results {
  readonly date: string;
  /** Of the sources; with a plus when they were changed since. */
  readonly commit: string;
  readonly machine: string;
  readonly versions: string;
  readonly command: string;
  readonly scenarios: readonly ScenarioResult[];
}

export const hawser = "hawser";
/** The one that goals are meant against. */
export const reference = "containerd-1.6";

const folder = fileURLToPath(new URL("results", import.meta.url));
/** A ratio that is smaller by more than this is told. */
const slowerBy = 0.1;

/** How many times as fast as a peer Hawser was: the median of the rounds' ratios. */
export function ratioTo(peer: string, { sides }: ScenarioResult): number {
  const ours = sides[hawser] ?? [];
  const theirs = sides[peer] ?? [];
  return median(ours.map((run, index) => (theirs[index]?.seconds ?? Number.NaN) / run.seconds));
}

export function commit(): string {
  const git = (...args: string[]): string => execFileSync("git", args, { encoding: "utf8" }).trim();
  const isChanged = git("status", "--porcelain", "--", "src", "native", "bench") !== "";
  return `${git("rev-parse", "--short=10", "HEAD")}${isChanged ? "+" : ""}`;
}

/** Returns the path of the file. */
export function save(results: Results): string {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, `${results.date.slice(0, 10)}-${results.commit}.json`);
  writeFileSync(path, `${JSON.stringify(results, undefined, 1)}\n`);
  return path;
}

/** The newest that is kept, unless it is this one. */
export function earlier({ date }: Results): Results | undefined {
  mkdirSync(folder, { recursive: true });
  const all = readdirSync(folder)
    .filter((name) => name.endsWith(".json"))
    .map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as Results)
    .filter((one) => one.date < date);
  return all.toSorted((a, b) => (a.date < b.date ? -1 : 1)).at(-1);
}

/** A line for each scenario that got slower beside its peer. Seconds of two runs are not compared: machines differ, and days. */
export function slower(now: Results, before: Results): string[] {
  return now.scenarios.flatMap((scenario) => {
    const former = before.scenarios.find(({ name }) => name === scenario.name);
    return Object.keys(scenario.sides).flatMap((peer) => {
      if (peer === hawser || former?.sides[peer] === undefined) return [];
      const [is, was] = [ratioTo(peer, scenario), ratioTo(peer, former)];
      if (is >= was * (1 - slowerBy)) return [];
      return [
        `${scenario.name}: ${is.toFixed(2)}x of ${peer}, and was ${was.toFixed(2)}x at ${before.commit}`,
      ];
    });
  });
}
