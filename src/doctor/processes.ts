// The processes of a node, from /proc: who listens on a socket, and with which environment, limits and mounts.
//
// Listeners are found as inodes: /proc/net/unix names them for each path, and /proc/<pid>/fd says who has them. That also
// finds whoever got a socket from systemd, for whom the credentials of a connection would name systemd.

import { readdirSync, readlinkSync } from "node:fs";
import { basename } from "node:path";
import { setImmediate } from "node:timers/promises";
import type { Tree } from "./tree.ts";

export interface Process {
  readonly pid: number;
  /** Of its program: `containerd`, `node`. */
  readonly name: string;
  readonly command: readonly string[];
}

/** Processes that are looked at at the most. */
const processesMax = 50_000;

export class Processes {
  readonly #tree: Tree;
  #pids: Promise<readonly number[]> | undefined;
  #holders: Promise<ReadonlyMap<string, readonly number[]>> | undefined;

  constructor(tree: Tree) {
    this.#tree = tree;
  }

  /** Processes of a program, the latest last; not those of containers, which may be whole nodes. */
  async named(names: readonly string[]): Promise<Process[]> {
    const all = await Promise.all((await this.#all()).map(async (pid) => await this.#describe(pid)));
    const found = all.filter((one): one is Process => one !== undefined && names.includes(one.name));
    const own = this.#namespaceOf(1);
    return found.filter(({ pid }) => own === undefined || this.#namespaceOf(pid) === own);
  }

  /** Of process ids; undefined where it may not be seen. */
  #namespaceOf(pid: number): string | undefined {
    try {
      return readlinkSync(this.#tree.at(`/proc/${pid}/ns/pid`));
    } catch {
      return undefined;
    }
  }

  /** Whoever has the listening socket of this path, systemd included; none when nobody has, or when it may not be seen. */
  async listening(path: string): Promise<Process[]> {
    this.#holders ??= this.#listeners();
    const pids = (await this.#holders).get(plainPath(path)) ?? [];
    const found = await Promise.all(pids.map(async (pid) => await this.#describe(pid)));
    return found.filter((one): one is Process => one !== undefined);
  }

  /** The environment that it was started with. */
  async environment(pid: number): Promise<Record<string, string>> {
    const text = await this.#tree.read(`/proc/${pid}/environ`);
    const pairs = text.split("\0").filter((line) => line.includes("="));
    return Object.fromEntries(
      pairs.map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
    );
  }

  async #all(): Promise<readonly number[]> {
    this.#pids ??= this.#tree.list("/proc").then((names) =>
      names
        .filter((name) => /^\d+$/.test(name))
        .map(Number)
        .sort((a, b) => a - b)
        .slice(0, processesMax),
    );
    return await this.#pids;
  }

  /** Undefined when it has ended meanwhile. */
  async #describe(pid: number): Promise<Process | undefined> {
    try {
      const command = (await this.#tree.read(`/proc/${pid}/cmdline`)).split("\0").slice(0, -1);
      const comm = (await this.#tree.read(`/proc/${pid}/comm`)).trim();
      // What a process calls itself is cut after 15 characters, and threads of Node have names of their own.
      return {
        pid,
        name: command[0] === undefined ? comm : basename(command[0].split(" ", 1)[0] ?? ""),
        command,
      };
    } catch {
      return undefined;
    }
  }

  async #listeners(): Promise<Map<string, number[]>> {
    const paths = listeningInodes(await this.#tree.read("/proc/net/unix"));
    const holders = new Map<string, number[]>();
    for (const pid of await this.#all()) {
      for (const inode of this.#socketsOf(pid)) {
        const path = paths.get(inode);
        if (path === undefined) continue;
        const known = holders.get(path) ?? [];
        holders.set(path, known.includes(pid) ? known : [...known, pid]);
      }
      // A node has many thousands of descriptors; other checks go on meanwhile.
      await setImmediate();
    }
    return holders;
  }

  #socketsOf(pid: number): string[] {
    const folder = this.#tree.at(`/proc/${pid}/fd`);
    return namesIn(folder).flatMap((fd) => {
      try {
        return /^socket:\[(\d+)\]$/.exec(readlinkSync(`${folder}/${fd}`))?.[1] ?? [];
      } catch {
        return [];
      }
    });
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** Inodes of sockets that are listened on (SO_ACCEPTCON), with their paths. */
function listeningInodes(text: string): Map<string, string> {
  const found = new Map<string, string>();
  for (const line of text.split("\n")) {
    const [, flags = "", inode = "", path = ""] =
      /^\S+: \S+ \S+ ([0-9A-F]{8}) \S+ \S+ +(\d+) (\/.*)$/i.exec(line) ?? [];
    if (path !== "" && (Number.parseInt(flags, 16) & 0x10000) !== 0) found.set(inode, plainPath(path));
  }
  return found;
}

/** `/var/run` is another name of `/run`, wherever there is systemd. */
export function plainPath(path: string): string {
  return path.replace(/^\/var\/run\//, "/run/");
}

/** The path in a CRI endpoint, `unix:///run/…` or a bare path. */
export function socketOf(endpoint: string): string {
  return plainPath(endpoint.replace(/^unix:(?:\/\/)?/, ""));
}

/** Of those who have Hawser's socket, the daemon: systemd has it as well, and its proxy in the daemon's place. */
export function daemonOf(listening: readonly Process[]): Process | undefined {
  return listening.findLast(({ pid, command }) => pid !== 1 && command.includes("serve"));
}

/** systemd's proxy to containerd, which has the socket when the daemon could not be kept running. */
export function standInOf(listening: readonly Process[]): Process | undefined {
  return listening.find(({ name }) => name === "systemd-socket-proxyd");
}
