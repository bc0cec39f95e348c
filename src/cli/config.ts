// hawser config check and hawser config show.

import { describeSettings, type Loaded, loadConfig } from "../config.ts";
import { knobs } from "../knobs.ts";
import { type Command, parseOptions, UsageError } from "./command.ts";

export const config: Command = {
  name: "config",
  summary: "check a configuration file, or show what is in force",
  help: `Usage: hawser config check [FILE]
       hawser config show [FILE]

check   lists every problem with its key path; exit code 2 if there is one
show    prints every key with its value and where it came from

Options:
  --config FILE   the file, as "hawser serve" takes it (default /etc/hawser/hawser.toml, which need not exist)

Examples:
  hawser config check new.toml
  hawser config show
`,
  run: async (args, { stdout, stderr }) => {
    const { values, positionals } = parseOptions(args, { config: { type: "string" } }, 2);
    const [action, file] = positionals;
    if (action !== "check" && action !== "show") throw new UsageError('expected "check" or "show"');
    if (file !== undefined && values.config !== undefined)
      throw new UsageError("expected one file, as FILE or as --config FILE");
    const loaded = await loadConfig(file ?? values.config);
    for (const { path, message } of loaded.problems)
      stderr(`${loaded.file}: ${path ? `${path}: ` : ""}${message}\n`);
    if (loaded.problems.length > 0) return 2;
    stdout(action === "check" ? `${loaded.file ?? "defaults"}: ok\n` : show(loaded));
    return 0;
  },
};

function show({ given, file }: Loaded): string {
  const rows = describeSettings().map(({ section, key, preset }) => {
    const path = `${section}.${key}`;
    const [value, origin] = given.has(path) ? [given.get(path), file ?? ""] : [preset, "default"];
    return [path, JSON.stringify(value), origin];
  });
  const width = (column: number): number => Math.max(...rows.map((row) => row[column]?.length ?? 0));
  const [first, second] = [width(0), width(1)];
  return rows.map(([a = "", b = "", c = ""]) => `${a.padEnd(first)}  ${b.padEnd(second)}  ${c}\n`).join("");
}

/** What becomes of it when it is too low or too high, and how that is seen. */
function knobLines(path: string): readonly string[] {
  const knob = knobs.get(path);
  if (!knob) return [];
  return [`#   Too low: ${knob.low}.`, `#   Too high: ${knob.high}.`, `#   To be seen: ${knob.seen}.`];
}

/** The text of config/hawser.toml: every key with its default, commented out, under its sentence and notes. */
export function renderSettings(): string {
  const lines = [
    "# Hawser's configuration, /etc/hawser/hawser.toml. Every key is optional; those below show the defaults.",
    '# "hawser config check" finds mistakes, "hawser config show" prints what is in force.',
  ];
  let current = "";
  for (const { section, key, preset, help } of describeSettings()) {
    lines.push("", ...(section === current ? [] : [`[${section}]`]));
    current = section;
    lines.push(`# ${help}`, ...knobLines(`${section}.${key}`));
    if (key === "host")
      lines.push('# [registry.host."registry.example.com"]', "# streams = 4", "# max_concurrent = 8");
    else lines.push(`# ${key} = ${JSON.stringify(preset)}`);
  }
  return `${lines.join("\n")}\n`;
}
