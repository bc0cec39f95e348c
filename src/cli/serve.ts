// hawser serve: the daemon in the foreground, until a signal.

import { writeSync } from "node:fs";
import { loadConfig } from "../config.ts";
import { PullError } from "../errors.ts";
import { Front } from "../front/front.ts";
import { listenVariable, readyVariable } from "../front/succession.ts";
import { createLog, type Log } from "../log.ts";
import { createMetrics } from "../metrics.ts";

import { type Command, type Context, parseOptions } from "./command.ts";

/** How long running calls may take to end by themselves. */
const drainMs = 10_000;
/** The first descriptor of sd_listen_fds(3). */
const firstInherited = 3;

export const serve: Command = {
  name: "serve",
  summary: "run the daemon that serves the CRI image service",
  help: `Usage: hawser serve [--config FILE]

Serves CRI on the socket cri.listen (default /run/hawser/hawser.sock) until SIGTERM or SIGINT: pulls of images are
accelerated, everything else is forwarded to containerd. Point kubelet's imageServiceEndpoint at that socket.

A bad configuration does not stop it: it then passes every call through to containerd and says why.

Signals:
  SIGHUP          read the configuration again; what needs a restart is said in the log
  SIGUSR2         start the installed version and leave the socket to it; no call fails
  SIGTERM         end, with ten seconds for what is running

Options:
  --config FILE   configuration (default /etc/hawser/hawser.toml, which need not exist)
`,
  run: async (args, context) => {
    const { values } = parseOptions(args, { config: { type: "string" } }, 0);
    const load = async () => await loadConfig(values.config);
    const { config } = await load();
    // Sockets are root's alone.
    process.umask(0o077);
    const log = createLog({ level: config.log.level, format: config.log.format });
    const { environment, program, version } = context;
    const launch = environment["HAWSER_LAUNCH"];
    const front = await Front.start({
      config,
      log,
      metrics: createMetrics(version, "front"),
      version,
      environment: withoutInheritance(environment),
      inherited: inheritedSocket(environment),
      isSuccessor: environment[readyVariable] !== undefined,
      commands: {
        puller: [...program, "puller", ...args],
        // The launch file of whatever version is installed by then; it says "serve" itself.
        successor: launch === undefined ? [...program, "serve", ...args] : [launch, ...args],
      },
      load,
    });
    const ready = `ready on unix://${config.cri.listen}`;
    // At any level, and for machines as all that they read.
    if (config.log.format === "json") log.info(ready);
    else context.stderr(`hawser: ${ready}\n`);
    front.announce();
    tellPredecessor(environment);
    await untilOver(front, log, context);
    return 0;
  },
};

/** Until the process is told to end, or another has taken its place. */
async function untilOver(front: Front, log: Log, { interrupted, onSignal }: Context): Promise<void> {
  await new Promise<void>((resolve) => {
    const stop = (): void => {
      log.info("stopping");
      void front.stop(drainMs).then(resolve);
    };
    interrupted.addEventListener("abort", stop, { once: true });
    if (interrupted.aborted) stop();
    onSignal("SIGHUP", () => {
      front.reload().then(
        (messages) => log.info(`reload: ${messages.join("; ")}`),
        (error: unknown) => log.error(`reload: ${PullError.from(error).message}`),
      );
    });
    onSignal("SIGUSR2", () => {
      front.succeed().catch((error: unknown) => log.error(PullError.from(error).message));
    });
    front.over.then(resolve, (error: unknown) => {
      log.error(PullError.from(error).message);
      resolve();
    });
  });
}

/** A listening socket from the service manager (sd_listen_fds(3)), or from the process that this one succeeds. */
function inheritedSocket(environment: NodeJS.ProcessEnv): number | undefined {
  const handed = environment[listenVariable];
  if (handed !== undefined) return Number(handed);
  const isOurs = environment["LISTEN_PID"] === String(process.pid) && Number(environment["LISTEN_FDS"]) > 0;
  return isOurs ? firstInherited : undefined;
}

function withoutInheritance(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const { [listenVariable]: _listen, [readyVariable]: _ready, ...rest } = environment;
  return rest;
}

function tellPredecessor(environment: NodeJS.ProcessEnv): void {
  const ready = environment[readyVariable];
  if (ready === undefined) return;
  try {
    writeSync(Number(ready), "ready\n");
  } catch {
    // It is gone; there is nobody left to tell.
  }
}
