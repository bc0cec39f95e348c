// systemd's units of Hawser: installed, started with the node, running.

import type { Context, Finding } from "./doctor.ts";
import { reasonOf } from "./tree.ts";

const units = ["hawser.socket", "hawser.service"] as const;
const properties = ["Id", "LoadState", "UnitFileState", "ActiveState", "SubState", "NRestarts", "Result"];

type Properties = ReadonlyMap<string, string>;

export async function* checkSystemd({ tree, ask }: Context): AsyncGenerator<Finding> {
  // sd_booted(3): this folder is there where systemd is the init.
  if (!(await tree.isDirectory("/run/systemd/system"))) {
    yield { state: "unknown", what: "units", finding: "systemd does not run here" };
    return;
  }
  let text: string;
  try {
    text = await ask("systemctl", ["show", `--property=${properties.join(",")}`, ...units]);
  } catch (error) {
    yield { state: "unknown", what: "units", finding: `systemctl cannot be asked: ${reasonOf(error)}` };
    return;
  }
  const told = text.split(/\n\s*\n/).map(parse);
  for (const unit of units) yield judge(unit, told.find((one) => one.get("Id") === unit) ?? new Map());
}

function parse(block: string): Properties {
  const pairs = block.split("\n").flatMap((line): [string, string][] => {
    const at = line.indexOf("=");
    return at === -1 ? [] : [[line.slice(0, at), line.slice(at + 1)]];
  });
  return new Map(pairs);
}

function judge(unit: string, told: Properties): Finding {
  const value = (key: string): string => told.get(key) ?? "";
  const what = unit;
  const load = value("LoadState");
  if (load === "not-found")
    return { state: "unknown", what, finding: "is not installed", todo: "hawser install" };
  if (load !== "loaded") {
    const todo = `systemctl status ${unit}`;
    return { state: "broken", what, finding: `cannot be loaded (${load || "no answer"})`, todo };
  }
  const [active, sub] = [value("ActiveState"), value("SubState")];
  const isUp = active === "active" || active === "reloading";
  if (!isUp) {
    const why = active === "failed" ? ` (${value("Result")})` : "";
    const finding = `is ${active}${why}: ${sub}`;
    const todo = `journalctl -u ${unit}, then systemctl start ${unit}`;
    // On its way up it is not broken yet.
    return {
      state: active === "activating" && sub !== "auto-restart" ? "slow" : "broken",
      what,
      finding,
      todo,
    };
  }
  const restarts = Number(value("NRestarts") || 0);
  const enabled = value("UnitFileState");
  if (enabled === "disabled" || enabled === "masked") {
    const todo = `systemctl enable ${unit}`;
    return { state: "slow", what, finding: `runs, but is ${enabled}: not after the next boot`, todo };
  }
  if (restarts > 0) {
    const finding = `runs, after ${restarts} restarts that nobody asked for`;
    return { state: "slow", what, finding, todo: `journalctl -u ${unit} says why` };
  }
  return { state: "ok", what, finding: `${enabled || "installed"}, ${active} (${sub})` };
}
