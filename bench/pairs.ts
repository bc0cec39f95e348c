// npm run pairs: small pulls, which take so little that single runs say nothing. One containerd and one containerd with
// Hawser stay up, and both pull the same image, one right after the other, again and again.

import { parseArgs } from "node:util";
import { PrivateContainerd } from "../test/harness/containerd.ts";
import type { CriClient } from "../test/harness/cri.ts";
import { PrivateHawser } from "../test/harness/hawser.ts";
import { pushImage } from "../test/harness/images.ts";
import { PrivateRegistry } from "../test/harness/registry.ts";
import { interruptible } from "./interrupt.ts";
import { noiseLayer } from "./made.ts";
import { machine, median, programs, table } from "./measure.ts";
import { mustBeAccelerated, timeOfPulls } from "./sides.ts";

const usage = `Usage: npm run pairs [-- --pairs N] [--config TOML]

  --pairs N      pulls by each side (default 40), after five that are not counted
  --config TOML  settings for Hawser
`;
/** How much slower a small pull may be. */
const ratioMax = 1.05;
/** A difference that chance makes more often than this is none, if there are pairs enough to have shown one. */
const chanceMax = 0.05;
const pairsMin = 40;
const warmUps = 5;

const { values } = parseArgs({
  options: {
    pairs: { type: "string", default: "40" },
    config: { type: "string", default: "" },
    help: { type: "boolean" },
  },
});
const pairs = Number(values.pairs);
if (values.help || !Number.isInteger(pairs) || pairs < 1) {
  console.log(usage);
  process.exit(values.help ? 0 : 2);
}

/** Milliseconds of one pull by each side. */
interface Pair {
  readonly theirs: number;
  readonly ours: number;
}

await interruptible(async (signal) => {
  await using registry = await PrivateRegistry.start();
  await using theirs = await PrivateContainerd.start();
  await using beneath = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: beneath.address, config: values.config });
  const fresh: Pair[] = [];
  const present: Pair[] = [];
  for (let index = -warmUps; index < pairs; index++) {
    const layers = [noiseLayer("noise", 1024 * 1024)];
    const { reference } = await pushImage(registry, `pairs/image${index + warmUps}:v1`, layers);
    for (const found of [fresh, present]) {
      const pair = await measure(theirs.cri, hawser.cri, reference, index, signal);
      if (index >= 0) found.push(pair);
    }
  }
  await mustBeAccelerated(hawser, 2 * (pairs + warmUps));
  console.log(`${machine()}\n${programs()}\n`);
  const rows = [describe("1 MiB in one layer", fresh), describe("the same once more, all present", present)];
  console.log(
    table([[`${pairs} pairs, medians in ms`, "containerd", "Hawser", "ratio", "by chance", ""], ...rows]),
  );
});

/** Who goes first alternates. */
async function measure(
  theirs: CriClient,
  ours: CriClient,
  reference: string,
  index: number,
  signal: AbortSignal,
): Promise<Pair> {
  const timed = async (cri: CriClient): Promise<number> =>
    1000 * (await timeOfPulls(cri, [reference], signal));
  if (index % 2 === 0) {
    const first = await timed(theirs);
    return { theirs: first, ours: await timed(ours) };
  }
  const first = await timed(ours);
  return { theirs: await timed(theirs), ours: first };
}

function describe(title: string, found: readonly Pair[]): string[] {
  const [theirs, ours] = [median(found.map((pair) => pair.theirs)), median(found.map((pair) => pair.ours))];
  const ratio = median(found.map((pair) => pair.ours / pair.theirs));
  const chance = signTest(found.filter((pair) => pair.ours > pair.theirs).length, found.length);
  const isNone = found.length >= pairsMin && chance > chanceMax;
  const verdict = ratio <= ratioMax ? "met" : isNone ? "met: no difference" : "MISSED";
  return [title, theirs.toFixed(1), ours.toFixed(1), `${ratio.toFixed(2)}x`, chance.toFixed(3), verdict];
}

/** How likely chance alone makes as uneven a count, in either direction, of tosses of a fair coin. */
function signTest(count: number, tosses: number): number {
  const extreme = Math.max(count, tosses - count);
  let [ways, all] = [1, 0];
  for (let heads = 0; heads <= tosses; heads++) {
    if (heads >= extreme) all += ways;
    ways = (ways * (tosses - heads)) / (heads + 1);
  }
  return Math.min(1, (2 * all) / 2 ** tosses);
}
