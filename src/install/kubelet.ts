// kubelet's configuration: changed so that images are asked of Hawser, and put back.
//
// Only single keys of the file change, and the file as it was is kept. kubelet reads it when it starts, so between a
// change and a restart it does what it did before; nothing here restarts it unless that is asked for.

import { createHash } from "node:crypto";
import { chown, readFile, realpath, rm, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { readKubelet, runningKubelet } from "../doctor/kubelet.ts";
import { Processes, socketOf } from "../doctor/processes.ts";
import { Tree } from "../doctor/tree.ts";
import { PullError } from "../errors.ts";
import { type Changes, changeTopLevel, plainTopLevel } from "../yaml.ts";
import { isAfter, startOf, thisMoment } from "./moment.ts";
import { endpoint, places } from "./places.ts";
import { type KubeletChange, type Record, writeWhole } from "./record.ts";
import { mainPid, systemctl } from "./systemd.ts";

/** What a file of drop-ins begins with; k3s and RKE2 have folders of those, and no file of their own to change. */
const dropInHead = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

/** For so long a restarted kubelet has to be the same process. */
const watchMs = 3_000;

export interface Planned {
  readonly file: string;
  /** Undefined where there is none yet. */
  readonly oldText: string | undefined;
  readonly newText: string;
  readonly before: KubeletChange["before"];
}

/** What would become of the file; throws `invalid` or `unsupported` with what is the matter with it. */
export async function planKubelet(named: string, parallel: number | undefined): Promise<Planned> {
  const tree = new Tree("/");
  // Through links, so that what is replaced is the file.
  const file = await realpath(named).catch(() => resolve(named));
  const oldText = await tree.readIfThere(file);
  if (oldText === undefined && !(file.endsWith(".conf") && (await tree.isDirectory(dirname(file))))) {
    const todo = "name kubelet's configuration, or a new .conf in its folder of drop-ins";
    throw new PullError("invalid", `${file} is not there: ${todo}`);
  }
  const changes: Changes = {
    imageServiceEndpoint: endpoint,
    ...(parallel !== undefined && { serializeImagePulls: false, maxParallelImagePulls: parallel }),
  };
  await mustCount(tree, file, changes);
  try {
    const text = oldText ?? dropInHead;
    const values = plainTopLevel(text);
    const before = Object.fromEntries(Object.keys(changes).map((key) => [key, values.get(key) ?? null]));
    return { file, oldText, newText: changeTopLevel(text, changes), before };
  } catch (error) {
    const { code, message } = PullError.from(error);
    throw new PullError(code, `${file}: ${message}`, { cause: error });
  }
}

/** Throws `invalid` when flags or drop-ins say otherwise: kubelet would ignore the change, or not start with it. */
async function mustCount(tree: Tree, file: string, changes: Changes): Promise<void> {
  const { over } = await readKubelet({ tree, processes: new Processes(tree) }, undefined, file);
  for (const [key, value] of Object.entries(changes)) {
    const said = over.get(key);
    if (said === undefined || said === String(value)) continue;
    const todo = `have it say ${String(value)} there, or take it out`;
    throw new PullError(
      "invalid",
      `a flag or drop-in of kubelet says ${key}: ${said}, over ${file}: ${todo}`,
    );
  }
}

/** Writes what was planned. A record that has a change already keeps what was before the first one. */
export async function changeKubelet(record: Record, planned: Planned): Promise<void> {
  const { file, oldText, newText, before } = planned;
  const earlier = record.now.kubelet;
  if (earlier !== undefined && earlier.undoneAt === undefined && earlier.file !== file)
    throw new PullError(
      "invalid",
      `${earlier.file} was changed before: hawser uninstall first, or name that one`,
    );
  const isFirst = earlier === undefined || earlier.undoneAt !== undefined;
  if (isFirst && oldText !== undefined) await writeWhole(places.kubeletBefore, oldText, 0o600);
  const sha256 = digestOf(newText);
  const at = thisMoment();
  const unit = await unitOfKubelet();
  await record.set({
    kubelet: isFirst
      ? { file, isNew: oldText === undefined, sha256, before, at, unit }
      : { ...earlier, sha256, lastAt: at, before: { ...before, ...earlier.before } },
  });
  await replace(file, newText);
}

/** Puts back the file, or just the keys where it has been changed since. Says what was done, if anything had to be. */
export async function restoreKubelet(record: Record): Promise<string | undefined> {
  const change = record.now.kubelet;
  if (change === undefined || change.undoneAt !== undefined) return undefined;
  const { file, isNew, sha256, before } = change;
  const text = await new Tree("/").readIfThere(file);
  const isUntouched = text !== undefined && digestOf(text) === sha256;
  if (isUntouched && isNew) await rm(file);
  else if (isUntouched) await replace(file, await readFile(places.kubeletBefore, "utf8"));
  else if (text !== undefined) await replace(file, putBack(file, text, before));
  await record.set({ kubelet: { ...change, undoneAt: thisMoment() } });
  if (text === undefined) return `${file} is gone, so there was nothing to put back`;
  return isUntouched
    ? `${file} is as it was`
    : `${file} has its old settings again, and what else was changed in it`;
}

function putBack(file: string, text: string, before: KubeletChange["before"]): string {
  try {
    const values = plainTopLevel(text);
    // Whoever has named something else since means it.
    const ours = values.get("imageServiceEndpoint") === endpoint;
    const old = Object.entries(before).map(([key, value]) => [key, value ?? undefined]);
    return changeTopLevel(text, ours ? Object.fromEntries(old) : {});
  } catch (error) {
    const todo = `take "imageServiceEndpoint: ${endpoint}" out of it by hand`;
    throw new PullError("invalid", `${file}: ${PullError.from(error).message}; ${todo}`, { cause: error });
  }
}

/** Owner and mode stay. */
async function replace(file: string, text: string): Promise<void> {
  const old = await stat(file).catch(() => undefined);
  await writeWhole(file, text, old === undefined ? 0o644 : old.mode & 0o7777);
  if (old !== undefined) await chown(file, old.uid, old.gid);
}

/** Why Hawser must not go yet: kubelet would still ask it. Undefined when it does not. */
export async function whyInUse(change: KubeletChange | undefined): Promise<string | undefined> {
  const tree = new Tree("/");
  const processes = new Processes(tree);
  const { values, sources, isRunning } = await readKubelet({ tree, processes }, undefined);
  const asked = values.get("imageServiceEndpoint") || values.get("containerRuntimeEndpoint") || "";
  if (isRunning && socketOf(asked) === socketOf(endpoint))
    return `kubelet asks Hawser (${sources.join(", ")}): take that out and restart kubelet`;
  if (change?.undoneAt === undefined) return undefined;
  const kubelet = await runningKubelet(processes);
  const start = kubelet && startOf(kubelet.pid);
  if (start === undefined || !isAfter(start, change.at) || isAfter(start, change.undoneAt)) return undefined;
  return `kubelet was started before its configuration was put back: restart it (${await restartCommand()})`;
}

/** Whether the kubelet that runs was started behind the change; what was never changed, it has read. */
export async function hasRead(change: KubeletChange | undefined): Promise<boolean> {
  if (change === undefined) return true;
  const kubelet = await runningKubelet(new Processes(new Tree("/")));
  const start = kubelet && startOf(kubelet.pid);
  return start !== undefined && isAfter(start, change.lastAt ?? change.at);
}

/** For the operator, or for restartKubelet(). */
export async function restartCommand(): Promise<string> {
  return `systemctl restart ${(await unitOfKubelet()) ?? "kubelet"}`;
}

/** Throws `unavailable`, with its configuration put back, when it does not keep running with it. */
export async function restartKubelet(record: Record): Promise<string> {
  const unit = (await unitOfKubelet()) ?? record.now.kubelet?.unit;
  if (unit === undefined) throw new PullError("unavailable", "no kubelet runs here that could be restarted");
  const isStarted = await systemctl("restart", unit).then(
    () => true,
    () => false,
  );
  if (isStarted && (await keepsRunning(unit))) return unit;
  const restored = await restoreKubelet(record);
  await systemctl("restart", unit);
  const what = restored === undefined ? "" : `; ${restored}, and it was started with that`;
  throw new PullError(
    "unavailable",
    `${unit} does not keep running (journalctl --unit ${unit} says why)${what}`,
  );
}

/** One that cannot take its configuration ends within a second or two, and systemd starts it again and again. */
async function keepsRunning(unit: string): Promise<boolean> {
  const first = await mainPid(unit);
  for (const until = performance.now() + watchMs; performance.now() < until; ) {
    await sleep(200);
    const state = await systemctl("show", "--property=ActiveState", "--value", unit);
    if (state !== "active" || (await mainPid(unit)) !== first) return false;
  }
  return first > 0;
}

async function unitOfKubelet(): Promise<string | undefined> {
  const tree = new Tree("/");
  const kubelet = await runningKubelet(new Processes(tree));
  if (kubelet === undefined) return undefined;
  return /([^/\n]+\.service)$/m.exec(await tree.read(`/proc/${kubelet.pid}/cgroup`))?.[1];
}

function digestOf(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
