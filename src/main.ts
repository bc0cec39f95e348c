#!/usr/bin/env node
// The program: from arguments to a command, from signals to an interruption, from errors to an exit code.

import { readFileSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { type Command, type Context, type Pipe, UsageError } from "./cli/command.ts";
import { PullError } from "./errors.ts";
import { armFailpoint } from "./failpoint.ts";

/** Loaded when asked for, since most of a short command's time would go into what others need. */
const commands: Readonly<Record<string, () => Promise<Command>>> = {
  serve: async () => (await import("./cli/serve.ts")).serve,
  pull: async () => (await import("./cli/pull.ts")).pull,
  config: async () => (await import("./cli/config.ts")).config,
  doctor: async () => (await import("./cli/doctor.ts")).doctor,
  load: async () => (await import("./cli/load.ts")).load,
  prewarm: async () => (await import("./cli/prewarm.ts")).prewarm,
  pulls: async () => (await import("./cli/pulls.ts")).pulls,
  trace: async () => (await import("./cli/trace.ts")).trace,
  cancel: async () => (await import("./cli/pulls.ts")).cancel,
  status: async () => (await import("./cli/status.ts")).status,
  passthrough: async () => (await import("./cli/passthrough.ts")).passthrough,
  install: async () => (await import("./cli/install.ts")).install,
  upgrade: async () => (await import("./cli/upgrade.ts")).upgrade,
  uninstall: async () => (await import("./cli/install.ts")).uninstall,
  agent: async () => (await import("./cli/agent.ts")).agent,
  puller: async () => (await import("./cli/puller.ts")).puller,
};

async function usage(): Promise<string> {
  const all = await Promise.all(Object.values(commands).map((load) => load()));
  const lines = all.flatMap(({ name, summary }) => (summary ? [`  ${name.padEnd(13)}${summary}`] : []));
  return `Hawser makes image pulls fast on a Kubernetes node that runs containerd.

Usage: hawser COMMAND [OPTIONS]

Commands:
${lines.join("\n")}
  version      print the version

Run "hawser COMMAND --help" for a command's options. Settings are read from /etc/hawser/hawser.toml, every one of
them optional; "hawser config show" lists them.

Try it beside a running containerd, as root:
  hawser serve &
  hawser pull docker.io/library/busybox:latest
`;
}

async function main(argv: readonly string[], context: Context): Promise<number> {
  // "help pull" is "pull --help".
  const [name, ...args] = argv[0] === "help" ? [...argv.slice(1), "--help"] : argv;
  if (name === "--help" || name === "-h") {
    context.stdout(await usage());
    return 0;
  }
  if (name === "version" || name === "--version") {
    context.stdout(`hawser ${context.version} (node ${process.version})\n`);
    return 0;
  }
  const load = name !== undefined && Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (load === undefined) {
    throw new UsageError(
      name === undefined ? "expected a command" : `there is no command ${JSON.stringify(name)}`,
    );
  }
  const command = await load();
  outlivesReader = command.outlivesReader ?? false;
  if (args.includes("--help") || args.includes("-h")) {
    context.stdout(command.help);
    return 0;
  }
  return await command.run(args, context);
}

function interruption(): AbortSignal {
  const abort = new AbortController();
  const onSignal = (signal: NodeJS.Signals): void => {
    if (abort.signal.aborted) {
      if (lastWords !== undefined) process.stderr.write(lastWords);
      process.exit(signal === "SIGINT" ? 130 : 143);
    }
    abort.abort();
  };
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  return abort.signal;
}

function pipe(): Pipe | undefined {
  if (process.send === undefined) return undefined;
  const closed = new AbortController();
  process.on("disconnect", () => closed.abort());
  // Whoever started it may have gone while it was being loaded.
  if (!process.connected) closed.abort();
  return {
    // An error says that the other end is gone, which `closed` says as well.
    send: (message) => void process.send?.(message, undefined, undefined, () => {}),
    listen: (listener) => void process.on("message", listener),
    closed: closed.signal,
    close: () => {
      if (process.connected) process.disconnect();
    },
  };
}

let outlivesReader = false;
let lastWords: string | undefined;

/** A reader that has gone (`hawser config show | head`) is no fault; a standard error that is broken can tell nobody. */
function surviveBrokenOutput(): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (outlivesReader) return;
    if (error.code !== "EPIPE") process.stderr.write(`hawser: cannot write: ${error.message}\n`);
    process.exit(1);
  });
  process.stderr.on("error", () => {});
}

const packageFile = new URL("../package.json", import.meta.url);
const { version } = JSON.parse(readFileSync(packageFile, "utf8")) as { version: string };
const context: Context = {
  version,
  packageFile,
  environment: process.env,
  isColoured: process.stdout.isTTY && !process.env["NO_COLOR"],
  columns: () => (process.stdout.isTTY ? process.stdout.columns || undefined : undefined),
  errorTerminal: () => {
    const { isTTY, columns, rows } = process.stderr;
    // One that does not say how large it is, as on a serial line, is told in lines.
    return isTTY && columns > 0 && rows > 0 && process.env["TERM"] !== "dumb" ? { columns, rows } : undefined;
  },
  stdout: (text) => process.stdout.write(text),
  stderr: (text) => process.stderr.write(text),
  interrupted: interruption(),
  lastWords: (line) => (lastWords = line),
  program: [process.execPath, ...process.execArgv, process.argv[1] ?? ""],
  onSignal: (signal, listener) => void process.on(signal, listener),
  pipe: pipe(),
};

surviveBrokenOutput();
// undici's parser is WebAssembly, and reads little: optimizing it would cost 0.25 CPU seconds of the first pull.
setFlagsFromString("--liftoff-only");
armFailpoint(process.env["HAWSER_FAILPOINT"]);
try {
  process.exitCode = await main(process.argv.slice(2), context);
} catch (error) {
  const isUsage = error instanceof UsageError;
  const hint = isUsage ? ' (see "hawser --help")' : "";
  const message =
    isUsage || error instanceof PullError ? error.message : `unexpected fault: ${String(error)}`;
  context.stderr(`hawser: ${message}${hint}\n`);
  process.exitCode = isUsage ? 2 : 1;
  // An open pipe would keep the process.
  context.pipe?.close();
}
