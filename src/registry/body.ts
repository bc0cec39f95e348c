// Bodies of answers: as parts at the pace of their reader, or thrown away. However little and slowly a host sends, no
// body is waited for without end.

import { setTimeout as sleep } from "node:timers/promises";
import type { Dispatcher } from "undici";
import { PullError } from "../errors.ts";

export interface Body {
  /** The next part, good until the next call, or undefined at the end. Whoever stops before that destroys the body. */
  next(): Promise<Buffer | undefined>;
  /** Takes in so much of what is left, and closes the connection if there is more. */
  dump(options: { readonly limit: number }): Promise<unknown>;
  /** Nothing more of it is wanted. */
  destroy(): void;
}

export function bodyOf(body: Dispatcher.ResponseData["body"]): Body {
  let parts: AsyncIterator<Buffer> | undefined;
  return {
    async next() {
      parts ??= (body as AsyncIterable<Buffer>)[Symbol.asyncIterator]();
      const { done, value } = await parts.next();
      return done === true ? undefined : value;
    },
    dump: async (options) => await body.dump(options),
    destroy: () => void body.destroy(),
  };
}

/** Slower than this for the time of `download.progress_timeout` is no progress to speak of. */
const bytesPerSecondMin = 512;
/** What is left of a body that nobody wants is taken in, so that its connection can serve again, if that is little. */
const discardBytesMax = 64 * 1024;
const discardMs = 1_000;

/**
 * A body whose next() throws `slow` when it drips. The connection itself ends a wait for the next part, so that it is
 * enough to look at the clock when one has come. Time that the reader takes does not count.
 */
export class PacedBody {
  readonly #body: Body;
  readonly #timeoutMs: number;
  #waitedMs = 0;
  #bytes = 0;

  constructor(body: Body, timeoutMs: number) {
    this.#body = body;
    this.#timeoutMs = timeoutMs;
  }

  async next(): Promise<Buffer | undefined> {
    const since = performance.now();
    const part = await this.#body.next();
    if (part === undefined) return undefined;
    this.#waitedMs += performance.now() - since;
    this.#bytes += part.length;
    if (this.#waitedMs >= this.#timeoutMs) this.#judge();
    return part;
  }

  #judge(): void {
    const [bytes, waitedMs] = [this.#bytes, this.#waitedMs];
    this.#waitedMs = 0;
    this.#bytes = 0;
    if (bytes * 1000 >= waitedMs * bytesPerSecondMin) return;
    const seconds = (waitedMs / 1000).toFixed(1);
    throw new PullError("slow", `only ${bytes} bytes came in ${seconds} s`, { temporary: true });
  }
}

/** The end of a body that is not wanted. Never throws. */
export async function discard(body: Body): Promise<void> {
  const done = new AbortController();
  const late = sleep(discardMs, undefined, { signal: done.signal }).then(
    () => body.destroy(),
    () => {},
  );
  await body.dump({ limit: discardBytesMax }).catch(() => {});
  done.abort();
  await late;
}
