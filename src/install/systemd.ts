// systemd, asked and told through systemctl.

import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { promisify } from "node:util";
import { PullError } from "../errors.ts";

/** Longer than any unit of ours takes to start or stop. */
const timeoutMs = 120_000;

/** Throws `unsupported` where systemd is not the init (sd_booted(3)). */
export function mustBeBooted(): void {
  if (existsSync("/run/systemd/system")) return;
  throw new PullError(
    "unsupported",
    "systemd does not run here, and an installation is a service of systemd",
  );
}

/** Its output; throws `internal` with systemctl's own first line. */
export async function systemctl(...args: readonly string[]): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)("systemctl", [...args], { timeout: timeoutMs });
    return stdout.trim();
  } catch (error) {
    const { stderr, message } = error as { readonly stderr?: string; readonly message: string };
    const why = (stderr ?? "").split("\n").find((line) => line !== "") ?? message;
    throw new PullError("internal", `systemctl ${args.join(" ")} failed: ${why}`, { cause: error });
  }
}

/** 0 when the unit does not run. */
export async function mainPid(unit: string): Promise<number> {
  return Number(await systemctl("show", "--property=MainPID", "--value", unit)) || 0;
}
