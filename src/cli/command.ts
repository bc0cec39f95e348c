// What every command is: its own help, and a run that ends in an exit code. 0 is success, 1 is failure, 2 is usage.

import { type ParseArgsConfig, parseArgs } from "node:util";

export interface Command {
  readonly name: string;
  /** One line for the list of commands. */
  readonly summary: string;
  readonly help: string;
  readonly run: (args: readonly string[], context: Context) => Promise<number>;
}

/** What commands share; main.ts owns signals and hands them down. */
export interface Context {
  readonly version: string;
  readonly stdout: (text: string) => void;
  readonly stderr: (text: string) => void;
  /** Aborted by the first SIGINT or SIGTERM; a second one ends the process at once. */
  readonly interrupted: AbortSignal;
}

/** A mistake in how a command was called: one line, and exit code 2. */
export class UsageError extends Error {}

/** parseArgs with errors that say what is wrong in one line. */
export function parseOptions<Config extends NonNullable<ParseArgsConfig["options"]>>(
  args: readonly string[],
  options: Config,
  positionalsMax: number,
) {
  try {
    const parsed = parseArgs({ args: [...args], options, allowPositionals: true, strict: true });
    const surplus = parsed.positionals[positionalsMax];
    if (surplus !== undefined) throw new UsageError(`unexpected argument ${JSON.stringify(surplus)}`);
    return parsed;
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError(error instanceof Error ? (error.message.split(". ", 1)[0] ?? "") : String(error));
  }
}
