// What every command is: its own help, and a run that ends in an exit code. 0 is success, 1 is failure, 2 is usage.

import { type ParseArgsConfig, parseArgs } from "node:util";
import { plain } from "../history/words.ts";

export interface Command {
  readonly name: string;
  /** One line for the list of commands; none for what only Hawser itself starts. */
  readonly summary: string | undefined;
  readonly help: string;
  /** What it has begun is worth more than who reads of it: it goes on when nobody does any more, and ends as it should. */
  readonly outlivesReader?: boolean;
  readonly run: (args: readonly string[], context: Context) => Promise<number>;
}

export interface Terminal {
  readonly columns: number;
  readonly rows: number;
}

/** What commands share; main.ts owns signals and hands them down. */
export interface Context {
  readonly version: string;
  /** The program's package.json, as old as the program is. */
  readonly packageFile: URL;
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Standard output is a terminal that takes colours. */
  readonly isColoured: boolean;
  /** Of the terminal on standard output; undefined where it is none, or does not say. */
  readonly columns: () => number | undefined;
  /** The terminal on standard error, if it is one on which what was written can be written over. */
  readonly errorTerminal: () => Terminal | undefined;
  readonly stdout: (text: string) => void;
  readonly stderr: (text: string) => void;
  /** Aborted by the first SIGINT or SIGTERM; a second one ends the process at once. */
  readonly interrupted: AbortSignal;
  /** What a second one has standard error say from now on: what is left half done, and what to do about it. */
  readonly lastWords: (line: string | undefined) => void;
  /** Command line of this program, without a command's name. */
  readonly program: readonly string[];
  /** Calls back on each signal of this name, instead of ending the process. */
  readonly onSignal: (signal: "SIGHUP" | "SIGUSR2", listener: () => void) => void;
  /** The pipe to the process that started this one, where there is one. */
  readonly pipe: Pipe | undefined;
}

/** Messages to and from the process that started this one. */
export interface Pipe {
  readonly send: (message: unknown) => void;
  readonly listen: (listener: (message: unknown) => void) => void;
  /** Aborted when it is gone. */
  readonly closed: AbortSignal;
  /** Has this process end once it has nothing left to do. */
  readonly close: () => void;
}

/** One line; what registries and archives say may not speak to the terminal, nor turn it round. */
export function plainLine(text: string): string {
  return `${plain(text)}\n`;
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
