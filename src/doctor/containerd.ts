// containerd: whether it answers, and whether what it says of itself lets Hawser work beside it.

import { connect } from "node:net";
import { dirname, join } from "node:path";
import type { CriSettings, Inspection, Plugin } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Context, Finding } from "./doctor.ts";
import { mountOf, parseMounts } from "./mounts.ts";
import { daemonOf } from "./processes.ts";
import { codeOf, reasonOf } from "./tree.ts";

/** Minor versions that the tests run against, and those that are as yet left to the self-test. */
export const testedMinors: readonly string[] = ["1.6", "1.7", "2.1"];
const untestedMinors = new Set(["2.0", "2.2", "2.3"]);

/** Where other distributions of Kubernetes have containerd's socket. */
const otherSockets = ["/run/k3s/containerd/containerd.sock", "/run/containerd/containerd.sock"];

const passesThrough = "every pull goes through to containerd";

export async function* checkContainerd(context: Context): AsyncGenerator<Finding> {
  const socket = await socketFinding(context);
  yield socket;
  if (socket.state !== "ok") return;
  const { version, plugins, cri, verifiers } = await context.inspection();
  yield versionFinding(version);
  yield* await configuration(context, version);
  yield criPlugin(plugins);
  if (cri instanceof PullError) {
    const todo = "put its configuration right; until then pulls are not accelerated";
    yield { state: "slow", what: "settings", finding: `${cri.message}: ${passesThrough}`, todo };
  } else {
    yield snapshotterFinding(context, cri);
    yield* registrySettings(cri);
    yield keptLayers(cri);
  }
  yield overlayPlugin(plugins);
  if (verifiers.length > 0) {
    const finding = `${verifiers.length} in use, which judge only containerd's own pulls: ${passesThrough}`;
    yield {
      state: "slow",
      what: "image verifiers",
      finding,
      todo: "take them out if pulls are to be accelerated",
    };
  }
  yield await userNamespace(context);
  yield await selinux(context);
  yield* folders(context, plugins);
}

async function socketFinding({ options, tree }: Context): Promise<Finding> {
  const { address } = options.containerd;
  const what = "socket";
  const failure = await tryConnect(tree.at(address));
  if (failure === undefined) return { state: "ok", what, finding: `${address} answers` };
  const finding = `${address}: ${reasonOf(failure)}`;
  if (codeOf(failure) === "EACCES") return { state: "unknown", what, finding };
  for (const other of otherSockets.filter((one) => one !== address)) {
    if ((await tryConnect(tree.at(other))) !== undefined) continue;
    return {
      state: "broken",
      what,
      finding,
      todo: `set containerd.address = "${other}", where a containerd answers`,
    };
  }
  return {
    state: "broken",
    what,
    finding,
    todo: "start containerd, or set containerd.address to its socket",
  };
}

/** What kept a connection from being made; undefined when one was made, and closed again. */
export async function tryConnect(path: string): Promise<Error | undefined> {
  return await new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(undefined);
    });
    socket.once("error", resolve);
  });
}

function versionFinding(version: string): Finding {
  const what = "version";
  const minor = /^v?(\d+\.\d+)/.exec(version)?.[1] ?? "";
  if (testedMinors.includes(minor)) return { state: "ok", what, finding: version };
  const tested = `tested are ${testedMinors.join(", ")}`;
  if (untestedMinors.has(minor)) {
    return {
      state: "unknown",
      what,
      finding: `${version}, which is not tested (${tested}); the daemon's self-test decides`,
    };
  }
  const finding = `${version}, which Hawser does not know (${tested})`;
  return { state: "slow", what, finding, todo: "look at the hawser lines for whether pulls are accelerated" };
}

/** From 2.0 on, what is set is read from the file: it must be the one that containerd was started with. */
async function configuration({ options, processes }: Context, version: string): Promise<Finding[]> {
  const what = "configuration";
  const { address, configFile } = options.containerd;
  if (/^v?1\./.test(version)) return [];
  const [process] = await processes.listening(address);
  if (process === undefined) {
    return [{ state: "unknown", what, finding: `${configFile}; containerd's process was not found` }];
  }
  const used = startedWith(process.command);
  if (used === configFile) return [{ state: "ok", what, finding: configFile }];
  const finding = `containerd was started with ${used}, and Hawser reads ${configFile}`;
  return [{ state: "broken", what, finding, todo: `set containerd.config_file = ${JSON.stringify(used)}` }];
}

/** `--config FILE`, `--config=FILE`, `-c FILE`; or the file that containerd takes by itself. */
function startedWith(command: readonly string[]): string {
  for (const [index, word] of command.entries()) {
    if (/^--?(?:c|config)$/.test(word)) return command[index + 1] ?? "";
    const given = /^--?(?:c|config)=(.*)$/s.exec(word)?.[1];
    if (given !== undefined) return given;
  }
  return "/etc/containerd/config.toml";
}

function criPlugin(plugins: readonly Plugin[]): Finding {
  const what = "CRI plugin";
  const own = plugins.filter(
    ({ type, id }) => (type === "io.containerd.grpc.v1" && id === "cri") || type === "io.containerd.cri.v1",
  );
  const failed = own.find(({ error }) => error !== undefined);
  if (failed) {
    const finding = `did not start: ${failed.error}`;
    return { state: "broken", what, finding, todo: "put containerd's configuration right and restart it" };
  }
  if (own.length > 0) return { state: "ok", what, finding: "runs" };
  const todo = 'take "cri" out of disabled_plugins in containerd\'s configuration and restart it';
  return { state: "broken", what, finding: "is disabled, so kubelet cannot use this containerd", todo };
}

function snapshotterFinding({ options }: Context, cri: CriSettings): Finding {
  const what = "snapshotter";
  const name = options.containerd.snapshotter ?? cri.snapshotter;
  if (name === "overlayfs") return { state: "ok", what, finding: name };
  const finding = `${name}, and only overlayfs is accelerated: ${passesThrough}`;
  return { state: "slow", what, finding, todo: "use overlayfs where pulls are to be accelerated" };
}

/** overlayfs does not start on a file system that cannot tell the types of a directory's entries (d_type). */
function overlayPlugin(plugins: readonly Plugin[]): Finding {
  const what = "overlayfs";
  const plugin = plugins.find(
    ({ type, id }) => type === "io.containerd.snapshotter.v1" && id === "overlayfs",
  );
  if (plugin?.root !== undefined && plugin.error === undefined) {
    return { state: "ok", what, finding: "started, so kernel and file system (d_type) fit it" };
  }
  const why = plugin?.error === undefined ? "is not there" : `did not start: ${plugin.error}`;
  const todo = /d_type/.test(why)
    ? "put containerd's root on ext4, or on XFS made with ftype=1"
    : "enable containerd's overlayfs snapshotter";
  return { state: "slow", what, finding: `${why}: ${passesThrough}`, todo };
}

function* registrySettings({ deprecated, configPath }: CriSettings): Generator<Finding> {
  const what = "registry settings";
  if (deprecated.length === 0) {
    const finding =
      configPath.length === 0
        ? "config_path is not set: no mirrors"
        : `config_path is ${configPath.join(":")}`;
    yield { state: "ok", what, finding };
    return;
  }
  const finding = `of the deprecated kind (${deprecated.join(", ")}), which only containerd reads: ${passesThrough}`;
  yield { state: "slow", what, finding, todo: "move them into hosts.toml files below config_path" };
}

function keptLayers({ discardUnpackedLayers }: CriSettings): Finding {
  const kept = discardUnpackedLayers
    ? "true: compressed layers go once they are unpacked"
    : "false: compressed layers are kept";
  return { state: "ok", what: "discard_unpacked_layers", finding: kept };
}

async function userNamespace({ options, tree, processes }: Context): Promise<Finding> {
  const what = "user namespace";
  const [process] = await processes.listening(options.containerd.address);
  if (process === undefined) return { state: "unknown", what, finding: "containerd's process was not found" };
  const map = (await tree.read(`/proc/${process.pid}/uid_map`)).trim().split(/\s+/);
  // The whole range of user ids, mapped to itself, is what the first of all namespaces has.
  if (map.join(" ") === "0 0 4294967295")
    return { state: "ok", what, finding: "containerd runs in the host's" };
  const finding = `containerd runs in one of its own: ${passesThrough}`;
  return {
    state: "slow",
    what,
    finding,
    todo: "run containerd as the host's root where pulls are to be accelerated",
  };
}

async function selinux({ tree }: Context): Promise<Finding> {
  const what = "SELinux";
  const mode = await tree.readIfThere("/sys/fs/selinux/enforce");
  if (mode === undefined) return { state: "ok", what, finding: "is off" };
  const name = mode.trim() === "1" ? "enforcing" : "permissive";
  const finding = `is ${name}, and layers are not labelled yet: ${passesThrough}`;
  return { state: "slow", what, finding };
}

/** Where content and snapshots are, as far as containerd says so. */
export function rootsOf({ plugins }: Pick<Inspection, "plugins">): {
  readonly content: string | undefined;
  readonly snapshots: string | undefined;
} {
  const rootOf = (type: string, id: string): string | undefined =>
    plugins.find((one) => one.type === type && one.id === id)?.root;
  return {
    content: rootOf("io.containerd.content.v1", "content"),
    snapshots: rootOf("io.containerd.snapshotter.v1", "overlayfs"),
  };
}

/** Layers are renamed out of staging into snapshots, and blobs linked out of the spool into content. */
async function* folders(context: Context, plugins: Inspection["plugins"]): AsyncGenerator<Finding> {
  const { tree, processes, options } = context;
  const { content, snapshots } = rootsOf({ plugins });
  // Mounts are the daemon's, which systemd may have given some of its own.
  const daemon = daemonOf(await processes.listening(options.socket));
  const mounts = parseMounts(await tree.read(`/proc/${daemon?.pid ?? "self"}/mountinfo`));
  const areOne = async (one: string, other: string): Promise<boolean> =>
    mountOf(mounts, await tree.real(one))?.id === mountOf(mounts, await tree.real(other))?.id;
  if (content === undefined) {
    yield {
      state: "broken",
      what: "content",
      finding: `containerd does not say where it is: ${passesThrough}`,
    };
  } else if (await areOne(join(dirname(content), "io.hawser/spool"), join(content, "blobs"))) {
    yield { state: "ok", what: "content", finding: `${content}, on one mount with the spool` };
  } else {
    const todo = `give the daemon one mount over ${dirname(content)}`;
    const finding = `${content} is another mount than the spool: layers that are kept are copied instead of linked`;
    yield { state: "slow", what: "content", finding, todo };
  }
  if (snapshots === undefined) return;
  if (await areOne(join(snapshots, "io.hawser/staging"), join(snapshots, "snapshots"))) {
    yield { state: "ok", what: "snapshots", finding: `${snapshots}, on one mount with staging` };
  } else {
    const finding = `${snapshots}/snapshots is another mount than staging (${snapshots}/io.hawser): ${passesThrough}`;
    yield { state: "broken", what: "snapshots", finding, todo: `make one mount of all below ${snapshots}` };
  }
}
