// Asks the running daemon over the admin socket that the configuration names, for the commands that do.

import { type Config, loadConfig } from "../config.ts";
import { PullError } from "../errors.ts";
import { askAdmin } from "../front/client.ts";

/** The answer's JSON; throws `unavailable` or `invalid` with what to do. */
export async function askDaemon(
  configFile: string | undefined,
  method: "GET" | "PUT" | "POST",
  path: string,
  body?: unknown,
): Promise<unknown> {
  const config = await configOf(configFile);
  if (config.admin.listen === "off")
    throw new PullError("invalid", "the daemon cannot be asked: admin.listen is off");
  return await askAdmin(config.admin.listen, method, path, body);
}

/** Of the daemon that is meant; throws `invalid` where a named file says nothing. */
export async function configOf(configFile: string | undefined): Promise<Config> {
  const { config, problems } = await loadConfig(configFile);
  // A named file that says nothing must not have another daemon asked; a wrong key elsewhere in it is no hindrance.
  const unread = problems.find((problem) => problem.path === "");
  if (configFile !== undefined && unread !== undefined)
    throw new PullError("invalid", `${configFile}: ${unread.message}`);
  return config;
}
