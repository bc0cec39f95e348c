// Callers that never pause: ListImages and PullImage again and again, with every failure kept.

import { expect } from "vitest";
import { CriClient } from "./cri.ts";

export class Callers implements AsyncDisposable {
  readonly failures: string[] = [];
  lists = 0;
  pulls = 0;
  readonly #clients: CriClient[] = [];
  readonly #running: Promise<unknown>;
  #isOver = false;

  /** `next` gives the reference of each pull. */
  constructor(socket: string, next: () => string) {
    const lister = new CriClient(socket);
    const puller = new CriClient(socket);
    this.#clients.push(lister, puller);
    const list = this.#forever(async () => {
      await lister.listImages();
      this.lists += 1;
    });
    const pull = this.#forever(async () => {
      const reference = next();
      const reply = await puller.pull(reference);
      if ("value" in reply) this.pulls += 1;
      else this.failures.push(`${reference}: ${reply.code} ${reply.message}`);
    });
    this.#running = Promise.all([list, pull]);
  }

  /** Ends them; none of their calls may have failed, and some must have been made. */
  async finish(): Promise<void> {
    this.#isOver = true;
    await this.#running;
    expect(this.failures).toEqual([]);
    expect(Math.min(this.lists, this.pulls)).toBeGreaterThan(0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOver = true;
    await this.#running;
    for (const client of this.#clients) client[Symbol.dispose]();
  }

  async #forever(call: () => Promise<void>): Promise<void> {
    while (!this.#isOver) {
      try {
        await call();
      } catch (error) {
        this.failures.push(String(error));
      }
      // A turn of the event loop, so that nobody starves.
      await new Promise(setImmediate);
    }
  }
}
