// A pull drawn: its waterfall, and what its time went by with. SVG that takes its colours from the page and loads nothing.

import type { Part } from "../history/critical.ts";
import type { PullRecord } from "../history/record.ts";
import { nameOf } from "../history/verdict.ts";
import { type Bar, type BarKind, type Row, rowsOf } from "../history/waterfall.ts";
import { secondsText } from "../history/words.ts";
import { html, type Markup } from "./html.ts";

/** In units of the drawing, which is scaled to the page's width. */
const width = 1000;
const labels = 235;
const rowHeight = 22;
const top = 22;

/** A row's upper half shows bytes on their way, its lower half what became of them; a stage has both. */
const places: Readonly<Record<BarKind, { readonly y: number; readonly height: number }>> = {
  stage: { y: 4, height: 14 },
  download: { y: 3, height: 7 },
  wait: { y: 12, height: 7 },
  unpack: { y: 12, height: 7 },
  commit: { y: 12, height: 7 },
};

const legend: readonly (readonly [BarKind, string])[] = [
  ["stage", "a stage of the whole"],
  ["download", "bytes on their way"],
  ["unpack", "being unpacked"],
  ["wait", "waiting"],
  ["commit", "being committed"],
];

export function waterfall(record: PullRecord): Markup {
  const rows = rowsOf(record);
  const height = top + rows.length * rowHeight + 6;
  const seconds = Math.max(0.001, record.seconds);
  const x = (at: number): number => labels + ((width - labels - 10) * at) / seconds;
  return html`<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Waterfall of the pull: when each stage and each layer was at what">
${ticksOf(seconds).map((at) => html`<line class="grid" x1="${x(at)}" x2="${x(at)}" y1="${top - 4}" y2="${height}"/><text class="faint" x="${x(at)}" y="12" text-anchor="middle">${secondsText(at)}</text>`)}
${rows.map((row, index) => drawRow(row, top + index * rowHeight, x))}
</svg>
<p class="legend">${legend.map(([kind, text]) => html`<span>${swatch(kind)}${text}</span>`)}</p>`;
}

/** One bar, in parts. */
export function causes(parts: readonly Part[], seconds: number): Markup {
  let at = 0;
  const scale = width / Math.max(0.001, seconds);
  const bars = parts.map((part) => {
    const [from, wide] = [at, part.seconds * scale];
    at += wide;
    return html`<rect class="${part.cause}" x="${round(from)}" y="0" width="${round(Math.max(0, wide - 1))}" height="14"><title>${nameOf(part)}: ${secondsText(part.seconds)}</title></rect>`;
  });
  const shown = parts.map(
    (part) =>
      html`<span>${swatch(part.cause)}${nameOf(part)} ${secondsText(part.seconds)}, ${Math.round((100 * part.seconds) / Math.max(0.001, seconds))} %</span>`,
  );
  return html`<svg viewBox="0 0 ${width} 14" role="img" aria-label="What the time went by with">${bars}</svg>
<p class="legend">${shown}</p>`;
}

function drawRow({ label, detail, bars }: Row, y: number, x: (seconds: number) => number): Markup {
  return html`<g><text x="0" y="${y + 15}">${label}</text><text class="faint" x="${labels - 12}" y="${y + 15}" text-anchor="end">${detail}</text>${bars.map((bar) => drawBar(bar, y, x))}</g>
`;
}

function drawBar(
  { kind, startSeconds, endSeconds, title }: Bar,
  y: number,
  x: (seconds: number) => number,
): Markup {
  const { y: offset, height } = places[kind];
  // What is too short to be seen is a line.
  const wide = Math.max(1.5, x(endSeconds) - x(startSeconds));
  return html`<rect class="${kind}" x="${round(x(startSeconds))}" y="${y + offset}" width="${round(wide)}" height="${height}" rx="1.5"><title>${title}</title></rect>`;
}

function swatch(name: string): Markup {
  return html`<svg viewBox="0 0 10 10" aria-hidden="true"><rect class="${name}" width="10" height="10" rx="2"/></svg>`;
}

/** Four to ten round moments, from 0 on. */
function ticksOf(seconds: number): readonly number[] {
  const rough = seconds / 5;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 5].find((factor) => factor * unit >= rough) ?? 10);
  return Array.from({ length: Math.floor(seconds / step) + 1 }, (_, index) => index * step);
}

function round(value: number): number {
  return Math.round(10 * value) / 10;
}
