// The doctor room put together: all checks, each on its own, in a fixed order.

import { execFile } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { type ContainerdOptions, inspectContainerd } from "../containerd/client.ts";
import type { Inspection } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import { checkCerts } from "./certs.ts";
import { checkClock } from "./clock.ts";
import { checkContainerd } from "./containerd.ts";
import { checkCrictl } from "./crictl.ts";
import { checkDaemon } from "./daemon.ts";
import { checkDisk } from "./disk.ts";
import type { Check, Context, DoctorOptions, Finding, Report } from "./doctor.ts";
import { checkEngine } from "./engine.ts";
import { checkKubelet, readKubelet } from "./kubelet.ts";
import { checkLimits } from "./limits.ts";
import { Processes } from "./processes.ts";
import { checkProxy } from "./proxy.ts";
import { checkRegistry } from "./registry.ts";
import { checkSystemd } from "./systemd.ts";
import { reasonOf, Tree } from "./tree.ts";

const limitMs = 10_000;
/** Two measurements for each host, and all that comes before them. */
const registryLimitMs = 120_000;
const inspectionMs = 5_000;
const commandMs = 5_000;
/** How long a check that is told to end may take for it. */
const graceMs = 1_000;

const checks: readonly Check[] = [
  { subject: "hawser", limitMs, run: checkDaemon },
  { subject: "containerd", limitMs, run: checkContainerd },
  { subject: "certs.d", limitMs, run: (context) => checkCerts(context) },
  { subject: "kubelet", limitMs, run: checkKubelet },
  { subject: "crictl", limitMs, run: checkCrictl },
  { subject: "engine", limitMs, run: (context) => checkEngine(context) },
  { subject: "disk", limitMs, run: checkDisk },
  { subject: "limits", limitMs, run: checkLimits },
  { subject: "proxy", limitMs, run: checkProxy },
  { subject: "systemd", limitMs, run: checkSystemd },
  { subject: "clock", limitMs, run: checkClock },
];

/** Reports in order, as they come; a registry is asked last, when nothing else takes from its rate. Never throws. */
export async function* examine(options: DoctorOptions, signal: AbortSignal): AsyncGenerator<Report> {
  const context = createContext(options);
  const running = checks.map(async (check) => await conduct(check, context, signal));
  for (const report of running) yield await report;
  const { registry } = options;
  if (registry === undefined) return;
  const last: Check = {
    subject: `registry ${registry.host}`,
    limitMs: registryLimitMs,
    run: (shared, within) => checkRegistry(shared, registry, within),
  };
  yield await conduct(last, context, signal);
}

export function createContext(options: DoctorOptions): Context {
  const tree = new Tree(options.root);
  const { containerd } = options;
  const asked = {
    ...containerd,
    address: tree.at(containerd.address),
    configFile: tree.at(containerd.configFile),
  };
  const context: Context = {
    options,
    tree,
    processes: new Processes(tree),
    inspection: once(async () => await inspected(asked)),
    kubelet: once(async () => await readKubelet(context, options.kubeletConfig)),
    ask: async (command, args) => {
      const { stdout } = await promisify(execFile)(command, [...args], { timeout: commandMs });
      return stdout;
    },
  };
  return context;
}

async function inspected(options: ContainerdOptions): Promise<Inspection> {
  try {
    return await inspectContainerd(options, AbortSignal.timeout(inspectionMs));
  } catch (error) {
    const failure = PullError.from(error);
    // What grpc-js says of a socket that is not there fills a screen; the containerd lines say it in a few words.
    if (failure.code !== "unavailable" && failure.code !== "cancelled") throw failure;
    throw new PullError("unavailable", "containerd does not answer", { cause: error });
  }
}

function once<Value>(ask: () => Promise<Value>): () => Promise<Value> {
  let asked: Promise<Value> | undefined;
  return async () => await (asked ??= ask());
}

/** What was found before a check threw or ran out of time counts. */
export async function conduct(check: Check, context: Context, signal: AbortSignal): Promise<Report> {
  const { subject, limitMs: patienceMs } = check;
  const findings: Finding[] = [];
  const stop = new AbortController();
  const both = AbortSignal.any([signal, stop.signal]);
  const late = new Promise<"late">((resolve) => {
    both.addEventListener("abort", () => resolve("late"), { once: true });
  });
  const timer = setTimeout(() => stop.abort(), patienceMs);
  const running = run(check, context, both, findings);
  const how = await Promise.race([running, late]);
  clearTimeout(timer);
  if (how === "over") return { subject, findings, isStuck: false };
  const why = signal.aborted ? "interrupted" : `not finished within ${patienceMs / 1000} s`;
  const told = [...findings, unfinished(why)];
  const grace = new AbortController();
  const patience = sleep(graceMs, "stuck" as const, { signal: grace.signal }).catch(() => "over" as const);
  const end = await Promise.race([running, patience]);
  grace.abort();
  return { subject, findings: told, isStuck: end === "stuck" };
}

/** Never rejects; adds nothing any more once the signal is aborted. */
async function run(
  check: Check,
  context: Context,
  signal: AbortSignal,
  findings: Finding[],
): Promise<"over"> {
  try {
    for await (const finding of check.run(context, signal)) {
      if (signal.aborted) break;
      findings.push(clean(finding));
    }
  } catch (error) {
    if (!signal.aborted) findings.push(unfinished(reasonOf(error)));
  }
  return "over";
}

function unfinished(reason: string): Finding {
  return clean({ state: "unknown", what: "check", finding: reason });
}

const lengthMax = 600;

/**
 * What others wrote (registries, certificates, files) may neither begin a line of its own nor speak to the terminal, and
 * a user in a URL is never shown.
 */
function clean({ state, what, finding, todo }: Finding): Finding {
  const text = (one: string): string =>
    one
      .replace(/\/\/[^\s"']*@/g, "//")
      .replace(/[\p{Cc}\p{Cf}\u2028\u2029]+/gu, " ")
      .slice(0, lengthMax);
  return { state, what: text(what), finding: text(finding), ...(todo !== undefined && { todo: text(todo) }) };
}
