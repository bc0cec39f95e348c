// Bodies of answers: as parts at the pace of their reader, or thrown away. However little and slowly a host sends, no
// body is waited for without end.

import { setTimeout as sleep } from "node:timers/promises";
import type { Dispatcher } from "undici";
import { PullError } from "../errors.ts";

export type Body = Dispatcher.ResponseData["body"];

/** Slower than this for the time of `download.progress_timeout` is no progress to speak of. */
const bytesPerSecondMin = 512;
/** What is left of a body that nobody wants is taken in, so that its connection can serve again, if that is little. */
const discardBytesMax = 64 * 1024;
const discardMs = 1_000;

/**
 * The parts as they come; throws `slow` when they drip. undici itself ends a wait for the next part, so that it is
 * enough to look at the clock when one has come. Time that the reader takes does not count.
 */
export async function* paced(body: Body, timeoutMs: number): AsyncGenerator<Buffer> {
  let waitedMs = 0;
  let bytes = 0;
  let since = performance.now();
  for await (const part of body as AsyncIterable<Buffer>) {
    waitedMs += performance.now() - since;
    bytes += part.length;
    if (waitedMs >= timeoutMs) {
      if (bytes * 1000 < waitedMs * bytesPerSecondMin) {
        const seconds = (waitedMs / 1000).toFixed(1);
        throw new PullError("slow", `only ${bytes} bytes came in ${seconds} s`, { temporary: true });
      }
      waitedMs = 0;
      bytes = 0;
    }
    yield part;
    since = performance.now();
  }
}

/** The end of a body that is not wanted. Never throws. */
export async function discard(body: Body): Promise<void> {
  const done = new AbortController();
  const late = sleep(discardMs, undefined, { signal: done.signal }).then(
    () => void body.destroy(),
    () => {},
  );
  await body.dump({ limit: discardBytesMax }).catch(() => {});
  done.abort();
  await late;
}
