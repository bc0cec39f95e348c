// Pulls that go on, told as they go: server-sent events for whoever follows, one look at the pulling processes for all.
//
// While nobody follows, nothing is asked. Who is slow to read misses looks, and nothing is queued for it.

import type { ServerResponse } from "node:http";
import type { PullRecord } from "../history/record.ts";

const everyMs = 300;
const followersMax = 64;

export class Events {
  readonly #look: () => Promise<readonly PullRecord[]>;
  readonly #followers = new Set<ServerResponse>();
  #timer: NodeJS.Timeout | undefined;
  #told = "";

  constructor(look: () => Promise<readonly PullRecord[]>) {
    this.#look = look;
  }

  /** Tells it until it goes away, beginning with what goes on now; false where there are too many. */
  follow(response: ServerResponse): boolean {
    if (this.#followers.size >= followersMax) return false;
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    response.flushHeaders();
    this.#followers.add(response);
    response.once("close", () => {
      this.#followers.delete(response);
      if (this.#followers.size === 0) this.#stop();
    });
    // It has been told nothing yet.
    this.#told = "";
    this.#timer ??= setInterval(() => void this.#tell(), everyMs);
    void this.#tell();
    return true;
  }

  close(): void {
    this.#stop();
    for (const response of this.#followers) response.destroy();
  }

  #stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  async #tell(): Promise<void> {
    const text = JSON.stringify(await this.#look());
    if (text === this.#told) return;
    this.#told = text;
    for (const response of this.#followers) {
      if (!response.writableNeedDrain) response.write(`event: pulls\ndata: ${text}\n\n`);
    }
  }
}
