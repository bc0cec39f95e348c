// One pull for a terminal: why it took as long as it did, and when each of its parts was at what.

import type { PullRecord } from "../history/record.ts";
import { delegationText, nameOf } from "../history/verdict.ts";
import { type Bar, type BarKind, type Row, rowsOf } from "../history/waterfall.ts";
import { secondsText } from "../history/words.ts";
import { plainLine } from "./command.ts";

export interface Drawing {
  readonly columns: number;
  readonly isColoured: boolean;
}

/** What a moment of a row shows; what is unpacked while it comes is a kind of its own. */
type Cell = BarKind | "both" | "nothing";

const glyphs: Readonly<Record<Cell, string>> = {
  nothing: " ",
  stage: "█",
  wait: "·",
  download: "░",
  both: "▒",
  unpack: "█",
  commit: "▓",
};
/** As escape sequences have them (ECMA-48, SGR). */
const colours: Readonly<Record<Cell, number>> = {
  nothing: 0,
  stage: 37,
  wait: 90,
  download: 34,
  both: 36,
  unpack: 32,
  commit: 35,
};
const legend: readonly (readonly [Cell, string])[] = [
  ["download", "download"],
  ["both", "download and unpacking"],
  ["unpack", "unpacking"],
  ["wait", "waiting"],
  ["commit", "commit"],
];

const barColumnsMin = 20;

export function waterfall(record: PullRecord, drawing: Drawing): string {
  const rows = rowsOf(record);
  const label = widest(rows.map((row) => row.label));
  const detail = widest(rows.map((row) => row.detail));
  const columns = Math.max(barColumnsMin, drawing.columns - label - detail - 5);
  const end = secondsText(record.seconds);
  const ruler = `0 s${end.padStart(columns - 3)}`;
  return [
    plainLine(headline(record)),
    ...verdictLines(record),
    "\n",
    `${" ".repeat(label + detail + 4)}${ruler}\n`,
    ...rows.map((row) => {
      const cells = cellsOf(row, record.seconds, columns);
      return `${row.label.padEnd(label)}  ${row.detail.padStart(detail)}  ${paint(cells, drawing)}\n`;
    }),
    `\n${legend.map(([cell, name]) => `${paint([cell], drawing)} ${name}`).join("   ")}\n`,
  ].join("");
}

function headline({ image, state, seconds, startedAt, id, isAhead, isJoined }: PullRecord): string {
  const how = state === "running" ? "goes on since" : `${state} in`;
  const more = [isAhead ? "ahead of need" : "", isJoined ? "joined another pull of it" : ""];
  const all = [`${image || "?"}: ${how} ${secondsText(seconds)}`, `began ${startedAt}`, ...more, `id ${id}`];
  return all.filter((text) => text !== "").join(", ");
}

function verdictLines({ verdict, outcome, delegation, seconds }: PullRecord): readonly string[] {
  const failed = outcome?.error === undefined ? [] : [plainLine(`failed: ${outcome.error}`)];
  const left = delegation ? [plainLine(`left to containerd: ${delegationText(delegation)}`)] : [];
  if (!verdict) return [...failed, ...left];
  const parts = verdict.parts.map(
    (part) =>
      `${nameOf(part)} ${secondsText(part.seconds)} (${Math.round((100 * part.seconds) / seconds)} %)`,
  );
  return [
    ...failed,
    ...left,
    "\n",
    plainLine(`Bottleneck: ${verdict.sentence}.`),
    ...verdict.evidence.map((text) => `  ${plainLine(`- ${text}`)}`),
    `  ${plainLine(`What helps: ${verdict.advice}.`)}`,
    plainLine(`Time by cause: ${parts.join(", ")}`),
  ];
}

/** What each column shows: whatever lies over the most of it, and the shortest bar at least once. */
function cellsOf({ bars }: Row, seconds: number, columns: number): readonly Cell[] {
  const perColumn = Math.max(seconds, 0.001) / columns;
  return Array.from({ length: columns }, (_, column) => {
    const [from, to] = [column * perColumn, (column + 1) * perColumn];
    const here = bars.filter((bar) => overlaps(bar, from, to));
    const has = (kind: BarKind): boolean => here.some((bar) => bar.kind === kind);
    if (has("stage")) return "stage";
    if (has("unpack")) return has("download") ? "both" : "unpack";
    if (has("commit")) return "commit";
    if (has("download")) return "download";
    return has("wait") ? "wait" : "nothing";
  });
}

/** A bar that is too short to be seen lies in the column in which it begins. */
function overlaps({ startSeconds, endSeconds }: Bar, from: number, to: number): boolean {
  return startSeconds < to && (endSeconds > from || startSeconds >= from);
}

function paint(cells: readonly Cell[], { isColoured }: Drawing): string {
  const text = cells.map((cell) => glyphs[cell]).join("");
  if (!isColoured) return text.trimEnd();
  let [painted, before]: [string, Cell] = ["", "nothing"];
  for (const cell of cells) {
    if (cell !== before) painted += `\u001b[${colours[cell]}m`;
    painted += glyphs[cell];
    before = cell;
  }
  return `${painted}\u001b[0m`;
}

function widest(texts: readonly string[]): number {
  return Math.max(0, ...texts.map((text) => text.length));
}
