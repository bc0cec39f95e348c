// A pull's record as rows of bars over time, which the terminal and the page draw each in its way.

import type { LayerRecord, PullRecord, SpanRecord } from "./record.ts";
import { bytesText, secondsText } from "./words.ts";

/** What a bar shows: a stage, bytes on their way, a layer that waits, is unpacked, or is committed. */
export type BarKind = "stage" | "download" | "wait" | "unpack" | "commit";

export interface Bar {
  readonly kind: BarKind;
  readonly startSeconds: number;
  readonly endSeconds: number;
  /** What it was, and how long. */
  readonly title: string;
}

export interface Row {
  readonly label: string;
  readonly detail: string;
  readonly bars: readonly Bar[];
}

const kinds: Readonly<Record<string, BarKind>> = {
  room: "wait",
  download: "download",
  worker: "wait",
  unpack: "unpack",
  parent: "wait",
  commit: "commit",
};

const names: Readonly<Record<string, string>> = {
  resolve: "resolve",
  plan: "manifest",
  register: "records",
  containerd: "containerd",
  room: "waiting for room in the spool",
  worker: "waiting for a worker",
  parent: "waiting for the layer below",
};

/** The layers themselves are shown instead; or too short to be seen. */
const hidden: ReadonlySet<string> = new Set(["layers", "blobs", "registry"]);

/** Stages before the layers, the layers from the bottom up, and stages behind them. */
export function rowsOf(record: PullRecord): readonly Row[] {
  const stages = record.stages.filter(({ name }) => !hidden.has(name));
  const isBefore = ({ name }: SpanRecord): boolean => name === "resolve" || name === "plan";
  return [
    ...stages.filter(isBefore).map((span) => stageRow(span, record.seconds)),
    ...record.layers.map((layer) => layerRow(layer, record.seconds)),
    ...stages.filter((span) => !isBefore(span)).map((span) => stageRow(span, record.seconds)),
  ];
}

function stageRow(span: SpanRecord, now: number): Row {
  const bar = barOf(span, "stage", now);
  const name = names[span.name] ?? span.name;
  return { label: name, detail: secondsText(bar.endSeconds - bar.startSeconds), bars: [bar] };
}

function layerRow(layer: LayerRecord, now: number): Row {
  const bars = layer.spans.flatMap((span): Bar[] => {
    const kind = kinds[span.name];
    return kind ? [barOf(span, kind, now)] : [];
  });
  // What an earlier pull had done is not this one's.
  const shown = bars.filter(({ endSeconds }) => endSeconds > 0);
  return {
    label: `layer ${layer.index + 1} ${layer.digest.replace("sha256:", "").slice(0, 12)}`,
    detail: bytesText(layer.bytes),
    bars: shown,
  };
}

function barOf(
  { name, startSeconds, endSeconds = Number.POSITIVE_INFINITY }: SpanRecord,
  kind: BarKind,
  now: number,
): Bar {
  const start = Math.max(0, startSeconds);
  const end = Math.max(start, Math.min(endSeconds, now));
  return {
    kind,
    startSeconds: start,
    endSeconds: end,
    title: `${names[name] ?? name}: ${secondsText(end - start)}, from ${secondsText(start)} on`,
  };
}
