// A server process of a test: started, watched until it is ready, stopped by its pid.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";

export interface StartOptions {
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
}

export class ServerProcess {
  readonly #child: ChildProcess;
  readonly #name: string;
  #output = "";
  #wake = (): void => {};
  readonly exited: Promise<unknown>;

  constructor(command: string, args: readonly string[], options: StartOptions = {}) {
    this.#name = command;
    this.#child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.on("data", (bytes: Buffer) => {
        this.#output += bytes.toString();
        this.#wake();
      });
    }
    this.exited = once(this.#child, "exit").finally(() => this.#wake());
    this.exited.catch(() => {});
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  get exitCode(): number | null {
    return this.#child.exitCode;
  }

  /** Everything it has printed. */
  logs(): string {
    return this.#output;
  }

  /** Waits until something that it prints matches; throws with its output when it ends before. */
  async untilPrinted(pattern: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const found = pattern.exec(this.#output);
      if (found) return found;
      this.throwIfOver();
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  throwIfOver(): void {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) {
      throw new Error(`${this.#name} ended: ${this.#output.slice(-4000)}`);
    }
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) this.#child.kill(signal);
    await this.exited;
  }
}

/** Asks again and again, in small steps, until it is so; throws the last error after a minute. */
export async function eventually<Value>(ask: () => Promise<Value>, what: string): Promise<Value> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (Date.now() > deadline) throw new Error(`${what} did not happen within a minute`, { cause: error });
      await new Promise((resolve) => {
        setTimeout(resolve, 20);
      });
    }
  }
}

/** A port of this machine's loopback that nobody has at the moment, for programs that cannot say which one they took. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => {
    server.close(resolve);
  });
  return port;
}
