// hawser puller: the process that pulls, as "hawser serve" starts it; by itself for whoever wants to watch one closely.

import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { loadConfig } from "../config.ts";
import { type Daemon, startDaemon } from "../daemon.ts";
import { PullError } from "../errors.ts";
import { expose } from "../exposition.ts";
import type { FromPuller, PrewarmAnswer, ToPuller } from "../front/messages.ts";
import { createLog } from "../log.ts";
import { createMetrics, type Metrics } from "../metrics.ts";
import { proxySettings } from "../registry/proxy.ts";
import { type Command, type Context, type Pipe, parseOptions } from "./command.ts";

/** How long running calls may take to end by themselves. */
const drainMs = 10_000;
/** When memory is short the kernel is to take a pull, which can be done again, rather than a pod. */
const oomScoreAdjust = "500";

export const puller: Command = {
  name: "puller",
  summary: undefined,
  help: `Usage: hawser puller [--config FILE] [--listen SOCKET]

The process that does the work of pulls. "hawser serve" starts it and speaks to it through SOCKET; without that it
serves all of CRI on cri.listen by itself, with nothing that would catch its calls if it died.

Options:
  --config FILE     configuration (default /etc/hawser/hawser.toml, which need not exist)
  --listen SOCKET   socket to serve on (default cri.listen)
`,
  run: async (args, context) => {
    const options = { config: { type: "string" }, listen: { type: "string" } } as const;
    const { values } = parseOptions(args, options, 0);
    const { config, problems, file } = await loadConfig(values.config);
    // Sockets and spools are root's alone; workers that unpack have a umask of their own.
    process.umask(0o077);
    const log = createLog({ level: config.log.level, format: config.log.format });
    for (const { path, message } of problems)
      log.error(`configuration ${file}: ${path ? `${path}: ` : ""}${message}`);
    const { version, pipe } = context;
    const metrics = createMetrics(version, "puller");
    const socket = values.listen ?? config.cri.listen;
    const tell = (message: FromPuller): void => pipe?.send(message);
    // What is known before the socket answers is told behind it: the front asks for nothing earlier.
    const early: FromPuller[] = [];
    let tellSite = (message: FromPuller): void => void early.push(message);
    const daemon = await startDaemon({
      config,
      problems,
      log,
      metrics,
      version,
      socket,
      proxy: proxySettings(context.environment),
      siteChanged: (now) => {
        const closed = now && { reason: now.reason, detail: now.detail };
        tellSite({ kind: "site", ...(closed && { closed }) });
      },
    });
    tellSite = tell;
    for (const message of [{ kind: "listening" } as const, ...early]) tell(message);
    if (pipe) await serveFront(daemon, metrics, pipe);
    else await serveAlone(daemon, metrics, context, config.metrics.listen, socket);
    return 0;
  },
};

/** Until the front says that it is over, or is gone: then nobody waits for the calls that are left. */
async function serveFront(daemon: Daemon, metrics: Metrics, pipe: Pipe): Promise<void> {
  await writeFile("/proc/self/oom_score_adj", oomScoreAdjust).catch(() => {});
  const timeoutMs = await new Promise<number>((resolve) => {
    pipe.closed.addEventListener("abort", () => resolve(0), { once: true });
    if (pipe.closed.aborted) resolve(0);
    pipe.listen((received) => {
      const message = received as ToPuller;
      if (message.kind === "drain") resolve(message.timeoutMs);
      else if (message.kind === "ping") pipe.send({ kind: "pong" } satisfies FromPuller);
      else if (message.kind === "prewarm") void answerPrewarm(daemon, pipe, message);
      else if (message.kind === "metrics") void answerMetrics(metrics, pipe, message.id);
      else answerPulls(daemon, pipe, message);
    });
  });
  await daemon.drain(timeoutMs);
  pipe.close();
}

async function answerMetrics(metrics: Metrics, pipe: Pipe, id: number): Promise<void> {
  // A default metric that cannot be collected (/proc hidden, descriptors used up) costs this answer only.
  const all = await metrics.registry.getMetricsAsJSON().catch(() => []);
  pipe.send({ kind: "metrics", id, metrics: all } satisfies FromPuller);
}

function answerPulls(
  daemon: Daemon,
  pipe: Pipe,
  message: Extract<ToPuller, { kind: "pulls" | "pull" | "cancel" }>,
): void {
  const { id, kind } = message;
  const answer = (): FromPuller => {
    if (kind === "pulls") return { kind, id, pulls: daemon.pulls() };
    if (kind === "pull") return { kind, id, pull: daemon.pull(message.pull) };
    return { kind, id, isCancelled: daemon.cancel(message.pull) };
  };
  pipe.send(answer());
}

async function answerPrewarm(
  daemon: Daemon,
  pipe: Pipe,
  { id, request }: Extract<ToPuller, { kind: "prewarm" }>,
): Promise<void> {
  let answer: PrewarmAnswer;
  try {
    answer = { kind: "status", status: await daemon.prewarm(request) };
  } catch (error) {
    const { code, message } = PullError.from(error);
    answer = { kind: "error", code, message };
  }
  pipe.send({ kind: "prewarm", id, answer } satisfies FromPuller);
}

async function serveAlone(
  daemon: Daemon,
  metrics: Metrics,
  { interrupted, stderr }: Context,
  listen: { readonly host: string; readonly port: number } | "off",
  socket: string,
): Promise<void> {
  const read = async (): Promise<string> => await metrics.registry.metrics();
  const exposition = listen === "off" ? undefined : await expose({ read }, listen.host, listen.port);
  if (listen !== "off") stderr(`hawser: metrics on ${listen.host}:${exposition?.port}\n`);
  stderr(`hawser: ready on unix://${socket}\n`);
  if (!interrupted.aborted) await once(interrupted, "abort");
  await daemon.drain(drainMs);
  await exposition?.close();
}
