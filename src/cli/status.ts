// hawser status: what the running daemon says of itself.

import { PullError } from "../errors.ts";
import type { Status } from "../front/admin.ts";
import { askDaemon } from "./admin.ts";
import { type Command, parseOptions } from "./command.ts";

export const status: Command = {
  name: "status",
  summary: "say whether the running daemon accelerates pulls, and why not",
  help: `Usage: hawser status [--config FILE] [--json]

Asks the daemon over its admin socket. Exit code 0 when pulls are accelerated, 1 when they go through to containerd or
the daemon does not answer.

Options:
  --config FILE   configuration that names the socket (default /etc/hawser/hawser.toml)
  --json          for programs
`,
  run: async (args, context) => {
    const options = { config: { type: "string" }, json: { type: "boolean" } } as const;
    const { values } = parseOptions(args, options, 0);
    const answer = (await askDaemon(values.config, "GET", "/status")) as Status;
    if (typeof answer.pid !== "number")
      throw new PullError("internal", "the daemon's answer is not understood");
    context.stdout(values.json ? `${JSON.stringify(answer)}\n` : statusText(answer));
    return answer.accelerating ? 0 : 1;
  },
};

/** What a person is told. */
export function statusText(answer: Status): string {
  const { version, pid, accelerating, detail, pullers } = answer;
  const all = pullers.map((one) => `${one.pid} ${one.state}`).join(", ");
  return [
    accelerating ? "pulls are accelerated" : `every pull goes through to containerd: ${detail}`,
    `hawser ${version}, process ${pid}; pulled by: ${all || "none"}`,
    "",
  ].join("\n");
}
