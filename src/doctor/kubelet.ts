// kubelet: where it sends its image calls, and how many pulls it lets happen at once.
//
// Settings are those of its configuration file, drop-ins over it, and flags of the running kubelet over both, as kubelet
// itself takes them. A file that is not named is looked for where kubeadm, cloud providers, k3s and RKE2 put it.

import { join } from "node:path";
import { PullError } from "../errors.ts";
import { readTopLevel } from "../yaml.ts";
import type { Context, Finding } from "./doctor.ts";
import { type Process, type Processes, plainPath, socketOf } from "./processes.ts";
import type { Tree } from "./tree.ts";

export interface KubeletSettings {
  /** In kubelet's configuration's words: imageServiceEndpoint and so on; absent keys have kubelet's defaults. */
  readonly values: ReadonlyMap<string, string>;
  /** What was read, in order; empty when no kubelet was found. */
  readonly sources: readonly string[];
  /** The file to change. */
  readonly file: string | undefined;
  /** What drop-ins and flags say, which goes over what is in that file. */
  readonly over: ReadonlyMap<string, string>;
  readonly isRunning: boolean;
}

/** Where a configuration file may be, and a directory of drop-ins over it. */
const usualFiles = [
  "/var/lib/kubelet/config.yaml",
  "/etc/kubernetes/kubelet/config.json",
  "/etc/kubernetes/kubelet/kubelet-config.json",
  "/etc/kubernetes/kubelet-config.yaml",
  "/home/kubernetes/kubelet-config.yaml",
];
const usualDropIns = [
  "/var/lib/rancher/k3s/agent/etc/kubelet.conf.d",
  "/var/lib/rancher/rke2/agent/etc/kubelet.conf.d",
];

const flags: Readonly<Record<string, string>> = {
  "image-service-endpoint": "imageServiceEndpoint",
  "container-runtime-endpoint": "containerRuntimeEndpoint",
  "serialize-image-pulls": "serializeImagePulls",
  "max-parallel-image-pulls": "maxParallelImagePulls",
  "registry-qps": "registryPullQPS",
  "registry-burst": "registryBurst",
};

/** `instead` is a file to look at in place of those that it has; `named` is one of those, to tell what goes over it. */
export async function readKubelet(
  { tree, processes }: Pick<Context, "tree" | "processes">,
  instead: string | undefined,
  named?: string,
): Promise<KubeletSettings> {
  const running = await runningKubelet(processes);
  const given = new Map(running ? flagsOf(running) : []);
  // A kubelet that runs has said where its files are; inside of k3s it has not.
  const isTold = running?.name === "kubelet";
  const values = new Map<string, string>();
  const over = new Map<string, string>();
  const sources: string[] = [];
  const guessed = isTold ? undefined : await firstOf(tree, usualFiles);
  const file = instead ?? given.get("config") ?? guessed;
  if (file !== undefined) {
    for (const [key, value] of await readFile(tree, file)) values.set(key, value);
    sources.push(file);
  }
  const dropIns = given.get("config-dir") ?? (isTold ? undefined : await firstOf(tree, usualDropIns));
  if (dropIns !== undefined && instead === undefined) {
    for (const name of (await tree.list(dropIns)).filter((one) => one.endsWith(".conf"))) {
      const path = join(dropIns, name);
      // A drop-in goes over the file and over those before it, but not over itself.
      if (path === named) over.clear();
      for (const [key, value] of await readFile(tree, path)) {
        values.set(key, value);
        if (path !== named) over.set(key, value);
      }
      sources.push(path);
    }
  }
  const known = [...given].flatMap(([flag, value]) =>
    flags[flag] === undefined ? [] : [[flags[flag], value] as const],
  );
  for (const [key, value] of known) {
    values.set(key, value);
    over.set(key, value);
  }
  if (known.length > 0) sources.push(`flags of process ${running?.pid}`);
  const place = file ?? (dropIns === undefined ? undefined : join(dropIns, "50-hawser.conf"));
  return { values, sources, file: place, over, isRunning: running !== undefined };
}

/** kubelet itself, or the program that it is a part of. */
export async function runningKubelet(processes: Processes): Promise<Process | undefined> {
  return (await processes.named(["kubelet", "k3s", "k3s-agent", "k3s-server"])).at(-1);
}

async function readFile(tree: Tree, path: string): Promise<Map<string, string>> {
  const text = await tree.read(path);
  try {
    return readTopLevel(text);
  } catch (error) {
    throw new PullError("unsupported", `${path}: ${PullError.from(error).message}`);
  }
}

async function firstOf(tree: Tree, paths: readonly string[]): Promise<string | undefined> {
  for (const path of paths) if (await tree.exists(path)) return path;
  return undefined;
}

/** `--flag=value`, `--flag value`, and k3s's `--kubelet-arg=flag=value`. */
function flagsOf({ command }: Process): [string, string][] {
  const found: [string, string][] = [];
  for (const [index, word] of command.entries()) {
    const [, name, value] = /^--?([a-z-]+)(?:=(.*))?$/s.exec(word) ?? [];
    if (name === undefined) continue;
    const next = command[index + 1];
    const text = value ?? (next === undefined || next.startsWith("-") ? "true" : next);
    const [, inner, innerValue = ""] = /^([a-z-]+)=(.*)$/s.exec(text) ?? [];
    if (name === "kubelet-arg" && inner !== undefined) found.push([inner, innerValue]);
    else found.push([name, text]);
  }
  return found;
}

/** Below this, a node that starts many pods at once is refused pulls by its own kubelet. */
const usualQps = 5;

export async function* checkKubelet(context: Context): AsyncGenerator<Finding> {
  const settings = await context.kubelet();
  const { values, sources, file, isRunning } = settings;
  if (sources.length === 0) {
    const todo = "name its configuration with --kubelet-config FILE";
    const finding = isRunning
      ? "runs, but no configuration of it was found"
      : "no kubelet and no configuration of one was found";
    yield { state: "unknown", what: "configuration", finding, todo };
    return;
  }
  yield { state: "ok", what: "configuration", finding: sources.join(", then ") };
  yield imageEndpoint(context, settings);
  yield* runtimeEndpoint(context, settings);
  yield serialize(values, file);
  yield* parallel(values, file);
  yield pullRate(values, file);
}

function imageEndpoint({ options }: Context, { values, file }: KubeletSettings): Finding {
  const what = "image endpoint";
  const own = values.get("imageServiceEndpoint") || values.get("containerRuntimeEndpoint") || "";
  if (socketOf(own) === plainPath(options.socket))
    return { state: "ok", what, finding: `${own}, which is Hawser` };
  const finding = own === "" ? "not set: kubelet asks containerd for images" : `${own}, which is not Hawser`;
  const todo = `set imageServiceEndpoint: unix://${options.socket}${into(file)} and restart kubelet`;
  return { state: "slow", what, finding, todo };
}

/** Containers must be run by the containerd that Hawser puts images into. */
function* runtimeEndpoint({ options }: Context, { values, file }: KubeletSettings): Generator<Finding> {
  const what = "runtime endpoint";
  const own = values.get("containerRuntimeEndpoint") ?? "";
  const image = values.get("imageServiceEndpoint") || own;
  if (own === "") return;
  const { address } = options.containerd;
  const isContainerd = socketOf(own) === plainPath(address);
  const isHawser = socketOf(own) === plainPath(options.socket);
  if (isContainerd) yield { state: "ok", what, finding: `${own}, the containerd that Hawser works with` };
  else if (isHawser) {
    const finding = `${own}: containers, too, are run through Hawser`;
    yield {
      state: "slow",
      what,
      finding,
      todo: `set containerRuntimeEndpoint: unix://${address}${into(file)}`,
    };
  } else {
    const usesHawser = socketOf(image) === plainPath(options.socket);
    const finding = `${own}, which is another runtime than Hawser's containerd (${address})`;
    const todo = "set containerd.address in Hawser's configuration to kubelet's runtime";
    yield { state: usesHawser ? "broken" : "slow", what, finding, todo };
  }
}

function serialize(values: ReadonlyMap<string, string>, file: string | undefined): Finding {
  const what = "serializeImagePulls";
  if (values.get(what) === "false")
    return { state: "ok", what, finding: "false: images are pulled side by side" };
  const finding = `${values.has(what) ? "true" : "not set, so true"}: one image at a time, the others wait`;
  return { state: "slow", what, finding, todo: `set serializeImagePulls: false${into(file)}` };
}

function* parallel(values: ReadonlyMap<string, string>, file: string | undefined): Generator<Finding> {
  const what = "maxParallelImagePulls";
  const isSerial = values.get("serializeImagePulls") !== "false";
  const text = values.get(what);
  if (text === undefined) {
    if (!isSerial) yield { state: "ok", what, finding: "not set: as many as are asked for" };
    return;
  }
  const count = Number(text);
  if (!Number.isInteger(count) || count < 1) {
    const todo = `set a number above 0${into(file)}, or leave ${what} out`;
    yield { state: "broken", what, finding: `${text}: kubelet does not start with this`, todo };
  } else if (isSerial && count > 1) {
    const finding = `${text} while serializeImagePulls is true: kubelet does not start with this`;
    yield { state: "broken", what, finding, todo: `set serializeImagePulls: false${into(file)}` };
  } else if (count === 1) {
    const todo = `leave ${what} out, or set 4 or more${into(file)}`;
    yield { state: "slow", what, finding: "1: one image at a time, the others wait", todo };
  } else {
    yield { state: "ok", what, finding: `${count}` };
  }
}

function pullRate(values: ReadonlyMap<string, string>, file: string | undefined): Finding {
  const what = "registryPullQPS";
  const text = values.get(what) ?? "5";
  const burst = values.get("registryBurst") ?? "10";
  const qps = Number(text);
  if (qps === 0) return { state: "ok", what, finding: "0: not limited" };
  if (!Number.isFinite(qps) || qps < 0) {
    const todo = `set 0 or more${into(file)}`;
    return { state: "broken", what, finding: `${text}: kubelet does not start with this`, todo };
  }
  const finding = `${text} pulls a second, ${burst} at once; kubelet fails those beyond it`;
  if (qps >= usualQps) return { state: "ok", what, finding };
  return {
    state: "slow",
    what,
    finding,
    todo: `set registryPullQPS: ${usualQps} or more, or 0 for no limit${into(file)}`,
  };
}

function into(file: string | undefined): string {
  return file === undefined ? "" : ` in ${file}`;
}
