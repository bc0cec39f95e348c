// hawser passthrough: the switch that has every pull go through to containerd, at run time.

import type { Status } from "../front/admin.ts";
import { askDaemon } from "./admin.ts";
import { type Command, parseOptions, UsageError } from "./command.ts";
import { statusText } from "./status.ts";

export const passthrough: Command = {
  name: "passthrough",
  summary: "have every pull go through to containerd, or no longer",
  help: `Usage: hawser passthrough on [--persist] | off | status

Takes effect for the next pull; pulls that are running go on. Nothing is restarted.

  on        every pull goes through to containerd
  off       pulls are accelerated again
  status    say which it is

Options:
  --persist       with "on": stays so over restarts of the daemon and of the node, until "off"
  --config FILE   configuration that names the admin socket (default /etc/hawser/hawser.toml)
`,
  run: async (args, context) => {
    const options = { config: { type: "string" }, persist: { type: "boolean" } } as const;
    const { values, positionals } = parseOptions(args, options, 1);
    const [word] = positionals;
    if (word !== "on" && word !== "off" && word !== "status")
      throw new UsageError("expected on, off or status");
    if (values.persist && word !== "on") throw new UsageError("--persist goes with on");
    const status = await (word === "status"
      ? askDaemon(values.config, "GET", "/status")
      : askDaemon(values.config, "PUT", "/passthrough", {
          on: word === "on",
          persistent: values.persist ?? false,
        }));
    context.stdout(switchText(status as Status));
    return 0;
  },
};

function switchText(status: Status): string {
  const { switch: state } = status;
  if (state.kind === "off") return `passthrough is off: ${statusText(status)}`;
  const until = state.persistent ? 'until "hawser passthrough off"' : "until the daemon restarts";
  return `passthrough is on, ${until}: ${statusText(status)}`;
}
