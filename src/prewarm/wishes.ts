// What "hawser prewarm add" has asked for, kept in a file so that it outlasts a restart.

import { mkdir, open, readFile, rename } from "node:fs/promises";
import { dirname } from "node:path";
import { PullError } from "../errors.ts";

export class Wishes {
  readonly #file: string;
  #references: readonly string[];

  private constructor(file: string, references: readonly string[]) {
    this.#file = file;
    this.#references = references;
  }

  /** One reference on a line. A file that cannot be read counts as empty, and `trouble` is told why. */
  static async open(file: string, trouble: (why: string) => void): Promise<Wishes> {
    try {
      const text = await readFile(file, "utf8");
      return new Wishes(file, text.split("\n").filter(Boolean));
    } catch (error) {
      const isAbsent = error instanceof Error && "code" in error && error.code === "ENOENT";
      if (!isAbsent) trouble(error instanceof Error ? error.message : String(error));
      return new Wishes(file, []);
    }
  }

  get references(): readonly string[] {
    return this.#references;
  }

  /** Throws `internal`, with nothing changed, when the file cannot be written. */
  async set(references: readonly string[]): Promise<void> {
    const sorted = [...new Set(references)].sort();
    try {
      await mkdir(dirname(this.#file), { recursive: true, mode: 0o755 });
      const temporary = `${this.#file}.new`;
      await using file = await open(temporary, "w", 0o600);
      await file.writeFile(sorted.map((one) => `${one}\n`).join(""));
      await file.sync();
      await rename(temporary, this.#file);
    } catch (error) {
      const code = error instanceof Error && "code" in error ? String(error.code) : String(error);
      throw new PullError("internal", `what is wanted cannot be kept in ${this.#file}: ${code}`, {
        cause: error,
      });
    }
    this.#references = sorted;
  }
}
