// The daemon as it ships: dist/main.js in a process of its own.

import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Status } from "../../src/front/admin.ts";
import { askAdmin } from "../../src/front/client.ts";
import { scratch } from "./containerd.ts";
import { CriClient } from "./cri.ts";
import { eventually, ServerProcess } from "./process.ts";

const program = fileURLToPath(new URL("../../dist/main.js", import.meta.url));

export interface HawserOptions {
  /** Path of containerd's socket. */
  readonly containerd: string;
  /** More sections of the configuration. */
  readonly config?: string;
  /** With the status page on any free port. */
  readonly page?: boolean;
  /** Port of its metrics; any free one without. */
  readonly metricsPort?: number;
  /** The node to run it with. */
  readonly node?: string;
  /** Another copy of dist/main.js. */
  readonly program?: string;
  /** What to run instead of these two, with the same arguments behind. */
  readonly command?: readonly [string, ...string[]];
  /** Where the first process ends as by kill -9: `name` or `name=N` of src/failpoint.ts. */
  readonly failpoint?: string;
  /** The process that pulls by itself, with no front that would catch its calls. */
  readonly alone?: boolean;
  /** Added to the environment. */
  readonly env?: NodeJS.ProcessEnv;
}

/** One of the processes that a daemon is. */
export interface HawserProcess {
  readonly pid: number;
  readonly role: "front" | "puller";
}

export class PrivateHawser implements AsyncDisposable {
  readonly root: string;
  readonly socket: string;
  readonly cri: CriClient;
  readonly #options: HawserOptions;
  #failpoint: string | undefined;
  #process: ServerProcess;
  /** The front that another one has left the socket to. */
  #successor: number | undefined;

  private constructor(root: string, options: HawserOptions) {
    this.root = root;
    this.socket = join(root, "hawser.sock");
    this.#options = options;
    this.#failpoint = options.failpoint;
    this.#process = this.#spawn();
    this.cri = new CriClient(this.socket);
  }

  /** Resolves when the socket answers and, unless told otherwise, pulls are accelerated. */
  static async start(
    options: HawserOptions,
    until: "accelerating" | "ready" = "accelerating",
  ): Promise<PrivateHawser> {
    const root = await mkdtemp(join(scratch(), "hawser-"));
    const config = `
[cri]
listen = "${root}/hawser.sock"
[containerd]
address = "${options.containerd}"
config_file = "${join(dirname(options.containerd), "config.toml")}"
[admin]
listen = "${root}/admin.sock"
state_dir = "${root}/state"
${options.page ? 'page = "127.0.0.1:0"' : ""}
[metrics]
listen = "127.0.0.1:${options.metricsPort ?? 0}"
${options.config ?? ""}
`;
    await writeFile(join(root, "hawser.toml"), config);
    const hawser = new PrivateHawser(root, options);
    try {
      await hawser.untilReady(until);
    } catch (error) {
      await hawser[Symbol.asyncDispose]();
      throw error;
    }
    return hawser;
  }

  /** The process that serves the socket. */
  get pid(): number {
    return this.#successor ?? this.#process.pid;
  }

  /** All of its processes: those that are ending, and a successor's, too. */
  get processes(): readonly HawserProcess[] {
    const config = join(this.root, "hawser.toml");
    return readdirSync("/proc").flatMap((name) => {
      const words = /^\d+$/.test(name) ? commandOf(name) : [];
      if (!words.includes(config) || !(words.includes("serve") || words.includes("puller"))) return [];
      return [{ pid: Number(name), role: words.includes("--listen") ? "puller" : "front" }];
    });
  }

  get exitCode(): number | null {
    return this.#process.exitCode;
  }

  logs(): string {
    return this.#process.logs();
  }

  async untilReady(until: "accelerating" | "ready"): Promise<void> {
    await this.#process.untilPrinted(/hawser: ready on/);
    if (until === "accelerating") await this.untilLogged(/pulls are accelerated/);
  }

  async untilLogged(pattern: RegExp): Promise<void> {
    await this.#process.untilPrinted(pattern);
  }

  /** Waits until everything that goes on after answers has ended: no instance of ours holds anything in spool or staging. */
  async untilMetric(pattern: RegExp): Promise<void> {
    await eventually(async () => {
      const text = await this.metrics();
      if (!pattern.test(text)) throw new Error(text);
    }, `metrics matching ${pattern}`);
  }

  /** The text of /metrics. */
  async metrics(): Promise<string> {
    const [, port] = await this.#process.untilPrinted(/metrics on [^\s"]*?:(\d+)/);
    const answer = await fetch(`http://127.0.0.1:${port}/metrics`);
    return await answer.text();
  }

  /** Settles when all of its processes are gone. With SIGKILL, they are ended at once. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const first = this.#process.pid;
    const over = this.#process.stop(signal);
    // Those that pull end with their front, if that is let to; a second signal would end a front at once.
    this.kill(signal, ({ pid, role }) => pid !== first && (signal === "SIGKILL" || role === "front"));
    await over;
    await this.untilGone();
  }

  /** The processes that its first one has started. */
  children(): number[] {
    const { pid } = this.#process;
    const text = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8");
    return text
      .split(" ")
      .filter((word) => word !== "")
      .map(Number);
  }

  /** Sends a signal to some of its processes, and returns to how many. */
  kill(signal: NodeJS.Signals, isMeant: (one: HawserProcess) => boolean = () => true): number {
    return this.processes.filter(isMeant).filter(({ pid }) => send(pid, signal)).length;
  }

  async untilGone(): Promise<void> {
    await eventually(async () => {
      if (this.processes.length > 0) throw new Error(JSON.stringify(this.processes));
    }, "the end of all processes of a daemon");
  }

  /** What the front says of itself. */
  async status(): Promise<Status> {
    return (await askAdmin(join(this.root, "admin.sock"), "GET", "/status")) as Status;
  }

  /** Accelerates pulls, and has one process that does: none is starting or ending. */
  async untilSettled(): Promise<void> {
    await eventually(async () => {
      const { pid, accelerating, pullers } = await this.status();
      const isSettled = pid === this.pid && accelerating && pullers.length === 1;
      if (!isSettled || this.processes.length !== 2) throw new Error(JSON.stringify(pullers));
    }, "one process that serves and one that pulls");
  }

  /** Has the front leave the socket to a process of the same version, which writes to the same log. */
  async succeed(): Promise<void> {
    const former = this.pid;
    process.kill(former, "SIGUSR2");
    this.#successor = await eventually(async () => {
      const { pid } = await this.status();
      if (pid === former) throw new Error("there is no successor yet");
      return pid;
    }, "a successor");
  }

  async startAgain(failpoint?: string, until: "accelerating" | "ready" = "accelerating"): Promise<void> {
    this.#failpoint = failpoint;
    this.#successor = undefined;
    this.#process = this.#spawn();
    await this.untilReady(until);
  }

  /** Waits until a failpoint has ended the process. */
  async untilKilled(): Promise<void> {
    const ended = await this.#process.exited;
    if (JSON.stringify(ended) !== '[null,"SIGKILL"]') throw new Error(`not killed: ${JSON.stringify(ended)}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cri[Symbol.dispose]();
    await this.stop();
    await rm(this.root, { recursive: true, force: true });
  }

  #spawn(): ServerProcess {
    const { node = process.execPath, program: copy = program, command = [node, copy] } = this.#options;
    const [file, ...before] = command;
    const role = this.#options.alone || this.#failpoint ? "puller" : "serve";
    return new ServerProcess(file, [...before, role, "--config", join(this.root, "hawser.toml")], {
      env: { ...process.env, ...this.#options.env, HAWSER_FAILPOINT: this.#failpoint ?? "" },
    });
  }
}

/** The command line of a process, in words; none when it is gone. */
function commandOf(pid: string): readonly string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
  } catch {
    return [];
  }
}

/** False when there is no such process any more. */
function send(pid: number, signal: NodeJS.Signals): boolean {
  try {
    return process.kill(pid, signal);
  } catch {
    return false;
  }
}
