// The configuration: TOML text in, a frozen Config out, or every problem at once with its key path.
//
// One table says what each key is, what it defaults to and what it does; parsing, `hawser config show` and
// config/hawser.toml all follow it. Nothing here reads anything but the file that it is given.

import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { normalize } from "node:path";
import { parse, TomlError } from "smol-toml";
import { type Setting, schema } from "./schema.ts";
import { Expected, isTable, type Problem, problemsAt, toToml, unknownKey } from "./settings.ts";

export type { Problem };

type Schema = typeof schema;
type ValueOf<S> = S extends Setting<infer Value> ? Value : never;

export type Config = {
  readonly [Section in keyof Schema]: {
    readonly [Key in keyof Schema[Section]]: ValueOf<Schema[Section][Key]>;
  };
};

export interface Loaded {
  /** Good keys have their values; keys with a problem have their defaults. */
  readonly config: Config;
  readonly problems: readonly Problem[];
  /** Key paths that the file sets, with the values as they stand there. */
  readonly given: ReadonlyMap<string, unknown>;
  /** The file that was read, if there is one. */
  readonly file: string | undefined;
}

const defaultFile = "/etc/hawser/hawser.toml";
const fileBytesMax = 2 ** 20;

/** Never throws. Without a file name the default file is read if it exists; one that is named must exist. */
export async function loadConfig(file: string | undefined): Promise<Loaded> {
  const name = file ?? defaultFile;
  try {
    return parseConfig(await readText(name), name);
  } catch (error) {
    const isAbsent = error instanceof Error && "code" in error && error.code === "ENOENT";
    if (file === undefined && isAbsent) return parseConfig("", undefined);
    // Node's messages end in ", open 'FILE'".
    const [why = ""] = (error instanceof Error ? error.message : String(error)).split(", ", 1);
    return { ...parseConfig("", name), problems: [{ path: "", message: `cannot be read: ${why}` }] };
  }
}

/** Opening a FIFO waits for somebody to write to it, unless told not to, and a device has no end. */
async function readText(name: string): Promise<string> {
  await using file = await open(name, constants.O_RDONLY | constants.O_NONBLOCK);
  const stat = await file.stat();
  if (!stat.isFile()) throw new Error("it is no file");
  if (stat.size > fileBytesMax) throw new Error("it is over 1 MiB long");
  return await file.readFile("utf8");
}

/** Never throws; `file` is only a name for what the text came from. */
export function parseConfig(toml: string, file: string | undefined): Loaded {
  const problems: Problem[] = [];
  const given = new Map<string, unknown>();
  const table = parseToml(toml, problems);
  findUnknown(table, problems);
  const sections = Object.entries(schema).map(([section, settings]) => {
    const written = isTable(table[section]) ? table[section] : {};
    const values = Object.entries(settings).map(([key, one]: [string, Setting<unknown>]) => {
      if (written[key] === undefined) return [key, presetOf(one)];
      const keyPath = `${section}.${key}`;
      given.set(keyPath, written[key]);
      return [key, parseValue(one, written[key], keyPath, problems)];
    });
    return [section, Object.freeze(Object.fromEntries(values))];
  });
  const config = separateSockets(Object.fromEntries(sections) as Config, problems);
  findContradictions(config, given, problems);
  return { config: Object.freeze(config), problems, given, file };
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

function parseToml(toml: string, problems: Problem[]): Readonly<Record<string, unknown>> {
  try {
    return parse(toml);
  } catch (error) {
    const place = error instanceof TomlError ? ` (line ${error.line}, column ${error.column})` : "";
    const why = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
    problems.push({ path: "", message: `${why}${place}` });
    return {};
  }
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
    problems.push(...problemsAt(keyPath, error, value));
    return presetOf(setting);
  }
}

function presetOf<Value>({ kind, preset }: Setting<Value>): Value {
  return kind.parse(preset);
}

function findUnknown(table: Readonly<Record<string, unknown>>, problems: Problem[]): void {
  const sections = new Map<string, object>(Object.entries(schema));
  for (const [section, written] of Object.entries(table)) {
    const known = sections.get(section);
    if (known === undefined) {
      const message = unknownKey(section, [...sections.keys()]);
      problems.push({ path: section, message });
    } else if (isTable(written)) {
      for (const key of Object.keys(written).filter((one) => !Object.hasOwn(known, one))) {
        problems.push({ path: `${section}.${key}`, message: unknownKey(key, Object.keys(known)) });
      }
    } else {
      problems.push({ path: section, message: `expected a section, [${section}]` });
    }
  }
}

/** Hawser on containerd's own socket would forward to itself, or take the socket while containerd is down. */
function separateSockets(config: Config, problems: Problem[]): Config {
  const { cri, containerd } = config;
  const [ours, theirs] = [cri.listen, containerd.address].map((path) =>
    // A link wherever there is a /run.
    normalize(path).replace(/^\/var\/run\//, "/run/"),
  );
  if (ours !== theirs) return config;
  problems.push({ path: "cri.listen", message: `${toToml(cri.listen)} is containerd.address too` });
  return {
    ...config,
    cri: Object.freeze({ ...cri, listen: presetOf(schema.cri.listen) }),
    containerd: Object.freeze({ ...containerd, address: presetOf(schema.containerd.address) }),
  };
}

/** Limits that another limit keeps from ever being reached. Only a key that the file sets is blamed. */
function findContradictions(config: Config, given: ReadonlyMap<string, unknown>, problems: Problem[]): void {
  const { download, unpack, registry, fallback } = config;
  const bad = new Set(problems.map(({ path }) => path));
  const written = new Map(
    describeSettings().map(({ section, key, preset }) => [`${section}.${key}`, preset]),
  );
  for (const [path, value] of given) written.set(path, value);
  const above = (path: string, value: number | "auto", limit: string, max: number | "auto"): void => {
    if (bad.has(path) || bad.has(limit) || value === "auto" || max === "auto" || value <= max) return;
    const [ours, theirs] = [written.get(path) ?? value, written.get(limit)].map(toToml);
    problems.push({ path, message: `${ours} is above ${limit} (${theirs}) and would never be reached` });
  };
  const check = (path: string, value: number | "auto", limit: string, max: number | "auto"): void => {
    if (given.has(path)) above(path, value, limit, max);
  };
  const [node, image] = ["download.max_concurrent", "download.max_concurrent_per_image"];
  check(image, download.max_concurrent_per_image, node, download.max_concurrent);
  check("download.max_concurrent_per_host", download.max_concurrent_per_host, node, download.max_concurrent);
  check(
    "unpack.max_concurrent_per_image",
    unpack.max_concurrent_per_image,
    "unpack.max_concurrent",
    unpack.max_concurrent,
  );
  check("download.connect_timeout", download.connect_timeout, "fallback.after", fallback.after);
  if (unpack.engine === "portable" && unpack.durability === "syncfs") {
    problems.push({ path: "unpack.durability", message: '"syncfs" needs the native engine' });
  }
  for (const host of registry.exclude.filter((one) => registry.include.includes(one))) {
    const message = `${toToml(host)} is in registry.include too`;
    problems.push({ path: "registry.exclude", message });
  }
  for (const [host, { streams = 0, max_concurrent = 0 }] of registry.host) {
    const path = `registry.host.${JSON.stringify(host)}`;
    above(`${path}.streams`, streams, image, download.max_concurrent_per_image);
    above(`${path}.max_concurrent`, max_concurrent, node, download.max_concurrent);
  }
}
