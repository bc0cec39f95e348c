// A private containerd: its own root, state, socket and configuration, gone without a trace afterwards.

import { spawnSync } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CriClient, fields, message, textOf } from "./cri.ts";
import { eventually, ServerProcess } from "./process.ts";
import type { Release } from "./versions.ts";

export interface ContainerdOptions {
  /** Folder for everything; tmpfs by default, which is quick and takes extended attributes. */
  readonly root?: string;
  /** certs.d directory. */
  readonly configPath?: string;
  /** More lines of the CRI plugin's table. */
  readonly cri?: string;
  /** Name of the image that sandboxes are made of. */
  readonly sandboxImage?: string;
  /** TOML at the end of the file. */
  readonly more?: string;
  /** Which containerd; the machine's own without. */
  readonly release?: Release;
  /** Version of the configuration's format; 3 is for containerd 2 alone. */
  readonly format?: 2 | 3;
  /** Added to the environment. */
  readonly env?: NodeJS.ProcessEnv;
}

/** Where private roots are made: tmpfs, and under the leak gate a folder of the test file's own. */
export function scratch(): string {
  return process.env["HAWSER_SCRATCH"] ?? "/dev/shm";
}

export class PrivateContainerd implements AsyncDisposable {
  readonly root: string;
  readonly address: string;
  readonly contentRoot: string;
  readonly snapshotterRoot: string;
  readonly cri: CriClient;
  #release: Release | undefined;
  readonly #env: NodeJS.ProcessEnv;
  #process: ServerProcess;

  private constructor(root: string, { release, env = {} }: ContainerdOptions) {
    this.root = root;
    this.#release = release;
    this.#env = env;
    this.address = join(root, "containerd.sock");
    this.contentRoot = join(root, "root/io.containerd.content.v1.content");
    this.snapshotterRoot = join(root, "root/io.containerd.snapshotter.v1.overlayfs");
    this.#process = this.#spawn();
    this.cri = new CriClient(this.address);
  }

  static async start(options: ContainerdOptions = {}): Promise<PrivateContainerd> {
    const root = await mkdtemp(join(options.root ?? scratch(), "containerd-"));
    await mkdir(join(root, "certs.d"));
    await writeFile(join(root, "config.toml"), configurationOf(root, options));
    const containerd = new PrivateContainerd(root, options);
    try {
      await containerd.untilReady();
    } catch (error) {
      await containerd[Symbol.asyncDispose]();
      throw error;
    }
    return containerd;
  }

  get pid(): number {
    return this.#process.pid;
  }

  logs(): string {
    return this.#process.logs();
  }

  async untilReady(): Promise<void> {
    await eventually(async () => {
      this.#process.throwIfOver();
      await this.cri.listImages();
    }, "containerd's CRI answering");
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    await this.#process.stop(signal);
  }

  /** As another version, when one is given. */
  async startAgain(release = this.#release): Promise<void> {
    this.#release = release;
    this.#process = this.#spawn();
    await this.untilReady();
  }

  /** Output of containerd's own client, in the namespace of CRI. */
  ctr(...args: readonly string[]): string {
    const { path } = this.#release ?? {};
    const run = spawnSync(
      path ? join(path, "ctr") : "ctr",
      ["--address", this.address, "--namespace", "k8s.io", ...args],
      {
        encoding: "utf8",
      },
    );
    if (run.status !== 0) throw new Error(`ctr ${args.join(" ")}: ${run.stderr}`);
    return run.stdout;
  }

  /** Throws when content is missing. Since 2.1 its client would end before all that the daemon sends it is written. */
  exportTo(archive: string, image: string): void {
    const isLocal = this.ctr("images", "export", "--help").includes("--local");
    this.ctr("images", "export", ...(isLocal ? ["--local"] : []), archive, image);
  }

  /** Runs a command in a container of an image that is there, on the host's network, and returns what it printed. */
  async run(imageId: string, command: readonly string[]): Promise<string> {
    const name = `run-${Date.now()}`;
    const logs = join(this.root, name);
    await mkdir(logs);
    const metadata = message([1, name], [2, name], [3, "default"]);
    // NamespaceOption.network NODE: no CNI is needed.
    const security = message([1, message([1, 2])]);
    const sandboxConfig = message([1, metadata], [3, logs], [8, message([2, security])]);
    const sandbox = textOf(await this.cri.runtime("RunPodSandbox", message([1, sandboxConfig])), 1);
    const config = message(
      [1, message([1, name])],
      [2, message([1, imageId])],
      ...command.map((word) => [3, word] as const),
      [11, "log"],
    );
    const request = message([1, sandbox], [2, config], [3, sandboxConfig]);
    const container = textOf(await this.cri.runtime("CreateContainer", request), 1);
    await this.cri.runtime("StartContainer", message([1, container]));
    const exited = 2n;
    await eventually(async () => {
      const status = await this.cri.runtime("ContainerStatus", message([1, container]));
      const inner = fields(status.get(1)?.[0] as Uint8Array);
      if (inner.get(3)?.[0] !== exited) throw new Error("still running");
    }, "the container's end");
    const text = await readFile(join(logs, "log"), "utf8");
    await this.cri.runtime("StopPodSandbox", message([1, sandbox]));
    await this.cri.runtime("RemovePodSandbox", message([1, sandbox]));
    // Each line is "TIME STREAM TAG text" (CRI's log format).
    return text.replace(/^\S+ \S+ \S+ ?/gm, "");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cri[Symbol.dispose]();
    await this.#process.stop("SIGTERM");
    await stopContainers(this.root);
    await stopShims(this.root);
    await unmountBelow(this.root);
    await rm(this.root, { recursive: true, force: true });
  }

  #spawn(): ServerProcess {
    const inherited = process.env["PATH"] ?? "";
    const { path } = this.#release ?? {};
    // The shim is looked up in PATH.
    const PATH = path ? `${path}:${inherited}` : inherited;
    // What gzip is taken must not depend on whether this machine happens to have igzip, which 2.x would ask.
    const env = { ...process.env, PATH, CONTAINERD_DISABLE_IGZIP: "1", ...this.#env };
    return new ServerProcess(
      path ? join(path, "containerd") : "containerd",
      ["--config", join(this.root, "config.toml")],
      { env },
    );
  }
}

/** First processes of containers that a failed test left running outlive their shims; ours are told by their bundles. */
async function stopContainers(root: string): Promise<void> {
  const bundles = join(root, "state/io.containerd.runtime.v2.task/k8s.io");
  for (const name of await readdir(bundles).catch(() => [])) {
    const text = await readFile(join(bundles, name, "init.pid"), "utf8").catch(() => "");
    const pid = Number(text);
    const mounts = await readFile(`/proc/${pid}/mountinfo`, "utf8").catch(() => "");
    // The pid may be somebody else's by now; a container of ours has its root in our snapshotter.
    if (pid > 1 && mounts.includes(`upperdir=${root}/`)) process.kill(pid, "SIGKILL");
  }
}

/** Shims outlive containerd; ours are those that were told our socket. */
async function stopShims(root: string): Promise<void> {
  for (const pid of await readdir("/proc")) {
    if (!/^\d+$/.test(pid)) continue;
    const line = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    if (line.includes("containerd-shim") && line.includes(`${root}/`)) process.kill(Number(pid), "SIGKILL");
  }
}

async function unmountBelow(root: string): Promise<void> {
  const mounts = await readFile("/proc/self/mounts", "utf8");
  const below = mounts
    .split("\n")
    .flatMap((line) => line.split(" ")[1] ?? [])
    .filter((path) => path.startsWith(`${root}/`));
  for (const path of below.toReversed()) spawnSync("umount", ["-l", path]);
}

function configurationOf(root: string, options: ContainerdOptions): string {
  return options.format === 3 ? format3(root, options) : format2(root, options);
}

function format3(root: string, { configPath, cri, sandboxImage, more }: ContainerdOptions): string {
  return `
version = 3
root = "${root}/root"
state = "${root}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "${root}/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  ${cri ?? ""}
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "${sandboxImage ?? "registry.invalid/pause:1"}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "${configPath ?? `${root}/certs.d`}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
[plugins."io.containerd.internal.v1.opt"]
  path = "${root}/opt"
${more ?? ""}
`;
}

function format2(root: string, { configPath, cri, sandboxImage, more }: ContainerdOptions): string {
  return `
version = 2
root = "${root}/root"
state = "${root}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "${root}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${sandboxImage ?? "registry.invalid/pause:1"}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  ${cri ?? ""}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "${configPath ?? `${root}/certs.d`}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
[plugins."io.containerd.internal.v1.opt"]
  path = "${root}/opt"
${more ?? ""}
`;
}
