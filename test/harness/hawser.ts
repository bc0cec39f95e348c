// The daemon as it ships: dist/main.js in a process of its own.

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { scratch } from "./containerd.ts";
import { CriClient } from "./cri.ts";
import { eventually, ServerProcess } from "./process.ts";

const program = fileURLToPath(new URL("../../dist/main.js", import.meta.url));

export interface HawserOptions {
  /** Path of containerd's socket. */
  readonly containerd: string;
  /** More sections of the configuration. */
  readonly config?: string;
  /** The node to run it with. */
  readonly node?: string;
  /** Another copy of dist/main.js. */
  readonly program?: string;
}

export class PrivateHawser implements AsyncDisposable {
  readonly root: string;
  readonly socket: string;
  readonly cri: CriClient;
  readonly #options: HawserOptions;
  #process: ServerProcess;

  private constructor(root: string, options: HawserOptions) {
    this.root = root;
    this.socket = join(root, "hawser.sock");
    this.#options = options;
    this.#process = this.#spawn();
    this.cri = new CriClient(this.socket);
  }

  /** Resolves when the socket answers and, unless told otherwise, pulls are accelerated. */
  static async start(
    options: HawserOptions,
    until: "accelerating" | "ready" = "accelerating",
  ): Promise<PrivateHawser> {
    const root = await mkdtemp(join(scratch, "hawser-"));
    const config = `
[cri]
listen = "${root}/hawser.sock"
[containerd]
address = "${options.containerd}"
[metrics]
listen = "127.0.0.1:0"
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

  get pid(): number {
    return this.#process.pid;
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

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    await this.#process.stop(signal);
  }

  async startAgain(): Promise<void> {
    this.#process = this.#spawn();
    await this.untilReady("accelerating");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cri[Symbol.dispose]();
    await this.stop();
    await rm(this.root, { recursive: true, force: true });
  }

  #spawn(): ServerProcess {
    const args = [this.#options.program ?? program, "serve", "--config", join(this.root, "hawser.toml")];
    return new ServerProcess(this.#options.node ?? process.execPath, args);
  }
}
