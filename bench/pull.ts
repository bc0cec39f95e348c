// npm run bench: one image pulled by containerd and by Hawser in turn, on fresh roots on tmpfs, medians in one table,
// with the floor beside them.

import { parseArgs } from "node:util";
import { PrivateRegistry } from "../test/harness/registry.ts";
import { type Floor, measureFloor } from "./floor.ts";
import { type BuiltImage, pushRecipe, sizes } from "./images.ts";
import { interruptible } from "./interrupt.ts";
import { machine, median, programs, spread, table } from "./measure.ts";
import { type Recipe, recipes } from "./recipes.ts";
import { pullByContainerd, pullByHawser, type Run, touchMemory } from "./sides.ts";

const usage = `Usage: npm run bench [-- --image NAME] [--runs N] [--config TOML]

  --image NAME    ${Object.entries(recipes)
    .map(([name, { title }]) => `${name} (${title})`)
    .join(",\n                  ")}
                  (default go)
  --runs N        pairs of pulls, after one that is not counted (default 5)
  --config TOML   settings for Hawser, such as '[download]
chunk_size = "4MiB"'
`;

/** What was measured side by side, within seconds of each other. */
interface Round {
  readonly floor: Floor;
  readonly theirs: Run;
  readonly ours: Run;
}

const { values } = parseArgs({
  options: {
    image: { type: "string", default: "go" },
    runs: { type: "string", default: "5" },
    config: { type: "string", default: "" },
    help: { type: "boolean" },
  },
});
const runs = Number(values.runs);
const recipe = recipes[values.image];
if (values.help || recipe === undefined || !Number.isInteger(runs) || runs < 1) {
  console.log(usage);
  process.exit(values.help ? 0 : 2);
}

const say = (text: string): void => console.error(text);
await interruptible(async (signal) => {
  const versions = programs();
  await using registry = await PrivateRegistry.start();
  const image = await pushRecipe(registry, recipe, say, signal);
  const rounds: Round[] = [];
  for (let index = 0; index <= runs; index++) {
    const round = await measure(registry, image, index, signal);
    const [theirs, ours] = [round.theirs.seconds, round.ours.seconds];
    const name = index === 0 ? "warm-up" : `pair ${index}`;
    say(
      `${name}: containerd ${theirs.toFixed(2)} s, Hawser ${ours.toFixed(2)} s (${(theirs / ours).toFixed(2)}x)`,
    );
    if (index > 0) rounds.push(round);
  }
  report(recipe, image, versions, rounds);
});

/** Who goes first alternates, so that neither side always finds the machine as the other left it. */
async function measure(
  registry: PrivateRegistry,
  image: BuiltImage,
  index: number,
  signal: AbortSignal,
): Promise<Round> {
  await touchMemory(image, signal);
  const floor = await measureFloor(image);
  if (index % 2 === 0) {
    const theirs = await pullByContainerd(registry, image, signal);
    return { floor, theirs, ours: await pullByHawser(registry, image, values.config, signal) };
  }
  const ours = await pullByHawser(registry, image, values.config, signal);
  return { floor, theirs: await pullByContainerd(registry, image, signal), ours };
}

function report({ title }: Recipe, image: BuiltImage, versions: string, rounds: readonly Round[]): void {
  const args = process.argv.slice(2).map((arg) => (/\s/.test(arg) ? JSON.stringify(arg) : arg));
  const command = ["npm run bench", ...(args.length > 0 ? ["--"] : []), ...args].join(" ");
  const theirs = rounds.map((round) => round.theirs);
  const ours = rounds.map((round) => round.ours);
  const rows = [
    ["", "seconds", "range", "containerd CPU s", "Hawser CPU s", "registry CPU s", "peak MiB"],
    pullRow("containerd", theirs),
    pullRow("Hawser", ours),
    floorRow(rounds.map((round) => round.floor)),
  ];
  const ratios = rounds.map((round) => round.theirs.seconds / round.ours.seconds);
  console.log(`
${title}: ${sizes(image)}
${machine()}
${versions}
${command}: ${rounds.length} pairs, taking turns to go first, fresh roots on tmpfs, medians

${table(rows)}

Hawser is ${median(ratios).toFixed(2)}x faster (median of the pairs' ratios)`);
}

function pullRow(name: string, all: readonly Run[]): string[] {
  const middle = (key: keyof Run): string => median(all.map((run) => run[key])).toFixed(2);
  const costs = [middle("containerdCpu"), middle("hawserCpu"), middle("registryCpu")];
  const peak = Math.max(...all.map((run) => run.peakMiB)).toFixed(0);
  return [name, middle("seconds"), spread(all.map((run) => run.seconds)), ...costs, peak];
}

/** What the floor does stands in floor.ts; its CPU time is of no daemon. */
function floorRow(all: readonly Floor[]): string[] {
  const seconds = all.map((floor) => floor.seconds);
  const cpu = median(all.map((floor) => floor.cpu)).toFixed(2);
  return [`floor (${cpu} CPU s)`, median(seconds).toFixed(2), spread(seconds), "-", "-", "-", "-"];
}
