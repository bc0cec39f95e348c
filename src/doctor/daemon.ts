// Hawser itself: its configuration, whether its daemon answers on the socket, of which version it is, and whether it
// accelerates pulls or passes them through, and why.

import { request } from "undici";
import { Channel } from "../containerd/channel.ts";
import { runtime } from "../containerd/methods.ts";
import { PullError } from "../errors.ts";
import { tryConnect } from "./containerd.ts";
import type { Context, Finding, State } from "./doctor.ts";
import { daemonOf, plainPath, socketOf, standInOf } from "./processes.ts";
import { codeOf, reasonOf } from "./tree.ts";

const metricsBytesMax = 4 * 1024 * 1024;

export async function* checkDaemon(context: Context, signal: AbortSignal): AsyncGenerator<Finding> {
  yield configuration(context);
  const socket = await socketFinding(context);
  yield socket;
  if (socket.state !== "ok") return;
  yield await criAnswer(context, signal);
  yield* metricsFindings(context, signal);
}

function configuration({ options }: Context): Finding {
  const what = "configuration";
  const { file, problems } = options.configuration;
  const [first, ...others] = problems;
  if (first === undefined) return { state: "ok", what, finding: file ?? "defaults, there is no file" };
  const more = others.length > 0 ? ` (and ${others.length} more)` : "";
  const finding = `${first}${more}: every pull goes through to containerd`;
  return {
    state: "broken",
    what,
    finding,
    todo: `hawser config check${file === undefined ? "" : ` ${file}`}`,
  };
}

async function socketFinding(context: Context): Promise<Finding> {
  const { options, tree, processes } = context;
  const what = "socket";
  const failure = await tryConnect(tree.at(options.socket));
  if (failure !== undefined) return await silent(context, failure);
  const listening = await processes.listening(options.socket);
  const daemon = daemonOf(listening);
  if (standInOf(listening) && daemon === undefined) {
    const finding = `${options.socket} is served by systemd-socket-proxyd: the daemon did not keep running`;
    return { state: "broken", what, finding, todo: "journalctl -u hawser.service says why" };
  }
  const pid = daemon === undefined ? "" : ` (process ${daemon.pid})`;
  return { state: "ok", what, finding: `${options.socket} answers${pid}` };
}

/** Broken only where somebody counts on it: a node may be looked at before Hawser is on it. */
async function silent({ options, kubelet }: Context, failure: Error): Promise<Finding> {
  const what = "socket";
  const finding = `${options.socket}: ${reasonOf(failure)}`;
  if (codeOf(failure) === "EACCES") return { state: "unknown", what, finding };
  const settings = await kubelet().catch(() => undefined);
  const endpoint = settings?.values.get("imageServiceEndpoint") ?? "";
  const todo = "start the daemon (systemctl start hawser.socket hawser.service, or hawser serve)";
  if (socketOf(endpoint) === plainPath(options.socket)) {
    return { state: "broken", what, finding: `${finding}, and kubelet pulls through it`, todo };
  }
  if (codeOf(failure) !== "ENOENT") return { state: "broken", what, finding, todo };
  return { state: "unknown", what, finding: `${finding}; the daemon does not run`, todo };
}

/** A call that only reads, all the way through the daemon to containerd. */
async function criAnswer({ options, tree }: Context, signal: AbortSignal): Promise<Finding> {
  const what = "CRI";
  const channel = new Channel({ address: tree.at(options.socket), namespace: options.containerd.namespace });
  try {
    await channel.call(runtime.status, { verbose: false }, { signal });
    return { state: "ok", what, finding: "calls are answered by containerd" };
  } catch (error) {
    const finding = `calls fail: ${PullError.from(error).message}`;
    return { state: "broken", what, finding, todo: "look at the containerd lines, and at the daemon's log" };
  } finally {
    channel.close();
  }
}

/** One line of the exposition: its labels, when the value is not 0. */
interface Sample {
  readonly name: string;
  readonly labels: ReadonlyMap<string, string>;
}

async function* metricsFindings({ options }: Context, signal: AbortSignal): AsyncGenerator<Finding> {
  const what = "acceleration";
  if (options.metrics === undefined) {
    yield {
      state: "unknown",
      what,
      finding: "metrics.listen is off, so the daemon cannot say",
      todo: "look at its log",
    };
    return;
  }
  const host = /^(?:0\.0\.0\.0|::)$/.test(options.metrics.host) ? "127.0.0.1" : options.metrics.host;
  const address = `${host.includes(":") ? `[${host}]` : host}:${options.metrics.port}`;
  let samples: Sample[];
  try {
    samples = parseSamples(await fetchMetrics(`http://${address}/metrics`, signal));
  } catch (error) {
    const finding = `the daemon's metrics at ${address} cannot be read: ${reasonOf(error)}`;
    yield { state: "unknown", what, finding, todo: "set metrics.listen to a free address" };
    return;
  }
  yield versionFinding(samples, options.version);
  yield acceleration(samples);
  for (const { labels } of samples.filter(({ name }) => name === "hawser_breaker_open")) {
    const finding = `${labels.get("host")} failed repeatedly and is not asked now`;
    yield {
      state: "slow",
      what: "registry",
      finding,
      todo: `hawser doctor --registry ${labels.get("host")}`,
    };
  }
}

async function fetchMetrics(url: string, signal: AbortSignal): Promise<string> {
  const { body, statusCode } = await request(url, { signal });
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of body as AsyncIterable<Buffer>) {
    parts.push(part);
    bytes += part.length;
    if (bytes > metricsBytesMax) throw new PullError("exhausted", "too long an answer");
  }
  if (statusCode !== 200) throw new PullError("unavailable", `status ${statusCode}`);
  return Buffer.concat(parts).toString("utf8");
}

function parseSamples(text: string): Sample[] {
  return text.split("\n").flatMap((line): Sample[] => {
    const [, name, inside = "", value] = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (name === undefined || Number(value) === 0) return [];
    const labels = [...inside.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)];
    return [
      { name, labels: new Map(labels.map(([, key = "", one = ""]) => [key, one.replace(/\\(.)/g, "$1")])) },
    ];
  });
}

function versionFinding(samples: readonly Sample[], own: string): Finding {
  const what = "version";
  const running = samples.find(({ name }) => name === "hawser_build_info")?.labels.get("version");
  if (running === undefined) return { state: "unknown", what, finding: "the daemon's metrics do not say" };
  if (running === own) return { state: "ok", what, finding: own };
  const finding = `the daemon is ${running} and this program ${own}`;
  return { state: "slow", what, finding, todo: "restart the daemon, or use its own hawser command" };
}

/** Why pulls pass through: whether that is a fault, and where to go on. */
const passThrough: Readonly<Record<string, { readonly state: State; readonly todo: string }>> = {
  configuration: { state: "broken", todo: "hawser config check, then restart the daemon" },
  engine: { state: "broken", todo: "look at the engine lines" },
  "self-test": { state: "broken", todo: "look at the containerd lines; the daemon's log names the step" },
  containerd: { state: "broken", todo: "look at the containerd lines" },
  unfit: { state: "slow", todo: "look at the containerd lines" },
  selinux: { state: "slow", todo: "look at the containerd lines" },
  starting: { state: "slow", todo: "ask again in a moment" },
};

function acceleration(samples: readonly Sample[]): Finding {
  const what = "acceleration";
  const sample = samples.find(({ name }) => name === "hawser_pass_through");
  if (sample) {
    const reason = sample.labels.get("reason") ?? "";
    const { state, todo } = passThrough[reason] ?? { state: "slow", todo: "the daemon's log says why" };
    return { state, what, finding: `off, every pull goes through to containerd (${reason})`, todo };
  }
  const engine = samples.find(({ name }) => name === "hawser_engine_info")?.labels.get("engine");
  if (engine === undefined) return { state: "unknown", what, finding: "the daemon's metrics do not say" };
  return { state: "ok", what, finding: `on, with the ${engine} engine` };
}
