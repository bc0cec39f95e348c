// A node: a Debian of its own with systemd and containerd, booted in namespaces of this machine.
//
// systemd is its first process, in a cgroup of its own, and sees nothing of this machine but its network. Its files are
// an overlay over a root that is made once; /run, /opt and containerd's root are file systems of their own, as overlayfs asks
// for it, and are seen from here at the same places below `root`.

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { text as textOf } from "node:stream/consumers";
import { scratch } from "./containerd.ts";
import { bareDebian } from "./debian.ts";
import { eventually, ServerProcess } from "./process.ts";

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** In the new namespaces, as their first process: R is the root to be. */
const boot = `
set -e
mount --make-rprivate /
mount -t proc proc "$R/proc"
mount -t sysfs -o ro sysfs "$R/sys"
mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$R/dev"
for device in null zero full random urandom tty; do
  touch "$R/dev/$device"
  mount --bind "/dev/$device" "$R/dev/$device"
done
mkdir "$R/dev/shm" "$R/dev/pts"
mount -t tmpfs tmpfs "$R/dev/shm"
cd "$R"
pivot_root . mnt
umount -l /mnt
exec env -i container=test ${path} /lib/systemd/systemd --unit=multi-user.target
`;

export interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export class PrivateNode implements AsyncDisposable {
  /** Where its files are, seen from here. */
  readonly root: string;
  readonly #place: string;
  readonly #cgroup: string;
  readonly #mounts: string[] = [];
  #systemd: ServerProcess | undefined;
  #pid = 0;

  private constructor(lower: string) {
    this.#place = mkdtempSync(join(scratch(), "node-"));
    this.root = join(this.#place, "root");
    for (const name of ["root", "upper", "work"]) mkdirSync(join(this.#place, name), { mode: 0o755 });
    const [upper, work] = [join(this.#place, "upper"), join(this.#place, "work")];
    this.#mount(
      ["-t", "overlay", "-o", `lowerdir=${lower},upperdir=${upper},workdir=${work}`, "overlay"],
      "",
    );
    this.#mount(["-t", "tmpfs", "-o", "mode=755", "tmpfs"], "run");
    // An installation is synced to disk, which would be this machine's, with all that its other programs write.
    this.#mount(["-t", "tmpfs", "-o", "mode=755", "tmpfs"], "opt");
    mkdirSync(join(this.root, "var/lib/containerd"), { recursive: true, mode: 0o711 });
    this.#mount(["-t", "tmpfs", "-o", "mode=711", "tmpfs"], "var/lib/containerd");
    this.#cgroup = mkdtempSync(join(cgroups(), "hawser-test-"));
  }

  /** Up and running, containerd included; `prepare` may put files into it before. */
  static async start(prepare: (root: string) => void = () => {}): Promise<PrivateNode> {
    const node = new PrivateNode(await bareDebian());
    try {
      // Nobody logs in, and no hour of the day has its work done here: tests compare what they left with what they found.
      for (const target of ["getty", "timers"]) node.write(`etc/systemd/system/${target}.target`, "");
      prepare(node.root);
      await node.#boot();
      return node;
    } catch (error) {
      await node[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Runs a program in it to its end; this process goes on meanwhile, with what it serves. */
  async run(program: string, ...args: readonly string[]): Promise<Ended> {
    const [file, ...rest] = this.#command();
    const child = spawn(file, [...rest, program, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    const [stdout, stderr] = [child.stdout, child.stderr].map(async (stream) => await textOf(stream));
    const [status] = (await once(child, "close")) as [number | null];
    return { status, stdout: (await stdout) ?? "", stderr: (await stderr) ?? "" };
  }

  /** What it says; throws when it fails. */
  async ask(program: string, ...args: readonly string[]): Promise<string> {
    const { status, stdout, stderr } = await this.run(program, ...args);
    if (status !== 0)
      throw new Error(`${program} ${args.join(" ")}: exit code ${status}: ${stdout}${stderr}`);
    return stdout.trim();
  }

  /** An archive of this machine, into one of its folders. */
  unpack(archive: string, folder: string): void {
    execFileSync("tar", ["-xzf", archive, "--no-same-owner", "-C", this.at(folder)]);
  }

  at(file: string): string {
    return join(this.root, file);
  }

  read(file: string): string {
    return readFileSync(this.at(file), "utf8");
  }

  write(file: string, text: string): void {
    mkdirSync(join(this.at(file), ".."), { recursive: true });
    writeFileSync(this.at(file), text);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // With its first process all others end.
    if (this.#pid > 0) process.kill(this.#pid, "SIGKILL");
    await this.#systemd?.stop("SIGKILL");
    for (const target of this.#mounts.toReversed()) execFileSync("umount", ["-R", "-l", target]);
    rmSync(this.#place, { recursive: true, force: true });
    await eventually(async () => {
      removeCgroup(this.#cgroup);
      return true;
    }, "its cgroup is empty");
  }

  async #boot(): Promise<void> {
    const enter = `echo $$ > ${this.#cgroup}/cgroup.procs && exec "$@"`;
    const unshare = ["unshare", "--cgroup", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"];
    const args = ["-c", enter, "sh", ...unshare, "sh", "-c", boot];
    this.#systemd = new ServerProcess("sh", args, { env: { ...process.env, R: this.root } });
    const { pid } = this.#systemd;
    this.#pid = await eventually(async () => {
      const child = Number(readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8"));
      const name = child > 0 ? readFileSync(`/proc/${child}/comm`, "utf8").trim() : "";
      if (name !== "systemd") throw new Error(`the first process is ${name}`);
      return child;
    }, "systemd");
    await eventually(
      async () => await this.ask("systemctl", "is-system-running", "--wait"),
      "the node has booted",
    );
  }

  #command(): [string, ...string[]] {
    const namespaces = ["--mount", "--pid", "--uts", "--ipc", "--cgroup"];
    return ["nsenter", "--target", `${this.#pid}`, ...namespaces, "env", "-i", path, "HOME=/root"];
  }

  #mount(args: readonly string[], at: string): void {
    const target = join(this.root, at);
    execFileSync("mount", [...args, target]);
    this.#mounts.push(target);
  }
}

/** Where cgroups of version 2 are mounted, alone or beside those of version 1. */
function cgroups(): string {
  const line = readFileSync("/proc/self/mounts", "utf8")
    .split("\n")
    .find((one) => one.split(" ")[2] === "cgroup2");
  if (line === undefined) throw new Error("no cgroups of version 2 are mounted here");
  return line.split(" ")[1] ?? "";
}

function removeCgroup(folder: string): void {
  for (const entry of readdirSync(folder, { withFileTypes: true }))
    if (entry.isDirectory()) removeCgroup(join(folder, entry.name));
  rmdirSync(folder);
}
