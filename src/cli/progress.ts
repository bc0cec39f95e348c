// How far a pull is, told while it goes on: a line for each layer that is drawn anew on a terminal, or lines that stay.

import { type LayerRecord, type PullRecord, progressOf, remainingSeconds } from "../history/record.ts";
import { bytesText, plain, rateText, secondsText } from "../history/words.ts";
import type { Terminal } from "./command.ts";
import { Drawing } from "./drawing.ts";

export interface Progress {
  show(record: PullRecord): void;
  /** Leaves the terminal as it was found. */
  end(): void;
}

const barColumns = 20;

/** Draws over what it has drawn before. */
export class TerminalProgress implements Progress {
  readonly #drawing: Drawing;

  constructor(write: (text: string) => void, size: () => Terminal) {
    this.#drawing = new Drawing(write, size);
  }

  show(record: PullRecord): void {
    this.#drawing.draw((rows) => linesOf(record, Math.max(1, rows - 3)));
  }

  end(): void {
    this.#drawing.erase();
  }
}

/** A line whenever a layer has come to something else. */
export class PlainProgress implements Progress {
  readonly #write: (text: string) => void;
  readonly #told = new Map<number, string>();

  constructor(write: (text: string) => void) {
    this.#write = write;
  }

  show(record: PullRecord): void {
    for (const layer of record.layers) {
      const { word } = stateOf(layer, record);
      if (this.#told.get(layer.index) === word) continue;
      this.#told.set(layer.index, word);
      this.#write(`${nameOf(layer)} of ${bytesText(layer.bytes)}: ${word}\n`);
    }
  }

  end(): void {}
}

/** One for the whole, and one for each layer; more layers than `layersMax` are counted, and not shown. */
function linesOf(record: PullRecord, layersMax: number): readonly string[] {
  const { image, seconds, layers } = record;
  const progress = progressOf(record);
  const remaining = remainingSeconds(progress);
  const all = [
    `${plain(image)}: ${bytesText(progress.doneBytes)} of ${bytesText(progress.bytes)}`,
    rateText(progress.bytesPerSecond),
    ...(remaining === undefined ? [] : [`${secondsText(remaining)} left`]),
    `for ${secondsText(seconds)}`,
  ];
  const hidden = layers.length - layersMax;
  return [
    all.join(", "),
    ...layers.slice(0, layersMax).map((layer) => lineOf(layer, record)),
    ...(hidden > 0 ? [`and ${hidden} layers more`] : []),
  ];
}

function lineOf(layer: LayerRecord, record: PullRecord): string {
  const { word, detail } = stateOf(layer, record);
  const done = layer.bytes > 0 ? Math.min(1, (layer.presentBytes + layer.receivedBytes) / layer.bytes) : 1;
  const bar = "█".repeat(Math.round(done * barColumns)).padEnd(barColumns, "░");
  return `${nameOf(layer)} ${bytesText(layer.bytes).padStart(8)} ${bar} ${[word, ...detail].join(", ")}`;
}

function nameOf({ index, digest }: LayerRecord): string {
  return `layer ${String(index + 1).padStart(2)} ${digest.replace("sha256:", "").slice(0, 12)}`;
}

/** What a layer is at: a word, and numbers that change. */
function stateOf(
  { spans, bytes, presentBytes, receivedBytes, bytesPerSecond }: LayerRecord,
  { seconds }: PullRecord,
): { readonly word: string; readonly detail: readonly string[] } {
  const last = spans.at(-1);
  const span = (name: string) => spans.findLast((one) => one.name === name);
  const commit = span("commit");
  if (commit?.endSeconds !== undefined) return { word: "done", detail: [secondsText(commit.endSeconds)] };
  if (commit) return { word: "being committed", detail: [] };
  if (span("parent")) return { word: "unpacked", detail: ["waiting for the layer below"] };
  if (bytesPerSecond > 0 && presentBytes + receivedBytes < bytes) {
    const left = (bytes - presentBytes - receivedBytes) / bytesPerSecond;
    return { word: "downloading", detail: [rateText(bytesPerSecond), `${secondsText(left)} left`] };
  }
  if (last?.name === "unpack") return { word: "unpacking", detail: [] };
  if (last?.name === "worker")
    return { word: "waiting for a worker", detail: [secondsText(seconds - last.startSeconds)] };
  return { word: "waiting", detail: [] };
}
