// Succession: another process, of another version maybe, takes the socket over while this one is still listening.
//
// The successor inherits the listening descriptor and says on a pipe when it serves. Only then may this process yield;
// a successor that never says so is killed, and everything stays as it was.

import { spawn } from "node:child_process";
import type { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { PullError } from "../errors.ts";

/** Where a successor finds what it inherits; the variables' values are these numbers. */
const inheritance = { listen: 3, ready: 4 } as const;
export const listenVariable = "HAWSER_LISTEN_FD";
export const readyVariable = "HAWSER_READY_FD";

/** From its start to its word that it serves. */
const readyMsMax = 30_000;
const word = "ready";
const lineLengthMax = 100;

export interface SuccessorOptions {
  readonly command: readonly string[];
  readonly environment: NodeJS.ProcessEnv;
  readonly listenFd: number;
}

/**
 * Starts the command as a child of whoever takes orphans in, and prints its pid: systemd waits for the end of a main
 * process only if it is a child of its own at the moment when it becomes the main process.
 */
const disown = 'exec 5>&1 1>&2; "$@" 5>&- & echo $! >&5';

/** Resolves with the pid of a process that serves on the descriptor; throws `unavailable` with why there is none. */
export async function startSuccessor(options: SuccessorOptions): Promise<number> {
  const environment = {
    ...options.environment,
    [listenVariable]: String(inheritance.listen),
    [readyVariable]: String(inheritance.ready),
  };
  const parent = spawn("/bin/sh", ["-c", disown, "sh", ...options.command], {
    env: environment,
    stdio: ["ignore", "pipe", "inherit", options.listenFd, "pipe"],
  });
  const failed = new Promise<string>((resolve) => {
    parent.once("error", (error) => resolve(error.message));
  });
  const pid = await Promise.race([firstLine(parent.stdout as Readable), failed]);
  parent.stdout?.destroy();
  const ready = firstLine(parent.stdio[inheritance.ready] as Readable);
  const failure = await Promise.race([failed, ready.then(whyNot), tooLate()]);
  parent.stdio[inheritance.ready]?.destroy();
  if (failure === undefined) return Number(pid);
  kill(Number(pid));
  throw new PullError("unavailable", `the successor does not serve: ${failure}`);
}

/** Its end of the pipe closes with the process. */
function whyNot(said: string): string | undefined {
  return said === word ? undefined : "it ended, and its own messages say why";
}

async function tooLate(): Promise<string> {
  await sleep(readyMsMax, undefined, { ref: false });
  return `it was not ready within ${readyMsMax / 1000} s`;
}

/** Without its end; what there was when the pipe closed first. */
async function firstLine(pipe: Readable): Promise<string> {
  let said = "";
  for await (const piece of pipe.setEncoding("utf8").iterator({ destroyOnReturn: false })) {
    said += String(piece);
    if (said.includes("\n") || said.length > lineLengthMax) break;
  }
  return said.slice(0, lineLengthMax).split("\n", 1)[0] ?? "";
}

function kill(pid: number): void {
  if (!(pid > 0)) return;
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended by itself.
  }
}
