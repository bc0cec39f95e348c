// hawser serve: the daemon in the foreground, until a signal.

import { once } from "node:events";
import { loadConfig } from "../config.ts";
import { startDaemon } from "../daemon.ts";
import { createLog } from "../log.ts";
import { createMetrics } from "../metrics.ts";
import { type Command, parseOptions } from "./command.ts";

/** How long running calls may take to end by themselves. */
const drainMs = 10_000;

export const serve: Command = {
  name: "serve",
  summary: "run the daemon that serves the CRI image service",
  help: `Usage: hawser serve [--config FILE]

Serves CRI on the socket cri.listen (default /run/hawser/hawser.sock) until SIGTERM or SIGINT: pulls of images are
accelerated, everything else is forwarded to containerd. Point kubelet's imageServiceEndpoint at that socket.

A bad configuration does not stop it: it then passes every call through to containerd and says why.

Options:
  --config FILE   configuration (default /etc/hawser/hawser.toml, which need not exist)
`,
  run: async (args, context) => {
    const { values } = parseOptions(args, { config: { type: "string" } }, 0);
    const { config, problems } = await loadConfig(values.config);
    // Sockets and spools are root's alone; workers that unpack have a umask of their own.
    process.umask(0o077);
    const log = createLog({ level: config.log.level, format: config.log.format });
    for (const { path, message } of problems)
      log.error(`configuration: ${path ? `${path}: ` : ""}${message}`);
    const metrics = createMetrics(context.version);
    const daemon = await startDaemon({ config, problems, log, metrics, version: context.version });
    context.stderr(`hawser: ready on unix://${config.cri.listen}\n`);
    if (!context.interrupted.aborted) await once(context.interrupted, "abort");
    log.info("stopping");
    await daemon.drain(drainMs);
    return 0;
  },
};
