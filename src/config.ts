// The configuration: TOML text in, a frozen Config out, or every problem at once with its key path.
//
// One table says what each key is, what it defaults to and what it does; parsing, `hawser config show` and
// config/hawser.toml all follow it. Nothing here reads anything but the file that it is given.

import { readFile } from "node:fs/promises";
import { parse, TomlError } from "smol-toml";
import { isTable, type Setting, schema } from "./schema.ts";
import { Expected } from "./settings.ts";

type Schema = typeof schema;
type ValueOf<S> = S extends Setting<infer Value> ? Value : never;

export type Config = {
  readonly [Section in keyof Schema]: {
    readonly [Key in keyof Schema[Section]]: ValueOf<Schema[Section][Key]>;
  };
};

export interface Problem {
  /** `download.chunk_size`, or empty for the file as a whole. */
  readonly path: string;
  readonly message: string;
}

export interface Loaded {
  /** Good keys have their values; keys with a problem have their defaults. */
  readonly config: Config;
  readonly problems: readonly Problem[];
  /** Key paths that the file sets. */
  readonly fromFile: ReadonlySet<string>;
  /** The file that was read, if there is one. */
  readonly file: string | undefined;
}

const defaultFile = "/etc/hawser/hawser.toml";

/** Sections that DESIGN foresees and this version does not have; said apart from typing mistakes. */
const laterSections = new Set(["admin", "trace", "prewarm"]);

/** Never throws. Without a file name the default file is read if it exists; one that is named must exist. */
export async function loadConfig(file: string | undefined): Promise<Loaded> {
  const name = file ?? defaultFile;
  try {
    return parseConfig(await readFile(name, "utf8"), name);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : String(error);
    if (file === undefined && code === "ENOENT") return parseConfig("", undefined);
    const loaded = parseConfig("", name);
    return { ...loaded, problems: [{ path: "", message: `${name} cannot be read: ${code}` }] };
  }
}

export function parseConfig(toml: string, file: string | undefined): Loaded {
  const problems: Problem[] = [];
  const fromFile = new Set<string>();
  let table: Record<string, unknown> = {};
  try {
    table = parse(toml);
  } catch (error) {
    const place = error instanceof TomlError ? ` (line ${error.line}, column ${error.column})` : "";
    const why = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
    problems.push({ path: "", message: `${why}${place}` });
  }
  findUnknown(table, problems);
  const sections = Object.entries(schema).map(([section, settings]) => {
    const given = isTable(table[section]) ? table[section] : {};
    const values = Object.entries(settings).map(([key, one]: [string, Setting<unknown>]) => {
      const keyPath = `${section}.${key}`;
      if (given[key] === undefined) return [key, one.kind.parse(one.preset)];
      fromFile.add(keyPath);
      return [key, parseValue(one, given[key], keyPath, problems)];
    });
    return [section, Object.freeze(Object.fromEntries(values))];
  });
  const config = Object.freeze(Object.fromEntries(sections)) as Config;
  if (problems.length === 0) crossCheck(config, problems);
  return { config, problems, fromFile, file };
}

/** Every key with its default and its sentence, in the order of the table. */
export function describeSettings(): { section: string; key: string; preset: unknown; help: string }[] {
  return Object.entries(schema).flatMap(([section, settings]) =>
    Object.entries(settings).map(([key, { preset, help }]: [string, Setting<unknown>]) => ({
      section,
      key,
      preset,
      help,
    })),
  );
}

function parseValue(
  setting: Setting<unknown>,
  value: unknown,
  keyPath: string,
  problems: Problem[],
): unknown {
  try {
    return setting.kind.parse(value);
  } catch (error) {
    if (!(error instanceof Expected)) throw error;
    problems.push({ path: keyPath, message: `expected ${error.message}, not ${JSON.stringify(value)}` });
    return setting.kind.parse(setting.preset);
  }
}

function findUnknown(table: Readonly<Record<string, unknown>>, problems: Problem[]): void {
  const sections: Readonly<Record<string, object>> = schema;
  for (const [section, given] of Object.entries(table)) {
    const known = sections[section];
    if (known === undefined) {
      const message = laterSections.has(section)
        ? "is not in this version yet"
        : unknown(section, Object.keys(schema));
      problems.push({ path: section, message });
    } else if (isTable(given)) {
      for (const key of Object.keys(given)) {
        if (!(key in known))
          problems.push({ path: `${section}.${key}`, message: unknown(key, Object.keys(known)) });
      }
    } else {
      problems.push({ path: section, message: `expected a section, [${section}]` });
    }
  }
}

function crossCheck({ download, unpack, fallback }: Config, problems: Problem[]): void {
  const above = (keyPath: string, value: number | "auto", limit: string, max: number | "auto"): void => {
    if (value === "auto" || max === "auto" || value <= max) return;
    problems.push({
      path: keyPath,
      message: `${value} is above ${limit} (${max}) and would never be reached`,
    });
  };
  above(
    "download.max_concurrent_per_image",
    download.max_concurrent_per_image,
    "download.max_concurrent",
    download.max_concurrent,
  );
  above(
    "download.max_concurrent_per_host",
    download.max_concurrent_per_host,
    "download.max_concurrent",
    download.max_concurrent,
  );
  above(
    "unpack.max_concurrent_per_image",
    unpack.max_concurrent_per_image,
    "unpack.max_concurrent",
    unpack.max_concurrent,
  );
  above(
    "download.connect_timeout",
    download.connect_timeout,
    "fallback.after, in milliseconds",
    fallback.after,
  );
}

function unknown(name: string, known: readonly string[]): string {
  const near = known.map((one) => ({ one, far: distance(name, one) })).sort((a, b) => a.far - b.far)[0];
  return near && near.far <= 3 ? `is not known; did you mean ${near.one}?` : "is not known";
}

/** Levenshtein's distance. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const change = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(change, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
