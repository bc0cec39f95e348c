// npm run bench: images pulled by containerds and by Hawser in turn, on fresh roots on tmpfs, with the floor beside them.
// Medians in tables; with --save also as JSON under bench/results/, and as the picture in the README.

import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { allMinors, containerdRelease } from "../test/harness/versions.ts";
import { chart } from "./chart.ts";
import { type Floor, measureFloor } from "./floor.ts";
import { interruptible } from "./interrupt.ts";
import { withLoad } from "./load.ts";
import { machine, programs } from "./measure.ts";
import { report } from "./report.ts";
import {
  commit,
  earlier,
  hawser,
  type Results,
  reference,
  type ScenarioResult,
  save,
  slower,
} from "./results.ts";
import { type Scenario, scenarios } from "./scenarios.ts";
import { containerdSide, hawserSide, type Run, type Side, touchMemory } from "./sides.ts";

const peers = allMinors.map((minor) => `containerd-${minor}`);
const usage = `Usage: npm run bench [-- --image NAME[,NAME…]] [--against PEER[,PEER…]] [--runs N] [--config TOML] [--save]

  --image NAME    ${scenarios.map(({ name, title }) => `${name} (${title})`).join(",\n                  ")}
                  (default: all of them)
  --against PEER  ${peers.join(", ")}, or containerd for the first of these (default containerd)
  --runs N        rounds of pulls by all sides, after one that is not counted (default 5)
  --config TOML   settings for Hawser, such as '[download]
chunk_size = "4MiB"'
  --save          keep the results under bench/results/, and draw them
`;

const { values } = parseArgs({
  options: {
    image: { type: "string", default: scenarios.map(({ name }) => name).join(",") },
    against: { type: "string", default: "containerd" },
    runs: { type: "string", default: "5" },
    config: { type: "string", default: "" },
    save: { type: "boolean", default: false },
    help: { type: "boolean" },
  },
});
const runs = Number(values.runs);
const wanted = values.image.split(",");
const chosen = scenarios.filter(({ name }) => wanted.includes(name));
const against = values.against.split(",").map((name) => (name === "containerd" ? reference : name));
const isUsable =
  wanted.every((name) => scenarios.some((one) => one.name === name)) &&
  against.every((name) => peers.includes(name)) &&
  Number.isInteger(runs) &&
  runs >= 1;
if (values.help || !isUsable) {
  console.log(usage);
  process.exit(values.help ? 0 : 2);
}

const say = (text: string): void => console.error(text);
await interruptible(async (signal) => {
  const sides = sidesOf(against);
  const done: ScenarioResult[] = [];
  for (const scenario of chosen) done.push(await measure(scenario, sides, signal));
  const results: Results = {
    date: new Date().toISOString(),
    commit: commit(),
    machine: machine(),
    versions: programs(),
    command: command(),
    scenarios: done,
  };
  console.log(report(results, scenarios));
  const before = earlier(results);
  for (const line of before ? slower(results, before) : []) console.log(`slower: ${line}`);
  if (!values.save) return;
  console.log(`kept in ${save(results)}`);
  writeFileSync(fileURLToPath(new URL("results/latest.svg", import.meta.url)), chart(results));
});

function sidesOf(names: readonly string[]): ReadonlyMap<string, Side> {
  const others = names.map((name) => {
    const minor = allMinors.find((one) => name === `containerd-${one}`);
    const release = minor && name !== reference ? containerdRelease(minor) : undefined;
    return [name, containerdSide(release)] as const;
  });
  return new Map([[hawser, hawserSide(values.config)], ...others]);
}

function command(): string {
  const args = process.argv.slice(2).map((arg) => (/\s/.test(arg) ? JSON.stringify(arg) : arg));
  return ["npm run bench", ...(args.length > 0 ? ["--"] : []), ...args].join(" ");
}

async function measure(
  scenario: Scenario,
  sides: ReadonlyMap<string, Side>,
  signal: AbortSignal,
): Promise<ScenarioResult> {
  const floors: Floor[] = [];
  const found: Record<string, Run[]> = Object.fromEntries([...sides.keys()].map((name) => [name, []]));
  const images = await withLoad(scenario, say, signal, async (load) => {
    for (let round = 0; round <= runs; round++) {
      await touchMemory(load.images, signal);
      const floor = await measureFloor(load.images);
      const told: string[] = [];
      for (const [name, side] of turns(sides, round)) {
        const run = await side(load, signal);
        told.push(`${name} ${run.seconds.toFixed(2)} s`);
        if (round > 0) found[name]?.push(run);
      }
      if (round > 0) floors.push(floor);
      say(`${scenario.name}, ${round === 0 ? "warm-up" : `round ${round}`}: ${told.join(", ")}`);
    }
    return load.images;
  });
  const sum = (key: "compressedBytes" | "unpackedBytes"): number =>
    images.reduce((bytes, image) => bytes + image[key], 0);
  const bytes = { compressedBytes: sum("compressedBytes"), unpackedBytes: sum("unpackedBytes") };
  return { name: scenario.name, title: scenario.title, ...bytes, floors, sides: found };
}

/** Who goes first alternates, so that no side always finds the machine as the same other one left it. */
function turns(sides: ReadonlyMap<string, Side>, round: number): (readonly [string, Side])[] {
  const all = [...sides];
  const first = round % all.length;
  return [...all.slice(first), ...all.slice(0, first)];
}
