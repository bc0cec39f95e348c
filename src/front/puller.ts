// One puller: the process that does the work of pulls, as its front sees it.
//
// It is started with a socket of its own for calls and a pipe for messages, pinged, and killed when it no longer
// answers. Its log is ours. Calls to it are bytes; what becomes of calls that it never answers is not decided here.

import { type ChildProcess, spawn } from "node:child_process";
import { rm } from "node:fs/promises";
import { Channel } from "../containerd/channel.ts";
import type { Forward } from "../cri/forward.ts";
import { PullError } from "../errors.ts";
import type { MetricValues } from "../metrics.ts";
import type { PrewarmRequest, PrewarmStatus } from "../prewarm/prewarming.ts";
import type { FromPuller, PrewarmAnswer, ToPuller } from "./messages.ts";

export interface PullerOptions {
  /** Command line of the process; its socket is appended. */
  readonly command: readonly string[];
  readonly environment: NodeJS.ProcessEnv;
  readonly socket: string;
  /** Told of each change of {@link Puller.state}; never after `ended`. */
  readonly changed: (puller: Puller) => void;
}

/** Why pulls go through to containerd although the process is well: its own words. */
export interface Closed {
  readonly reason: string;
  readonly detail: string;
}

export type PullerState =
  | { readonly kind: "starting" }
  | { readonly kind: "serving"; readonly closed: Closed | undefined }
  | { readonly kind: "ended"; readonly how: string };

/** A process that was not heard of for this long is hung: a healthy one's main thread is never busy for a second. */
const silenceMsMax = 30_000;
const pingMs = 5_000;
/** How long a scrape, and a question of an operator, waits for the process. */
const metricsMsMax = 2_000;
const prewarmMsMax = 20_000;

const noAnswer: PrewarmAnswer = {
  kind: "error",
  code: "unavailable",
  message: "the process that pulls does not answer",
};

export class Puller {
  readonly pid: number;
  readonly forward: Forward;
  readonly startedAt = performance.now();
  #state: PullerState = { kind: "starting" };
  readonly #options: PullerOptions;
  readonly #process: ChildProcess;
  readonly #channel: Channel;
  readonly #over: Promise<void>;
  readonly #asked = new Map<number, (metrics: readonly MetricValues[]) => void>();
  readonly #prewarmAsked = new Map<number, (answer: PrewarmAnswer) => void>();
  #questions = 0;
  #heardAt = performance.now();
  #isLeaving = false;

  constructor(options: PullerOptions) {
    this.#options = options;
    const [program = "", ...args] = options.command;
    this.#process = spawn(program, [...args, "--listen", options.socket], {
      env: options.environment,
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    this.pid = this.#process.pid ?? 0;
    this.#channel = new Channel({ address: options.socket, namespace: "" });
    this.forward = this.#channel.raw.bind(this.#channel);
    this.#process.on("message", (message) => this.#hear(message as FromPuller));
    const ping = setInterval(() => this.#ping(), pingMs);
    this.#over = new Promise((resolve) => {
      const end = (how: string): void => {
        clearInterval(ping);
        void this.#end(how).then(resolve);
      };
      this.#process.once("exit", (code, signal) => end(signal ?? `exit code ${code}`));
      this.#process.once("error", (error) => end(error.message));
    });
  }

  get state(): PullerState {
    return this.#state;
  }

  /** It was asked to end. */
  get isLeaving(): boolean {
    return this.#isLeaving;
  }

  /** Settles when the process is gone. */
  get over(): Promise<void> {
    return this.#over;
  }

  /** What it counts now; nothing when it does not say in time. */
  async metrics(): Promise<readonly MetricValues[]> {
    if (this.#state.kind !== "serving") return [];
    return await this.#ask(this.#asked, (id) => ({ kind: "metrics", id }), metricsMsMax, []);
  }

  /** Throws what the process says against it, and `unavailable` when it does not answer. */
  async prewarm(request: PrewarmRequest): Promise<PrewarmStatus> {
    const message = (id: number): ToPuller => ({ kind: "prewarm", id, request });
    const answer = await this.#ask(this.#prewarmAsked, message, prewarmMsMax, noAnswer);
    if (answer.kind === "error") throw new PullError(answer.code, answer.message);
    return answer.status;
  }

  /** Has it end what it is at, for this long; settles when the process is gone. */
  async drain(timeoutMs: number): Promise<void> {
    this.#isLeaving = true;
    this.#tell({ kind: "drain", timeoutMs });
    const kill = setTimeout(() => this.#process.kill("SIGKILL"), timeoutMs + silenceMsMax);
    await this.#over;
    clearTimeout(kill);
  }

  #hear(message: FromPuller): void {
    this.#heardAt = performance.now();
    switch (message.kind) {
      case "listening":
        this.#set({ kind: "serving", closed: { reason: "starting", detail: "starting" } });
        return;
      case "site":
        if (this.#state.kind === "serving") this.#set({ kind: "serving", closed: message.closed });
        return;
      case "metrics":
        this.#asked.get(message.id)?.(message.metrics);
        return;
      case "prewarm":
        this.#prewarmAsked.get(message.id)?.(message.answer);
        return;
      case "pong":
    }
  }

  #ping(): void {
    if (performance.now() - this.#heardAt > silenceMsMax) this.#process.kill("SIGKILL");
    else this.#tell({ kind: "ping" });
  }

  #tell(message: ToPuller): void {
    // A pipe that has closed says so in the process's end as well.
    if (this.#process.connected) this.#process.send(message, () => {});
  }

  async #end(how: string): Promise<void> {
    if (this.#state.kind === "ended") return;
    for (const settle of this.#asked.values()) settle([]);
    for (const settle of this.#prewarmAsked.values()) settle(noAnswer);
    this.#channel.close();
    this.#set({ kind: "ended", how });
    await rm(this.#options.socket, { force: true });
  }

  /** What is answered under the message's number, or `none` after so long. */
  async #ask<Answer>(
    asked: Map<number, (answer: Answer) => void>,
    message: (id: number) => ToPuller,
    timeoutMs: number,
    none: Answer,
  ): Promise<Answer> {
    this.#questions += 1;
    const id = this.#questions;
    return await new Promise<Answer>((resolve) => {
      const timer = setTimeout(() => settle(none), timeoutMs);
      const settle = (answer: Answer): void => {
        clearTimeout(timer);
        asked.delete(id);
        resolve(answer);
      };
      asked.set(id, settle);
      this.#tell(message(id));
    });
  }

  #set(state: PullerState): void {
    this.#state = state;
    this.#options.changed(this);
  }
}
