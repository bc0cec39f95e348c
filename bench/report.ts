// Results as tables for a reader at a terminal: a table for each scenario, and at the end what is met and what is not.

import { median, spread, table } from "./measure.ts";
import { hawser, type Results, ratioTo, reference, type ScenarioResult } from "./results.ts";
import type { Scenario } from "./scenarios.ts";
import type { Run } from "./sides.ts";

export function report(results: Results, scenarios: readonly Scenario[]): string {
  const tables = results.scenarios.map((scenario) => tableOf(scenario));
  const goals = results.scenarios.flatMap((scenario) => {
    const goal = scenarios.find(({ name }) => name === scenario.name)?.goal;
    if (goal === undefined || scenario.sides[reference] === undefined) return [];
    const ratio = ratioTo(reference, scenario);
    const verdict = ratio >= goal.aim ? "aim met" : ratio >= goal.must ? "met" : "MISSED";
    return [[scenario.name, `${ratio.toFixed(2)}x`, `${goal.must}x`, `${goal.aim}x`, verdict]];
  });
  const summary = goals.length === 0 ? "" : `\n\n${table([["", "is", "must", "aim", ""], ...goals])}`;
  return `
${results.machine}
${results.versions}
${results.command}, commit ${results.commit}
Sides take turns, on fresh roots on tmpfs; medians, and the median of the rounds' ratios

${tables.join("\n\n")}${summary}
`;
}

function tableOf(scenario: ScenarioResult): string {
  const { title, compressedBytes, unpackedBytes, floors, sides } = scenario;
  const mib = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MiB`;
  const rows = Object.entries(sides).map(([name, runs]) => {
    return pullRow(name, runs, name === hawser ? "" : `${ratioTo(name, scenario).toFixed(2)}x`);
  });
  const seconds = floors.map((floor) => floor.seconds);
  const cpu = median(floors.map((floor) => floor.cpu)).toFixed(2);
  const floor = [`floor (${cpu} CPU s)`, median(seconds).toFixed(2), spread(seconds), "-", "-", "-", "-", ""];
  const head = [
    "",
    "seconds",
    "range",
    "containerd CPU s",
    "Hawser CPU s",
    "registry CPU s",
    "peak MiB",
    "Hawser is faster by",
  ];
  return `${title}: ${mib(compressedBytes)} compressed, ${mib(unpackedBytes)} unpacked\n${table([head, ...rows, floor])}`;
}

function pullRow(name: string, all: readonly Run[], ratio: string): string[] {
  const middle = (key: keyof Run): string => median(all.map((run) => run[key])).toFixed(2);
  const costs = [middle("containerdCpu"), middle("hawserCpu"), middle("registryCpu")];
  const peak = Math.max(...all.map((run) => run.peakMiB)).toFixed(0);
  return [name, middle("seconds"), spread(all.map((run) => run.seconds)), ...costs, peak, ratio];
}
