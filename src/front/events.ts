// What goes on, told as it goes (server-sent events): each follower is told in its own way, and only of what has changed.
//
// While nobody follows, nothing is asked. Who is slow to read misses looks, and nothing is queued for it; whoever cannot be
// told is let go, and nobody else feels it.

import type { ServerResponse } from "node:http";

/** What a follower is to be told now. */
export type Telling = () => Promise<Told>;

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

const everyMs = 400;
const followersMax = 64;

export class Events {
  readonly #followers = new Set<Follower>();
  #timer: NodeJS.Timeout | undefined;
  #isTelling = false;

  /** Tells it until it goes away, beginning at once; false where there are too many. */
  follow(response: ServerResponse, tell: Telling): boolean {
    if (this.#followers.size >= followersMax) return false;
    // It went away before there was anything to tell, and does not say so again.
    if (response.destroyed) return true;
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    response.flushHeaders();
    const follower = { response, tell, told: "" };
    this.#followers.add(follower);
    response.once("close", () => this.#leave(follower));
    this.#timer ??= setInterval(() => void this.#tellAll(), everyMs);
    void this.#tell(follower);
    return true;
  }

  /** Ends what goes on; whoever follows asks again, and finds who has come instead. */
  close(): void {
    for (const { response } of this.#followers) response.destroy();
  }

  #leave(follower: Follower): void {
    this.#followers.delete(follower);
    if (this.#followers.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  async #tellAll(): Promise<void> {
    if (this.#isTelling) return;
    this.#isTelling = true;
    for (const follower of this.#followers) await this.#tell(follower);
    this.#isTelling = false;
  }

  /** Never rejects. */
  async #tell(follower: Follower): Promise<void> {
    const { response, tell } = follower;
    if (response.writableNeedDrain) return;
    try {
      const { event, data, isLast } = await tell();
      const text = `event: ${event}\ndata: ${data}\n\n`;
      if (text !== follower.told) response.write(text);
      follower.told = text;
      if (isLast) response.end();
    } catch {
      response.destroy();
    }
  }
}
