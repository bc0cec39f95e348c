// hawser trace: one pull, and why it took as long as it did.

import type { PullRecord } from "../history/record.ts";
import { askDaemon } from "./admin.ts";
import { type Command, parseOptions } from "./command.ts";
import { waterfall } from "./waterfall.ts";

/** Of a terminal that does not say, and of a file. */
const columnsPreset = 100;

export const trace: Command = {
  name: "trace",
  summary: "show why a pull took as long as it did",
  help: `Usage: hawser trace [ID] [--config FILE] [--json]

Shows one pull: what most of its time went by with, what shows that, what can be done about it, and when each of its
layers was downloaded, unpacked and committed. ID is that of "hawser pulls", or its beginning; without it, the latest.

Options:
  --config FILE   configuration that names the admin socket (default /etc/hawser/hawser.toml)
  --json          for programs
`,
  run: async (args, context) => {
    const options = { config: { type: "string" }, json: { type: "boolean" } } as const;
    const { values, positionals } = parseOptions(args, options, 1);
    const [id = "latest"] = positionals;
    const path = `/pulls/${encodeURIComponent(id)}`;
    const record = (await askDaemon(values.config, "GET", path)) as PullRecord;
    const drawing = { columns: context.columns() ?? columnsPreset, isColoured: context.isColoured };
    context.stdout(values.json ? `${JSON.stringify(record)}\n` : waterfall(record, drawing));
    return 0;
  },
};
