// Pulls that go on, told as they go (server-sent events), by one look at the pulling processes for all who follow.
//
// While nobody follows, nothing is asked. Who is slow to read misses looks, and nothing is queued for it.

import type { ServerResponse } from "node:http";
import type { PullRecord } from "../history/record.ts";

/** What a follower is told of the pulls that go on, which is told only when it has changed. */
export type Telling = (running: readonly PullRecord[]) => Promise<Told>;

interface Told {
  readonly event: string;
  readonly data: string;
  /** There is nothing more to come. */
  readonly isLast?: boolean;
}

interface Follower {
  readonly response: ServerResponse;
  readonly tell: Telling;
  told: string;
}

const everyMs = 300;
const followersMax = 64;

export class Events {
  readonly #look: () => Promise<readonly PullRecord[]>;
  readonly #followers = new Set<Follower>();
  #timer: NodeJS.Timeout | undefined;
  #isLooking = false;

  constructor(look: () => Promise<readonly PullRecord[]>) {
    this.#look = look;
  }

  /** Tells it until it goes away, beginning with what goes on now; false where there are too many. */
  follow(response: ServerResponse, tell: Telling): boolean {
    if (this.#followers.size >= followersMax) return false;
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    response.flushHeaders();
    const follower = { response, tell, told: "" };
    this.#followers.add(follower);
    response.once("close", () => this.#leave(follower));
    this.#timer ??= setInterval(() => void this.#lookOnce(), everyMs);
    void this.#lookOnce();
    return true;
  }

  close(): void {
    for (const { response } of this.#followers) response.destroy();
  }

  #leave(follower: Follower): void {
    this.#followers.delete(follower);
    if (this.#followers.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  async #lookOnce(): Promise<void> {
    if (this.#isLooking) return;
    this.#isLooking = true;
    try {
      const running = await this.#look();
      for (const follower of this.#followers) await this.#tell(follower, running);
    } finally {
      this.#isLooking = false;
    }
  }

  async #tell(follower: Follower, running: readonly PullRecord[]): Promise<void> {
    const { response, tell, told } = follower;
    if (response.writableNeedDrain) return;
    const { event, data, isLast } = await tell(running);
    const text = `event: ${event}\ndata: ${data}\n\n`;
    if (text !== told) response.write(text);
    follower.told = text;
    if (isLast) response.end();
  }
}
