// One puller: the process that does the work of pulls, as its front sees it.
//
// It is started with a socket of its own for calls and a pipe for messages, pinged, and killed when it no longer
// answers. Its log is ours. Calls to it are bytes; what becomes of calls that it never answers is not decided here.

import { type ChildProcess, spawn } from "node:child_process";
import { rm } from "node:fs/promises";
import { Channel } from "../containerd/channel.ts";
import type { Forward } from "../cri/forward.ts";
import { PullError } from "../errors.ts";
import type { PullRecord } from "../history/record.ts";
import type { PullSummary } from "../history/summary.ts";
import type { MetricValues } from "../metrics.ts";
import type { PrewarmRequest, PrewarmStatus } from "../prewarm/prewarming.ts";
import type { Answer, FromPuller, ToPuller } from "./messages.ts";

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
/** How long a scrape or a look, and a question of an operator, waits for the process. */
const lookMsMax = 2_000;
const questionMsMax = 20_000;

export class Puller {
  readonly pid: number;
  readonly forward: Forward;
  readonly startedAt = performance.now();
  #state: PullerState = { kind: "starting" };
  readonly #options: PullerOptions;
  readonly #process: ChildProcess;
  readonly #channel: Channel;
  readonly #over: Promise<void>;
  readonly #asked = new Map<number, (answer: FromPuller | undefined) => void>();
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
    return (await this.#ask((id) => ({ kind: "metrics", id }), lookMsMax))?.metrics ?? [];
  }

  /** Its pulls that go on, and some that have ended just now; none when it does not say in time. */
  async pulls(): Promise<readonly PullSummary[]> {
    if (this.#state.kind !== "serving") return [];
    return (await this.#ask((id) => ({ kind: "pulls", id }), lookMsMax))?.pulls ?? [];
  }

  /** One of these, whole, by its id or its trace's. */
  async pull(pull: string): Promise<PullRecord | undefined> {
    if (this.#state.kind !== "serving") return undefined;
    return (await this.#ask((id) => ({ kind: "pull", id, pull }), lookMsMax))?.pull;
  }

  /** False where it has no such pull. */
  async cancel(pull: string): Promise<boolean> {
    if (this.#state.kind !== "serving") return false;
    return (await this.#ask((id) => ({ kind: "cancel", id, pull }), questionMsMax))?.isCancelled ?? false;
  }

  /** Throws what the process says against it, and `unavailable` when it does not answer. */
  async prewarm(request: PrewarmRequest): Promise<PrewarmStatus> {
    const { answer } = (await this.#ask((id) => ({ kind: "prewarm", id, request }), questionMsMax)) ?? {};
    if (!answer) throw new PullError("unavailable", "the process that pulls does not answer");
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
      case "pulls":
      case "pull":
      case "cancel":
      case "prewarm":
        this.#asked.get(message.id)?.(message);
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
    for (const settle of this.#asked.values()) settle(undefined);
    this.#channel.close();
    this.#set({ kind: "ended", how });
    await rm(this.#options.socket, { force: true });
  }

  /** What is answered under the message's number; undefined after so long, or when the process has ended. */
  async #ask<Kind extends Answer<FromPuller["kind"]>["kind"]>(
    message: (id: number) => ToPuller & { readonly kind: Kind },
    timeoutMs: number,
  ): Promise<Answer<Kind> | undefined> {
    this.#questions += 1;
    const id = this.#questions;
    return await new Promise((resolve) => {
      const timer = setTimeout(() => settle(undefined), timeoutMs);
      const settle = (answer: FromPuller | undefined): void => {
        clearTimeout(timer);
        this.#asked.delete(id);
        resolve(answer as Answer<Kind> | undefined);
      };
      this.#asked.set(id, settle);
      this.#tell(message(id));
    });
  }

  #set(state: PullerState): void {
    this.#state = state;
    this.#options.changed(this);
  }
}
