// Lines on a terminal that are drawn anew over what they were before.

import type { Terminal } from "./command.ts";

export class Drawing {
  readonly #write: (text: string) => void;
  readonly #size: () => Terminal;
  #drawn = 0;

  constructor(write: (text: string) => void, size: () => Terminal) {
    this.#write = write;
    this.#size = size;
  }

  /** Is asked for lines for a terminal of so many rows. */
  draw(linesFor: (rows: number) => readonly string[]): void {
    const { columns, rows } = this.#size();
    // A line that is longer than the terminal would take two, and what has left its top cannot be drawn over.
    const lines = linesFor(rows).map((line) => line.slice(0, Math.max(1, columns - 1)));
    this.#write(`${this.#erasure()}${lines.map((line) => `${line}\n`).join("")}`);
    this.#drawn = lines.length;
  }

  /** Leaves the terminal as it was found. */
  erase(): void {
    this.#write(this.#erasure());
    this.#drawn = 0;
  }

  /** To the first line of what was drawn, and all below it (ECMA-48, CPL and ED). */
  #erasure(): string {
    return this.#drawn > 0 ? `\u001b[${this.#drawn}F\u001b[J` : "";
  }
}
