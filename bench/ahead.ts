// npm run ahead: what pre-warming costs a pull that somebody waits for, and how much sooner the images of a pod are there
// that are fetched together than those that are pulled one after another.

import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { askAdmin } from "../src/front/client.ts";
import type { PrewarmStatus } from "../src/prewarm/prewarming.ts";
import { PrivateContainerd } from "../test/harness/containerd.ts";
import { PrivateHawser } from "../test/harness/hawser.ts";
import { sizes } from "./images.ts";
import { interruptible } from "./interrupt.ts";
import { type Load, withLoad } from "./load.ts";
import { machine, median, programs, table } from "./measure.ts";
import { recipes } from "./recipes.ts";
import type { Scenario } from "./scenarios.ts";
import { mustBeAccelerated, timeOfPulls, touchMemory } from "./sides.ts";

const usage = `Usage: npm run ahead [-- --only NAME[,NAME…]] [--runs N]

  --only NAME  behind (a pull with a saturating pre-warm behind it, on loopback), behind-shaped (over the shaped network),
               pod (the three images of a pod over the shaped network); default all
  --runs N     pairs of runs (default 5), after one that is not counted
`;

const { values } = parseArgs({
  options: {
    only: { type: "string", default: "behind,behind-shaped,pod" },
    runs: { type: "string", default: "5" },
    help: { type: "boolean" },
  },
});
const runs = Number(values.runs);
const all: Readonly<Record<string, Part>> = {
  behind: { scenario: imagesOf(["go", "jdk", "fat"], "loopback"), title: "behind", run: behind, max: 1.1 },
  "behind-shaped": {
    scenario: imagesOf(["go", "jdk", "fat"], "shaped"),
    title: "behind",
    run: behind,
    max: 1.1,
  },
  pod: { scenario: imagesOf(["go", "jdk", "small"], "shaped"), title: "together", run: pod, max: 0.6 },
};
const wanted = values.only.split(",");
if (values.help || !wanted.every((name) => name in all) || !Number.isInteger(runs) || runs < 1) {
  console.log(usage);
  process.exit(values.help ? 0 : 2);
}

interface Part {
  readonly scenario: Scenario;
  readonly title: string;
  /** Seconds without and with pre-warming. */
  readonly run: (load: Load, isAhead: boolean, signal: AbortSignal) => Promise<number>;
  /** How many times as long it may take with it. */
  readonly max: number;
}

function imagesOf(names: readonly string[], network: Scenario["network"]): Scenario {
  const found = names.flatMap((name) => recipes[name] ?? []);
  return { name: names.join("+"), title: names.join(", "), recipes: found, network };
}

await interruptible(async (signal) => {
  console.log(`${machine()}\n${programs()}`);
  for (const [name, part] of Object.entries(all))
    if (wanted.includes(name)) await measure(name, part, signal);
});

async function measure(name: string, { scenario, run, max }: Part, signal: AbortSignal): Promise<void> {
  const say = (text: string): void => console.error(text);
  await withLoad(scenario, say, signal, async (images) => {
    const pairs: { readonly without: number; readonly ahead: number }[] = [];
    for (let index = -1; index < runs; index++) {
      const first = await run(images, index % 2 === 0, signal);
      const second = await run(images, index % 2 !== 0, signal);
      const [ahead, without] = index % 2 === 0 ? [first, second] : [second, first];
      say(
        `${name}, ${index < 0 ? "warm-up" : `pair ${index + 1}`}: ${without.toFixed(2)} s, ${ahead.toFixed(2)} s`,
      );
      if (index >= 0) pairs.push({ without, ahead });
    }
    const ratio = median(pairs.map(({ without, ahead }) => ahead / without));
    const row = [
      `${name}: ${images.images.map(sizes).join("; ")}`,
      median(pairs.map(({ without }) => without)).toFixed(2),
      median(pairs.map(({ ahead }) => ahead)).toFixed(2),
      `${ratio.toFixed(2)}x`,
      ratio <= max ? `met (${max})` : `MISSED (${max})`,
    ];
    console.log(`\n${table([["", "without, s", "ahead, s", "ratio", ""], row])}`);
  });
}

/** One pull, and the other images fetched ahead behind it. */
async function behind(load: Load, isAhead: boolean, signal: AbortSignal): Promise<number> {
  const [awaited = "", ...others] = load.references;
  return await withHawser(load, isAhead ? others : [], signal, async (hawser) => {
    if (isAhead) await hawser.untilMetric(/hawser_downloaded_bytes_total [1-9]\d{7}/);
    const seconds = await timeOfPulls(hawser.cri, [awaited], signal);
    await mustBeAccelerated(hawser);
    return seconds;
  });
}

/** All images, pulled in turn, or fetched ahead at once. */
async function pod(load: Load, isAhead: boolean, signal: AbortSignal): Promise<number> {
  return await withHawser(load, [], signal, async (hawser) => {
    const began = performance.now();
    if (isAhead) await warmAll(hawser, load.references, signal);
    else for (const reference of load.references) await timeOfPulls(hawser.cri, [reference], signal);
    return (performance.now() - began) / 1000;
  });
}

async function warmAll(
  hawser: PrivateHawser,
  references: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const socket = join(hawser.root, "admin.sock");
  await askAdmin(socket, "POST", "/prewarm", { add: references });
  for (;;) {
    const { images } = (await askAdmin(socket, "GET", "/prewarm")) as PrewarmStatus;
    const failed = images.find(({ error }) => error !== undefined);
    if (failed) throw new Error(`${failed.name}: ${failed.error}`);
    if (images.every(({ state }) => state === "warm")) return;
    await sleep(20, undefined, { signal });
  }
}

async function withHawser<T>(
  load: Load,
  ahead: readonly string[],
  signal: AbortSignal,
  work: (hawser: PrivateHawser) => Promise<T>,
): Promise<T> {
  await touchMemory(load.images, signal);
  await using containerd = await PrivateContainerd.start();
  const config = `[prewarm]\nmax_concurrent = 3\nmin_free_disk = "1GiB"\nimages = ${JSON.stringify(ahead)}\n`;
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  return await work(hawser);
}
