// Hawser as a service of a node: the launch file of a bundle, under a manager that owns the socket as systemd does.

import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, symlinkSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { scratch } from "./containerd.ts";
import { CriClient } from "./cri.ts";
import { ServerProcess } from "./process.ts";

const source = fileURLToPath(new URL("../..", import.meta.url));

/** A bundle's layout around this checkout's program. */
export function makeBundle(root: string): string {
  for (const name of ["lib", "libexec"]) mkdirSync(join(root, name), { recursive: true });
  cpSync(join(source, "config/systemd/hawser-launch"), join(root, "libexec/hawser-launch"));
  symlinkSync(process.execPath, join(root, "lib/node"));
  symlinkSync(source, join(root, "lib/hawser"));
  return root;
}

export class PrivateService implements AsyncDisposable {
  readonly root: string;
  readonly socket: string;
  readonly config: string;
  readonly cri: CriClient;
  readonly #manager: ServerProcess;

  private constructor(root: string, containerd: string) {
    this.root = root;
    this.socket = join(root, "hawser.sock");
    this.config = join(root, "hawser.toml");
    const manager = join(root, "manager");
    execFileSync("g++", ["-std=c++20", "-O1", "-o", manager, join(source, "test/harness/manager.cc")]);
    mkdirSync(join(root, "run"));
    const launch = join(root, "current/libexec/hawser-launch");
    const args = [this.socket, join(root, "notify"), launch, "--config", this.config];
    const env = {
      ...process.env,
      RUNTIME_DIRECTORY: join(root, "run"),
      HAWSER_CONTAINERD: containerd,
      WATCHDOG_USEC: "3000000",
    };
    this.#manager = new ServerProcess(manager, args, { env });
    this.cri = new CriClient(this.socket);
  }

  static async start(containerd: string, more = ""): Promise<PrivateService> {
    const root = mkdtempSync(join(scratch(), "service-"));
    makeBundle(join(root, "versions/1"));
    symlinkSync("versions/1", join(root, "current"));
    writeFileSync(join(root, "hawser.toml"), configurationOf(root, containerd) + more);
    const service = new PrivateService(root, containerd);
    await service.untilSaid(/notified \d+ STATUS=pulls are accelerated/);
    return service;
  }

  /** The front that is the service's main process now. */
  get pid(): number {
    const said = [...this.said().matchAll(/^(?:started |notified \d+ MAINPID=)(\d+)$/gm)];
    return Number(said.at(-1)?.[1]);
  }

  /** What the manager, and the processes that it started, have printed. */
  said(): string {
    return this.#manager.logs();
  }

  async untilSaid(pattern: RegExp): Promise<RegExpExecArray> {
    return await this.#manager.untilPrinted(pattern);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cri[Symbol.dispose]();
    await this.#manager.stop();
    await rm(this.root, { recursive: true, force: true });
  }
}

function configurationOf(root: string, containerd: string): string {
  return `
[cri]
listen = "${root}/hawser.sock"
[containerd]
address = "${containerd}"
config_file = "${join(dirname(containerd), "config.toml")}"
[admin]
listen = "${root}/admin.sock"
state_dir = "${root}/state"
[metrics]
listen = "off"
`;
}
