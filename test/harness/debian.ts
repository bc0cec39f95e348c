// A Debian of its own: the smallest variant with what a node has, made once a suite, and layers over it for single tests.
//
// There is no Node in it, no compiler and no library of the addon's. Programs run in it by chroot; node.ts boots it.

import { execFileSync, type SpawnSyncReturns, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cached } from "../../config/release/cache.ts";
import { run } from "../../config/release/command.ts";
import { codename, debianSources, unpackPackages } from "../../config/release/debian.ts";
import type { Architecture } from "../../config/release/place.ts";
import { scratch } from "./containerd.ts";

const folder = "/var/tmp/hawser-debian";
/** What boots, and runs containers. */
const packages = "systemd,systemd-sysv,dbus,containerd,procps";
/** What a login would have, and nothing of this process's environment. */
const environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"];

/** The folder of the bare Debian, which must not be changed. */
export async function bareDebian(): Promise<string> {
  const suite = codename();
  const done = join(folder, `${suite}-node`);
  if (existsSync(done)) return done;
  mkdirSync(folder, { recursive: true, mode: 0o755 });
  const work = mkdtempSync(join(folder, `${suite}-`));
  try {
    const root = join(work, "root");
    const [archive] = debianSources();
    const options = ["--quiet", "--mode=root", "--variant=minbase", `--include=${packages}`];
    await run("mmdebstrap", [...options, suite, root, archive?.uri ?? ""]);
    // Whoever is first wins; the other's is as good.
    if (!existsSync(done)) renameSync(root, done);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return done;
}

/** A folder with what Node is linked with, and nothing else at all: no shell, no other program. */
export async function bareLibraries(architecture: Architecture): Promise<string> {
  return await cached(`bare-${architecture}`, codename(), async (work) => {
    unpackPackages({ names: ["libc6", "libstdc++6", "libgcc-s1"], architecture }, work);
  });
}

/** A bare Debian that can be written to, gone without a trace afterwards. */
export class BareRoot implements Disposable {
  readonly path: string;
  readonly #place: string;
  readonly #mounts: string[] = [];

  private constructor(lower: string) {
    this.#place = mkdtempSync(join(scratch(), "root-"));
    const [upper, work, merged] = ["upper", "work", "merged"].map((name) => {
      mkdirSync(join(this.#place, name), { mode: 0o755 });
      return join(this.#place, name);
    }) as [string, string, string];
    this.path = merged;
    this.#mount(
      ["-t", "overlay", "-o", `lowerdir=${lower},upperdir=${upper},workdir=${work}`, "overlay"],
      "/",
    );
    this.#mount(["-t", "proc", "proc"], "/proc");
  }

  static async make(): Promise<BareRoot> {
    return new BareRoot(await bareDebian());
  }

  /** Shows a folder of this machine at the same place, until it is disposed of. */
  bind(path: string): Disposable {
    const target = join(this.path, path);
    mkdirSync(target, { recursive: true });
    execFileSync("mount", ["--bind", path, target]);
    return { [Symbol.dispose]: () => execFileSync("umount", ["-l", target]) };
  }

  /** How a program is run in it; its arguments may follow. */
  command(program: string): [string, ...string[]] {
    return ["env", "--ignore-environment", ...environment, "chroot", this.path, program];
  }

  /** Runs a program in it to its end. */
  run(program: string, ...args: readonly string[]): SpawnSyncReturns<string> {
    const [file, ...rest] = this.command(program);
    return spawnSync(file, [...rest, ...args], { encoding: "utf8" });
  }

  [Symbol.dispose](): void {
    for (const path of this.#mounts.toReversed()) execFileSync("umount", ["-l", path]);
    rmSync(this.#place, { recursive: true, force: true });
  }

  #mount(args: readonly string[], at: string): void {
    const target = join(this.path, at);
    execFileSync("mount", [...args, target]);
    this.#mounts.push(target);
  }
}
