// A made-up node: a folder with the files that the doctor looks at, and processes that exist in its /proc alone.

import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { Context, DoctorOptions, Finding } from "../../src/doctor/doctor.ts";
import { createContext } from "../../src/doctor/examine.ts";

export interface MadeUpProcess {
  readonly command: readonly string[];
  /** Paths of sockets that it listens on. */
  readonly listens?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly files?: Readonly<Record<string, string>>;
}

/** What /proc/<pid>/uid_map says outside of user namespaces. */
export const hostUids = "         0          0 4294967295\n";
/** One file system, at the root. */
export const oneMount = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n";

const header = "Num       RefCount Protocol Flags    Type St Inode Path\n";

export class MadeUpNode implements Disposable {
  readonly root: string;
  #sockets = header;
  #inode = 1000;
  readonly #inodes = new Map<string, number>();

  constructor(root = mkdtempSync(join(tmpdir(), "node-"))) {
    this.root = root;
    this.write("/proc/net/unix", this.#sockets);
    this.write("/proc/self/mountinfo", oneMount);
  }

  write(path: string, text: string | Uint8Array): void {
    mkdirSync(dirname(join(this.root, path)), { recursive: true });
    writeFileSync(join(this.root, path), text);
  }

  folder(path: string): void {
    mkdirSync(join(this.root, path), { recursive: true });
  }

  process(pid: number, { command, listens = [], environment = {}, files = {} }: MadeUpProcess): void {
    const folder = `/proc/${pid}`;
    this.write(`${folder}/cmdline`, command.map((word) => `${word}\0`).join(""));
    this.write(`${folder}/comm`, `${command[0]?.split("/").at(-1)?.slice(0, 15) ?? ""}\n`);
    const pairs = Object.entries(environment).map(([key, value]) => `${key}=${value}\0`);
    this.write(`${folder}/environ`, pairs.join(""));
    for (const [name, text] of Object.entries(files)) this.write(`${folder}/${name}`, text);
    this.folder(`${folder}/fd`);
    symlinkSync("/dev/null", join(this.root, folder, "fd/0"));
    for (const [index, path] of listens.entries()) {
      symlinkSync(`socket:[${this.#inodeOf(path)}]`, join(this.root, folder, `fd/${index + 3}`));
    }
  }

  context(options: Partial<DoctorOptions> = {}): Context {
    return createContext({
      version: "1.2.3",
      madeAt: new Date("2026-01-01T00:00:00Z"),
      root: this.root,
      containerd: {
        address: "/run/containerd/containerd.sock",
        namespace: "k8s.io",
        configFile: "/etc/containerd/config.toml",
        snapshotter: undefined,
      },
      socket: "/run/hawser/hawser.sock",
      metrics: undefined,
      configuration: { file: undefined, problems: [] },
      engine: "native",
      configPath: undefined,
      streams: 4,
      hostStreams: new Map(),
      connectTimeoutMs: 2000,
      registry: undefined,
      kubeletConfig: undefined,
      environment: {},
      ...options,
    });
  }

  [Symbol.dispose](): void {
    rmSync(this.root, { recursive: true, force: true });
  }

  #inodeOf(path: string): number {
    const known = this.#inodes.get(path);
    if (known !== undefined) return known;
    const inode = this.#inode++;
    this.#inodes.set(path, inode);
    // A connection has the path of the socket that accepted it, and is none that is listened on.
    this.#sockets += `0000000000000000: 00000002 00000000 00010000 0001 01 ${inode} ${path}\n`;
    this.#sockets += `0000000000000000: 00000003 00000000 00000000 0001 03 ${inode + 500} ${path}\n`;
    this.write("/proc/net/unix", this.#sockets);
    return inode;
  }
}

export async function all(findings: AsyncIterable<Finding>): Promise<Finding[]> {
  const found: Finding[] = [];
  for await (const finding of findings) found.push(finding);
  return found;
}

/** Each as it would be printed, what is to be done behind an arrow. */
export function lines(findings: readonly Finding[]): string[] {
  return findings.map(
    ({ state, what, finding, todo }) =>
      `${state} ${what}: ${finding}${todo === undefined ? "" : ` -> ${todo}`}`,
  );
}
