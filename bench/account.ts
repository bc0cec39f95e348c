// npm run account: where the time of one pull goes. perf samples every thread of Hawser while an image is pulled; the
// kernel's own clocks say how long each thread ran, waited for a core and slept, and the metrics how long each stage took.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { PrivateContainerd } from "../test/harness/containerd.ts";
import { PrivateHawser } from "../test/harness/hawser.ts";
import { interruptible } from "./interrupt.ts";
import { type Load, withLoad } from "./load.ts";
import { cpuSeconds, machine, programs, table } from "./measure.ts";
import { type Sample, samplesOf } from "./samples.ts";
import { scenarios } from "./scenarios.ts";
import { certsOf, mustBeAccelerated, timeOfPulls, touchMemory } from "./sides.ts";

const usage = `Usage: npm run account [-- --image NAME] [--config TOML]

  --image NAME    ${scenarios.map(({ name }) => name).join(", ")} (default go)
  --config TOML   settings for Hawser
`;
/** Odd, so that nothing that happens at regular times is always hit or always missed. */
const samplesPerSecond = 1999;

const { values } = parseArgs({
  options: {
    image: { type: "string", default: "go" },
    config: { type: "string", default: "" },
    help: { type: "boolean" },
  },
});
const scenario = scenarios.find(({ name }) => name === values.image);
if (values.help || scenario === undefined) {
  console.log(usage);
  process.exit(values.help ? 0 : 2);
}

await interruptible(async (signal) => {
  await withLoad(scenario, console.error, signal, async (load) => {
    await touchMemory(load.images, signal);
    const account = await measure(load, signal);
    console.log(`${machine()}\n${programs()}\n${scenario.title}\n\n${describe(account)}`);
  });
});

/** Nanoseconds that a thread has run and has waited for a core. */
interface Clock {
  readonly role: string;
  readonly ran: number;
  readonly waited: number;
}

interface Account {
  readonly seconds: number;
  /** Of each thread, in the pull alone. */
  readonly threads: ReadonlyMap<number, Clock>;
  readonly samples: readonly Sample[];
  readonly stages: ReadonlyMap<string, number>;
  readonly containerdCpu: number;
  readonly registryCpu: number;
  readonly networkCpu: number;
}

async function measure(load: Load, signal: AbortSignal): Promise<Account> {
  const folder = mkdtempSync(join(tmpdir(), "account-"));
  try {
    await using containerd = await PrivateContainerd.start(certsOf(load));
    await using hawser = await PrivateHawser.start({ containerd: containerd.address, config: values.config });
    const pids = hawser.processes.map(({ pid }) => pid);
    const { registryPid, networkPid } = load;
    const others = (): number[] =>
      [containerd.pid, registryPid, networkPid].map((pid) => (pid === undefined ? 0 : cpuSeconds(pid)));
    const perf = await record(join(folder, "perf.data"), pids);
    const [before, theirs] = [clocks(hawser), others()];
    const seconds = await timeOfPulls(hawser.cri, load.references, signal);
    const [after, theirsAfter] = [clocks(hawser), others()];
    const samples = [...samplesOf(await finish(perf, join(folder, "perf.data")))];
    await mustBeAccelerated(hawser, load.images.length);
    const [containerdCpu = 0, registryCpu = 0, networkCpu = 0] = theirsAfter.map(
      (now, index) => now - (theirs[index] ?? 0),
    );
    const threads = new Map([...after].map(([tid, now]) => [tid, since(now, before.get(tid))]));
    return {
      seconds,
      threads,
      samples,
      stages: stagesOf(await hawser.metrics()),
      containerdCpu,
      registryCpu,
      networkCpu,
    };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function since(now: Clock, before: Clock | undefined): Clock {
  return { ...now, ran: now.ran - (before?.ran ?? 0), waited: now.waited - (before?.waited ?? 0) };
}

function clocks(hawser: PrivateHawser): Map<number, Clock> {
  const threads = hawser.processes.flatMap(({ pid, role }) =>
    readdirSync(`/proc/${pid}/task`).map((name) => {
      const [ran = 0, waited = 0] = readFileSync(`/proc/${pid}/task/${name}/schedstat`, "utf8")
        .split(" ")
        .map(Number);
      return [Number(name), { role: roleOf(pid, Number(name), role), ran, waited }] as const;
    }),
  );
  return new Map(threads);
}

/** Workers have a nice value of their own; everything else is a helper of Node's. */
function roleOf(pid: number, tid: number, role: string): string {
  if (tid === pid) return `${role}, main thread`;
  const fields = readFileSync(`/proc/${pid}/task/${tid}/stat`, "utf8")
    .replace(/^.*\) /, "")
    .split(" ");
  return Number(fields[16]) > 0 ? "puller, worker" : `${role}, helpers of Node`;
}

async function record(file: string, pids: readonly number[]): Promise<ChildProcess> {
  const frequency = ["-F", String(samplesPerSecond)];
  const args = [
    "record",
    "-q",
    "-e",
    "cpu-clock",
    ...frequency,
    "-g",
    "-o",
    file,
    "-p",
    pids.join(","),
    "--control",
  ];
  // perf says that it has begun once it has been told to, which needs a pair of pipes.
  const perf = spawn("perf", [...args, "fd:3,4"], { stdio: ["ignore", "ignore", "inherit", "pipe", "pipe"] });
  const [, , , control, said] = perf.stdio;
  if (!control || !("write" in control) || !said) throw new Error("perf has no pipes");
  control.write("enable\n");
  await Promise.race([
    once(said, "data"),
    once(perf, "exit").then(() => {
      throw new Error("perf cannot sample here (see /proc/sys/kernel/perf_event_paranoid)");
    }),
  ]);
  return perf;
}

async function finish(perf: ChildProcess, file: string): Promise<string> {
  const exited = once(perf, "exit");
  perf.kill("SIGINT");
  await exited;
  const args = ["script", "-i", file, "-F", "pid,tid,ip,sym,dso"];
  return execFileSync("perf", args, {
    encoding: "utf8",
    maxBuffer: 2 ** 30,
    stdio: ["ignore", "pipe", "ignore"],
  });
}

/** Seconds of each stage, summed over layers. */
function stagesOf(metrics: string): Map<string, number> {
  const lines = metrics.matchAll(/^hawser_stage_duration_seconds_sum\{stage="(\w+)"\} (\S+)$/gm);
  return new Map([...lines].map(([, stage = "", seconds]) => [stage, Number(seconds)]));
}

function describe(account: Account): string {
  const { seconds, containerdCpu, registryCpu, networkCpu } = account;
  const others = { containerd: containerdCpu, "the registry": registryCpu, "the shaped network": networkCpu };
  const costs = Object.entries(others).map(([name, cpu]) => `${name} ${cpu.toFixed(2)}`);
  return [
    `${seconds.toFixed(2)} s from the call to the answer; CPU seconds of ${costs.join(", of ")}`,
    `Stages, one behind another\n${stageTable(account)}`,
    `Threads of Hawser\n${threadTable(account)}`,
    `CPU seconds of Hawser, by what was done\n${kindTable(account)}`,
  ].join("\n\n");
}

function stageTable({ seconds, stages }: Account): string {
  const sequence = ["resolve", "plan", "layers", "blobs", "register"].map(
    (name) => [name, stages.get(name) ?? 0] as const,
  );
  const known = sequence.reduce((sum, [, one]) => sum + one, 0);
  const rows = [...sequence, ["all else (forwarding, answering)", seconds - known] as const];
  return table([["", "seconds"], ...rows.map(([name, one]) => [name, one.toFixed(3)])]);
}

function grouped<T>(all: readonly T[], nameOf: (one: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const one of all) {
    const group = groups.get(nameOf(one));
    if (group) group.push(one);
    else groups.set(nameOf(one), [one]);
  }
  return groups;
}

function threadTable({ seconds, threads }: Account): string {
  const roles = grouped([...threads.values()], ({ role }) => role);
  const rows = [...roles].map(([role, clocksOf]) => {
    const sum = (key: "ran" | "waited"): number => clocksOf.reduce((all, clock) => all + clock[key], 0) / 1e9;
    const asleep = clocksOf.length * seconds - sum("ran") - sum("waited");
    const times = [sum("ran"), sum("waited"), asleep].map((one) => one.toFixed(2));
    return [`${role} (${clocksOf.length})`].concat(times);
  });
  return table([["", "ran", "waited for a core", "slept"], ...rows]);
}

function kindTable({ threads, samples }: Account): string {
  const isMain = ({ tid }: Sample): boolean => threads.get(tid)?.role.endsWith("main thread") ?? false;
  const seconds = (ones: readonly Sample[]): string => (ones.length / samplesPerSecond).toFixed(3);
  const columns = (ones: readonly Sample[]): string[] => {
    const main = ones.filter(isMain);
    return [seconds(main), ((ones.length - main.length) / samplesPerSecond).toFixed(3), seconds(ones)];
  };
  const groups = [...grouped(samples, ({ kind }) => kind)].toSorted(([, a], [, b]) => b.length - a.length);
  const rows = groups.map(([kind, ones]) => [kind].concat(columns(ones)));
  const ran = [...threads.values()].reduce((sum, clock) => sum + clock.ran, 0) / 1e9;
  const share = ((100 * samples.length) / samplesPerSecond / ran).toFixed(1);
  const head = ["", "main threads", "all others", "together"];
  return `${table([head, ...rows, ["in all"].concat(columns(samples))])}
The kernel's clocks say ${ran.toFixed(3)} s, of which this is ${share} %.`;
}
