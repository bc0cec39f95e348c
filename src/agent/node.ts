// The node, as a container sees it that shares its process ids and may do everything: its files through the root of its
// first process, its programs in that process's mount namespace.
//
// Nothing of the node is mounted into the container: a mount of the node's root would keep whatever is unmounted on the
// node busy. What changes the node runs as a unit of its systemd, so that it goes on to its end though the container is
// killed.

import { execFile } from "node:child_process";
import { copyFile, cp, mkdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { PullError } from "../errors.ts";

const root = "/proc/1/root";
/** One at a time on a node: systemd refuses a second one of the name. */
const unit = "hawser-agent-change";
const output = `/run/${unit}.out`;
/** An upgrade waits for pulls and for two self-tests. */
const timeoutMs = 600_000;
const idleMs = 500;

/** Where a file of the node is, seen from here. */
export function onNode(path: string): string {
  return join(root, path);
}

export async function isOnNode(path: string): Promise<boolean> {
  return await stat(onNode(path)).then(
    () => true,
    () => false,
  );
}

/** Throws `unsupported` unless what is seen from here is a node with systemd. */
export async function mustSeeNode(): Promise<void> {
  if (await isOnNode("/run/systemd/system")) return;
  throw new PullError(
    "unsupported",
    "no node with systemd is seen from here: the pod needs hostPID: true and a privileged container",
  );
}

/** A copy of a folder, in the place of what is there. */
export async function copyToNode(from: string, path: string): Promise<void> {
  await removeFromNode(path);
  await cp(from, onNode(path), { recursive: true, verbatimSymlinks: true, preserveTimestamps: true });
}

/** What a file of this container says, through links. */
export async function copyFileToNode(from: string, path: string): Promise<void> {
  await copyFile(from, onNode(path));
}

/** A file that is there as a whole or not at all; its folder is made. */
export async function writeOnNode(path: string, text: string): Promise<void> {
  const target = onNode(path);
  await mkdir(dirname(target), { recursive: true, mode: 0o755 });
  await writeFile(`${target}.new`, text, { mode: 0o644 });
  await rename(`${target}.new`, target);
}

export async function removeFromNode(path: string): Promise<void> {
  await rm(onNode(path), { recursive: true, force: true });
}

/** Waits for what a former container began, which goes on without it. */
export async function untilIdle(): Promise<void> {
  for (const until = performance.now() + timeoutMs; performance.now() < until; ) {
    const state = await enter(["systemctl", "show", "--property=ActiveState", "--value", unit]);
    if (!["active", "activating", "deactivating"].includes(state.trim())) return;
    await sleep(idleMs);
  }
  throw new PullError("unavailable", `${unit}, of a former container, does not end`);
}

/** Runs a command of the node to its end and returns what it said; throws `internal` with its last line when it fails. */
export async function runOnNode(command: readonly string[]): Promise<string[]> {
  const service = ["--service-type=oneshot", `--property=StandardOutput=file:${output}`];
  const start = ["systemd-run", "--wait", "--collect", "--quiet", `--unit=${unit}`, ...service];
  await removeFromNode(output);
  try {
    await enter([...start, "--property=StandardError=inherit", ...command]);
    return await readLines(output);
  } catch (error) {
    throw await explained(error, await readLines(output));
  } finally {
    await removeFromNode(output);
  }
}

async function enter(command: readonly string[]): Promise<string> {
  const args = ["--target", "1", "--mount", "--", ...command];
  return (await promisify(execFile)("nsenter", args, { timeout: timeoutMs })).stdout;
}

async function explained(error: unknown, lines: readonly string[]): Promise<PullError> {
  const { code, message, stderr } = error as NodeJS.ErrnoException & { readonly stderr?: string };
  if (code === "ENOENT")
    return new PullError(
      "unsupported",
      "the container has no nsenter: build the image on one that has util-linux",
    );
  // systemd-run itself is silent unless there was nothing to run.
  const why = stderr?.trim().split("\n").at(-1) || (lines.at(-1) ?? message);
  return new PullError("internal", why.replace(/^hawser: /, ""), { cause: error });
}

async function readLines(path: string): Promise<string[]> {
  const text = await readFile(onNode(path), "utf8").catch(() => "");
  return text.split("\n").filter((line) => line !== "");
}
