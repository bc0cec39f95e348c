// hawser pulls: the pulls that go on, and the latest that have ended. hawser cancel: ends one that goes on.

import type { PullList } from "../front/pulls.ts";
import type { PullRecord } from "../history/record.ts";
import type { PullSummary } from "../history/summary.ts";
import { nameOf } from "../history/verdict.ts";
import { agoText, bytesText, rateText, secondsText } from "../history/words.ts";
import { askDaemon } from "./admin.ts";
import { type Command, parseOptions, plainLine, UsageError } from "./command.ts";

export const pulls: Command = {
  name: "pulls",
  summary: "list the pulls that go on and the latest that have ended",
  help: `Usage: hawser pulls [--count N] [--config FILE] [--json]

Lists the pulls that go on, with their progress, and the latest that have ended, with what most of their time went by
with; "hawser trace ID" shows more of one.

Options:
  --count N       how many that have ended (default 20)
  --config FILE   configuration that names the admin socket (default /etc/hawser/hawser.toml)
  --json          for programs
`,
  run: async (args, context) => {
    const options = {
      config: { type: "string" },
      count: { type: "string" },
      json: { type: "boolean" },
    } as const;
    const { values } = parseOptions(args, options, 0);
    const count = values.count ?? "20";
    if (!/^([1-9]\d{0,2}|1000)$/.test(count))
      throw new UsageError("expected a number from 1 to 1000 behind --count");
    const list = (await askDaemon(values.config, "GET", `/pulls?count=${count}`)) as PullList;
    context.stdout(values.json ? `${JSON.stringify(list)}\n` : listText(list, Date.now()));
    return 0;
  },
};

export const cancel: Command = {
  name: "cancel",
  summary: "end a pull that goes on",
  help: `Usage: hawser cancel ID [--config FILE]

Ends a pull that goes on, as if whoever asked for it had gone; what it has fetched waits for the next attempt. Kubelet
tries again after a while; so does the daemon with an image that is to be fetched ahead, until "hawser prewarm rm". ID is
that of "hawser pulls", or its beginning.

Options:
  --config FILE   configuration that names the admin socket (default /etc/hawser/hawser.toml)
`,
  run: async (args, context) => {
    const { values, positionals } = parseOptions(args, { config: { type: "string" } } as const, 1);
    const [id] = positionals;
    if (id === undefined) throw new UsageError('expected the id of a pull; "hawser pulls" lists them');
    const path = `/pulls/${encodeURIComponent(id)}/cancel`;
    const ended = (await askDaemon(values.config, "POST", path)) as PullRecord;
    context.stdout(plainLine(`cancelled pull ${ended.id} of ${ended.image}`));
    return 0;
  },
};

/** A longer name would push all else out of sight. */
const imageMax = 100;
const heads = ["ID", "IMAGE", "STATE", "BEGAN", "TIME", "SIZE", "BOTTLENECK"];

/** A table; `now` is what "began" is counted back from, in milliseconds since 1970. */
export function listText({ running, ended }: PullList, now: number): string {
  const rows = [...running.toReversed(), ...ended].map((pull) => rowOf(pull, now));
  if (rows.length === 0) return "there has been no pull yet\n";
  const widths = heads.map((head, column) =>
    Math.max(head.length, ...rows.map((row) => (row[column] ?? "").length)),
  );
  return [heads, ...rows]
    .map((row) => plainRow(row.map((text, column) => text.padEnd(widths[column] ?? 0)).join("  ")))
    .join("");
}

function rowOf(pull: PullSummary, now: number): readonly string[] {
  const { id, image, startedAt, seconds, bytes, verdict } = pull;
  const share = verdict ? ` ${Math.round(100 * verdict.share)} %` : "";
  return [
    id,
    shortened(plainLine(image || "?").trim()),
    stateOf(pull),
    agoText((now - Date.parse(startedAt)) / 1000),
    secondsText(seconds),
    bytes > 0 ? bytesText(bytes) : "-",
    verdict ? `${nameOf(verdict)}${share}` : "-",
  ];
}

/** All of it is in the JSON. */
function shortened(image: string): string {
  return image.length <= imageMax ? image : `${image.slice(0, imageMax - 1)}…`;
}

/** How far it is, or how it ended. */
function stateOf(pull: PullSummary): string {
  const {
    state,
    outcome,
    delegation,
    bytes,
    doneBytes,
    bytesPerSecond = 0,
    remainingSeconds,
    isAhead,
  } = pull;
  const ahead = isAhead ? " (ahead)" : "";
  if (state !== "running")
    return `${outcome?.path === "delegated" ? `${state} (containerd)` : state}${ahead}`;
  if (delegation) return `running (containerd)${ahead}`;
  if (bytes === 0) return `running${ahead}`;
  const left = remainingSeconds === undefined ? "" : `, ${secondsText(remainingSeconds)} left`;
  return `${Math.floor((100 * doneBytes) / bytes)} % at ${rateText(bytesPerSecond)}${left}${ahead}`;
}

function plainRow(text: string): string {
  return `${text.trimEnd()}\n`;
}
