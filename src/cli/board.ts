// How far an upgrade of pods is: a line for each pod that is drawn anew on a terminal, lines that stay, or JSON for programs.

import { plain, secondsText } from "../history/words.ts";
import type { Plan, PodStep, UpgradeEvent } from "../inplace/inplace.ts";
import type { Terminal } from "./command.ts";
import { Drawing } from "./drawing.ts";

export interface Board {
  told(event: UpgradeEvent): void;
  end(): void;
}

interface Line {
  readonly step: PodStep;
  readonly detail: string | undefined;
  readonly sinceMs: number;
  readonly node: string | undefined;
}

const drawnEveryMs = 500;
const ended = new Set<PodStep>(["done", "rolled back"]);

/** Draws all pods again with each event, and every half second, since times go on. */
export class TerminalBoard implements Board {
  readonly #write: (text: string) => void;
  readonly #drawing: Drawing;
  readonly #title: string;
  readonly #lines: Map<string, Line>;
  readonly #timer: NodeJS.Timeout;

  constructor(plan: Plan, write: (text: string) => void, size: () => Terminal) {
    this.#write = write;
    this.#drawing = new Drawing(write, size);
    const { kind, name } = plan.request;
    this.#title = `${kind}/${name}`;
    const now = performance.now();
    this.#lines = new Map(
      plan.pods.map((pod) => [pod.name, { step: "waits", detail: undefined, sinceMs: now, node: pod.node }]),
    );
    this.#timer = setInterval(() => this.#draw(), drawnEveryMs);
    this.#draw();
  }

  told(event: UpgradeEvent): void {
    if (event.event === "pod") {
      const { pod, step, detail } = event;
      const known = this.#lines.get(pod);
      const sinceMs = known?.step === step ? known.sinceMs : performance.now();
      this.#lines.set(pod, { step, detail, sinceMs, node: event.node ?? known?.node });
    } else {
      // Stays above what is drawn.
      this.#drawing.erase();
      this.#write(lineOf(event));
    }
    this.#draw();
  }

  end(): void {
    clearInterval(this.#timer);
    this.#drawing.erase();
  }

  #draw(): void {
    const all = [...this.#lines];
    const done = all.filter(([, { step }]) => ended.has(step)).length;
    const open = all.filter(([, { step }]) => !ended.has(step));
    // What is done with goes first where there is no room for all, and then what only waits.
    const order = [
      ...open.filter(([, { step }]) => step !== "waits"),
      ...open.filter(([, { step }]) => step === "waits"),
    ];
    this.#drawing.draw((rows) => {
      const shown = (all.length + 3 <= rows ? all : order).slice(0, Math.max(1, rows - 3));
      const hidden = all.length - shown.length;
      return [
        `${this.#title}: ${done} of ${all.length} pods`,
        ...shown.map(([name, line]) => podText(name, line)),
        ...(hidden > 0 ? [`and ${hidden} pods more`] : []),
      ];
    });
  }
}

/** A line for each event. */
export class PlainBoard implements Board {
  readonly #write: (text: string) => void;

  constructor(write: (text: string) => void) {
    this.#write = write;
  }

  told(event: UpgradeEvent): void {
    this.#write(lineOf(event));
  }

  end(): void {}
}

function lineOf(event: UpgradeEvent): string {
  switch (event.event) {
    case "pod": {
      const where = event.node ? ` on ${event.node}` : "";
      return `${plain(`${event.pod}${where}: ${event.step}${event.detail ? ` (${event.detail})` : ""}`)}\n`;
    }
    case "note":
      return `${plain(event.text)}\n`;
    case "failure":
      return `${plain(`failed, and is rolled back: ${event.error}`)}\n`;
  }
}

function podText(name: string, { step, detail, sinceMs, node }: Line): string {
  const time =
    ended.has(step) || step === "waits" ? "" : ` for ${secondsText((performance.now() - sinceMs) / 1000)}`;
  return `${plain(name)}  ${plain(node ?? "no node")}  ${plain(`${step}${time}${detail ? ` (${detail})` : ""}`)}`;
}
