// The clock: certificates, tokens and leases are good or not by it. What a registry's clock says is told beside the
// registry.

import type { Context, Finding } from "./doctor.ts";

export async function* checkClock(
  context: Context,
  _signal: AbortSignal,
  now: () => number = Date.now,
): AsyncGenerator<Finding> {
  const { options, tree, ask } = context;
  const time = new Date(now());
  const shown = time.toISOString().replace(/\.\d+Z$/, "Z");
  if (time < options.madeAt) {
    const made = options.madeAt.toISOString().slice(0, 10);
    const finding = `says ${shown}, which is before this program was made (${made}): certificates and tokens look invalid`;
    yield { state: "broken", what: "time", finding, todo: "set the clock (timedatectl set-ntp true)" };
  } else yield { state: "ok", what: "time", finding: shown };
  if (!(await tree.isDirectory("/run/systemd/system"))) return;
  const what = "synchronization";
  const answer = await ask("timedatectl", ["show", "--property=NTPSynchronized"]).catch(() => "");
  const isSynchronized = /^NTPSynchronized=(yes|no)$/m.exec(answer)?.[1];
  if (isSynchronized === undefined) yield { state: "unknown", what, finding: "timedatectl cannot be asked" };
  else if (isSynchronized === "yes") yield { state: "ok", what, finding: "with a time server" };
  else {
    const todo = "start a time service (timedatectl set-ntp true)";
    yield { state: "slow", what, finding: "with no time server: the clock may drift away", todo };
  }
}

/** Beyond these, what one side calls valid the other may not. */
const skewMs = { slow: 30_000, broken: 300_000 } as const;

/** How far this clock is from the Date header of an answer that has just come in. */
export function compareClocks(date: string | undefined, now: number): Finding | undefined {
  const theirs = Date.parse(date ?? "");
  if (Number.isNaN(theirs)) return undefined;
  const what = "clock";
  const apartMs = Math.abs(now - theirs);
  const seconds = Math.round(apartMs / 1000);
  // The header is in whole seconds, and took its time.
  if (apartMs < skewMs.slow) return { state: "ok", what, finding: "agrees with this node's" };
  const finding = `${seconds} s ${now < theirs ? "ahead of" : "behind"} this node's`;
  const state = apartMs < skewMs.broken ? "slow" : "broken";
  return { state, what, finding, todo: "look at the clock lines; tokens and certificates depend on it" };
}
