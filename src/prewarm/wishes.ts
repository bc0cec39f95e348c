// What "hawser prewarm add" has asked for, kept in a file so that it outlasts a restart.

import { mkdir, open, readFile, rename } from "node:fs/promises";
import { dirname } from "node:path";
import { PullError } from "../errors.ts";

export interface Wish {
  readonly reference: string;
  /** Milliseconds since 1970. */
  readonly deadlineMs?: number | undefined;
}

export class Wishes {
  readonly #file: string;
  #all: readonly Wish[];

  private constructor(file: string, all: readonly Wish[]) {
    this.#file = file;
    this.#all = all;
  }

  /** One reference on a line, with its deadline behind it if it has one. A file that cannot be read counts as empty, and `trouble` is told why. */
  static async open(file: string, trouble: (why: string) => void): Promise<Wishes> {
    try {
      const text = await readFile(file, "utf8");
      return new Wishes(file, text.split("\n").filter(Boolean).map(parse));
    } catch (error) {
      const isAbsent = error instanceof Error && "code" in error && error.code === "ENOENT";
      if (!isAbsent) trouble(error instanceof Error ? error.message : String(error));
      return new Wishes(file, []);
    }
  }

  get all(): readonly Wish[] {
    return this.#all;
  }

  /** Throws `internal`, with nothing changed, when the file cannot be written. */
  async set(wishes: readonly Wish[]): Promise<void> {
    // Of two of one name the latter.
    const byReference = new Map(wishes.map((wish) => [wish.reference, wish]));
    const sorted = [...byReference.values()].sort((one, other) => (one.reference < other.reference ? -1 : 1));
    try {
      await mkdir(dirname(this.#file), { recursive: true, mode: 0o755 });
      const temporary = `${this.#file}.new`;
      await using file = await open(temporary, "w", 0o600);
      await file.writeFile(sorted.map((wish) => `${lineOf(wish)}\n`).join(""));
      await file.sync();
      await rename(temporary, this.#file);
    } catch (error) {
      const code = error instanceof Error && "code" in error ? String(error.code) : String(error);
      throw new PullError("internal", `what is wanted cannot be kept in ${this.#file}: ${code}`, {
        cause: error,
      });
    }
    this.#all = sorted;
  }
}

function parse(line: string): Wish {
  const [reference = "", deadline = ""] = line.split(" ", 2);
  const deadlineMs = Date.parse(deadline);
  return Number.isNaN(deadlineMs) ? { reference } : { reference, deadlineMs };
}

function lineOf({ reference, deadlineMs }: Wish): string {
  return deadlineMs === undefined ? reference : `${reference} ${new Date(deadlineMs).toISOString()}`;
}
