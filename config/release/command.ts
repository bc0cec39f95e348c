// The programs that a release is made with: run to their end, and told in one line when they fail.

import { execFile, execFileSync } from "node:child_process";
import { promisify } from "node:util";

/** What whoever makes a release can do something about: one line, what and where. */
export class ReleaseError extends Error {}

export interface RunOptions {
  readonly cwd?: string;
  /** What to do when the program is not there. */
  readonly missing?: string;
}

/** Most that a program may print. */
const outputBytesMax = 64 * 2 ** 20;

/** Returns what the program printed on standard output. */
export async function run(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(command, [...args], settingsOf(options));
    return stdout;
  } catch (error) {
    throw explain(command, error, options);
  }
}

/** The same for callers that wait: nothing else happens meanwhile. */
export function runSync(command: string, args: readonly string[], options: RunOptions = {}): string {
  try {
    return execFileSync(command, [...args], { stdio: ["ignore", "pipe", "pipe"], ...settingsOf(options) });
  } catch (error) {
    throw explain(command, error, options);
  }
}

function settingsOf({ cwd }: RunOptions) {
  return {
    encoding: "utf8" as const,
    maxBuffer: outputBytesMax,
    // Messages, orders and options that do not depend on who runs it.
    env: { ...process.env, LC_ALL: "C", TAR_OPTIONS: undefined, GZIP: undefined, MAKEFLAGS: undefined },
    ...(cwd !== undefined && { cwd }),
  };
}

function explain(command: string, error: unknown, { missing }: RunOptions): ReleaseError {
  const { code, stderr, stdout } = error as NodeJS.ErrnoException &
    Partial<Record<"stderr" | "stdout", string>>;
  if (code === "ENOENT" && missing !== undefined)
    return new ReleaseError(`${command} is not installed: ${missing}`, { cause: error });
  // tsc tells of errors on standard output.
  const said = (stderr || stdout || "").trim().split("\n").slice(-3).join("; ");
  return new ReleaseError(`${command} failed: ${said || String(error)}`, { cause: error });
}
