// Results as a picture: for each scenario, bars of the medians' seconds, shortest is best.

import { median } from "./measure.ts";
import { hawser, type Results, type ScenarioResult } from "./results.ts";

const size = { width: 760, name: 250, bar: 13, gap: 16, value: 60, top: 56 } as const;
const colours: Readonly<Record<string, string>> = {
  [hawser]: "#0a7d5a",
  "containerd-1.6": "#8a97a6",
  "containerd-1.7": "#a9b4c0",
  "containerd-2.1": "#c9a227",
};

export function chart({ scenarios, machine, commit, date }: Results): string {
  const peers = [...new Set(scenarios.flatMap(({ sides }) => Object.keys(sides)))];
  const rows = scenarios.map((scenario) => draw(scenario, peers));
  let top: number = size.top;
  const body = rows.map((row) => {
    const moved = `<g transform="translate(0 ${top})">${row.svg}</g>`;
    top += row.height + size.gap;
    return moved;
  });
  const legend = peers.map(
    (peer, index) =>
      `<rect x="${size.name + index * 130}" y="30" width="12" height="12" fill="${colours[peer] ?? "#666"}"/>` +
      `<text x="${size.name + 17 + index * 130}" y="40">${escape(peer)}</text>`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${size.width}" height="${top + 24}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="100%" height="100%" fill="#fff"/>
<text x="12" y="18" font-size="14" font-weight="bold">Seconds from the call to the answer, medians</text>
${legend.join("\n")}
${body.join("\n")}
<text x="12" y="${top + 12}" font-size="10" fill="#666">${escape(`${machine}; commit ${commit}, ${date.slice(0, 10)}`)}</text>
</svg>
`;
}

/** Bars are as long as the slowest side of their own scenario allows. */
function draw(
  scenario: ScenarioResult,
  peers: readonly string[],
): { readonly svg: string; readonly height: number } {
  const bars = peers.flatMap((peer) => {
    const runs = scenario.sides[peer];
    return runs ? [{ peer, seconds: median(runs.map((run) => run.seconds)) }] : [];
  });
  const longest = Math.max(...bars.map(({ seconds }) => seconds));
  const room = size.width - size.name - size.value;
  const lines = bars.map(({ peer, seconds }, index) => {
    const width = Math.max(1, (room * seconds) / longest).toFixed(1);
    const y = index * size.bar;
    return (
      `<rect x="${size.name}" y="${y}" width="${width}" height="${size.bar - 2}" fill="${colours[peer] ?? "#666"}"/>` +
      `<text x="${Number(width) + size.name + 6}" y="${y + 10}">${seconds.toFixed(seconds < 1 ? 2 : 1)} s</text>`
    );
  });
  const label = `<text x="12" y="${(bars.length * size.bar) / 2 + 4}">${escape(scenario.title)}</text>`;
  return { svg: label + lines.join(""), height: bars.length * size.bar };
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
