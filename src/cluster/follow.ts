// A collection of the API, followed: listed once, then watched from there, and listed again when that is no longer
// possible.
//
// A watch is a stream of JSON lines, each an event; it ends every few minutes by itself, and is then taken up again where
// it was. What is heard is told in order; an API that is away, refuses or asks for patience is asked again after a pause
// that grows, and a stream on which nothing comes for long is given up.

import { setTimeout as sleep } from "node:timers/promises";
import { PullError } from "../errors.ts";
import { causeOf, isObject, objectBytesMax, objectOf, readAll, type Send } from "./answer.ts";
import type { Collection, Follower, KubernetesObject } from "./cluster.ts";

/** Objects that are asked for at once; the API hands out a token for the next ones. */
const pageSize = 500;
const listBytesMax = 256 * 2 ** 20;
/** The API ends a watch after so long, somewhere in between, so that not all of a fleet come back at once. */
const watchSeconds = { least: 300, most: 600 } as const;
/** Bookmarks come every minute or so. */
const silenceMs = { list: 60_000, watch: 150_000 } as const;
const shortWatchMs = 1_000;
const pauseMs = { first: 500, most: 30_000, refused: 60_000 } as const;

/** The collection is too old to be taken up where it was (410 Gone). */
class Expired extends Error {
  override readonly message = "the API does not know any more what was heard last";
}

/** Until the signal is aborted; never rejects. */
export async function follow(
  send: Send,
  collection: Collection,
  follower: Follower,
  signal: AbortSignal,
): Promise<void> {
  const following = new Following(send, collection, follower, signal);
  let failures = 0;
  const isOver = (): boolean => signal.aborted;
  while (!isOver()) {
    try {
      // A list that succeeds says nothing of the watch behind it.
      if (await following.step()) failures = 0;
    } catch (error) {
      if (isOver()) return;
      failures += 1;
      if (error instanceof Expired) {
        following.version = undefined;
        if (failures === 1) continue;
      }
      const failure = PullError.from(error, "unavailable");
      follower.trouble(failure.message);
      await sleep(pauseAfter(failure, failures), undefined, { signal }).catch(() => {});
    }
  }
}

class Following {
  readonly #send: Send;
  readonly #collection: Collection;
  readonly #follower: Follower;
  readonly #signal: AbortSignal;
  /** Up to where it was heard; undefined when it has to be listed. */
  version: string | undefined;

  constructor(send: Send, collection: Collection, follower: Follower, signal: AbortSignal) {
    this.#send = send;
    this.#collection = collection;
    this.#follower = follower;
    this.#signal = signal;
  }

  /** Lists, or watches until the stream ends; true when it was one that told something, or went on for a while. */
  async step(): Promise<boolean> {
    if (this.version === undefined) {
      await this.#list();
      return false;
    }
    return await this.#watch(this.version);
  }

  async #list(): Promise<void> {
    const { objects, version } = await list(this.#send, this.#collection, this.#signal);
    if (this.#signal.aborted) return;
    this.version = version;
    this.#follower.trouble(undefined);
    this.#follower.replaced(objects);
  }

  async #watch(from: string): Promise<boolean> {
    const { least, most } = watchSeconds;
    const seconds = Math.round(least + Math.random() * (most - least));
    const query = {
      watch: "1",
      allowWatchBookmarks: "true",
      resourceVersion: from,
      timeoutSeconds: String(seconds),
    };
    const answer = await this.#ask(query, silenceMs.watch);
    this.#follower.trouble(undefined);
    const began = performance.now();
    let isHeard = false;
    try {
      for await (const line of linesOf(answer as AsyncIterable<Buffer>)) {
        if (this.#signal.aborted) break;
        this.#hear(line);
        isHeard = true;
      }
    } catch (error) {
      if (error instanceof Expired || error instanceof PullError) throw error;
      const { message } = error as Error;
      throw new PullError("unavailable", `the API's watch broke off: ${message}`, {
        temporary: true,
        cause: error,
      });
    } finally {
      answer.destroy();
    }
    if (isHeard || performance.now() - began >= shortWatchMs) return true;
    throw new PullError("unavailable", "the API ends watches as soon as they begin", { temporary: true });
  }

  #hear(line: Buffer): void {
    let event: { type?: unknown; object?: unknown };
    try {
      event = JSON.parse(line.toString("utf8")) as typeof event;
    } catch {
      throw new PullError("unavailable", "the API's watch is not JSON", { temporary: true });
    }
    const { type, object } = event;
    if (type === "ERROR") throw errorOf(object);
    if (!isObject(object)) return;
    const { resourceVersion } = object.metadata;
    if (resourceVersion) this.version = resourceVersion;
    if (type === "ADDED" || type === "MODIFIED") this.#follower.changed(object);
    else if (type === "DELETED") this.#follower.deleted(object);
  }

  async #ask(query: Readonly<Record<string, string>>, silence: number): ReturnType<Send> {
    return await ask(this.#send, this.#collection, query, silence, this.#signal);
  }
}

async function ask(
  send: Send,
  { path, fieldSelector, labelSelector }: Collection,
  query: Readonly<Record<string, string>>,
  silence: number,
  signal: AbortSignal,
): ReturnType<Send> {
  const all = { ...(fieldSelector && { fieldSelector }), ...(labelSelector && { labelSelector }), ...query };
  try {
    return await send({ method: "GET", path, query: all, silenceMs: silence }, signal);
  } catch (error) {
    throw isExpired(error) ? new Expired() : error;
  }
}

/** All objects of a collection, and as of which version. */
export async function list(
  send: Send,
  collection: Collection,
  signal: AbortSignal,
): Promise<{ readonly objects: readonly KubernetesObject[]; readonly version: string }> {
  const objects: KubernetesObject[] = [];
  // Version 0 is whatever the API has at hand, as kubelet asks for it; the rest of a list is of the same version.
  const first = collection.isCurrent ? {} : { resourceVersion: "0" };
  let [token, version, bytes] = ["", "", 0];
  do {
    const page = { limit: String(pageSize), ...(token ? { continue: token } : first) };
    const answer = await ask(send, collection, page, silenceMs.list, signal);
    const text = await readAll(answer, listBytesMax - bytes);
    bytes += text.length;
    const found = objectOf(text);
    const items = Array.isArray(found["items"]) ? (found["items"] as unknown[]) : [];
    objects.push(...items.filter(isObject));
    const { resourceVersion = "", continue: next = "" } = found.metadata as Record<
      string,
      string | undefined
    >;
    [token, version] = [next, resourceVersion];
  } while (token !== "");
  return { objects, version };
}

function errorOf(status: unknown): Error {
  const { code, message } = (status ?? {}) as { code?: unknown; message?: unknown };
  if (code === 410) return new Expired();
  return new PullError("unavailable", `the API's watch ended: ${String(message).slice(0, 500)}`, {
    temporary: true,
  });
}

function isExpired(error: unknown): boolean {
  return causeOf(error).status === 410;
}

function pauseAfter(failure: PullError, failures: number): number {
  const { retryAfterMs } = causeOf(failure);
  if (retryAfterMs !== undefined) return Math.min(retryAfterMs, pauseMs.refused);
  const longest = failure.code === "refused" || failure.code === "invalid" ? pauseMs.refused : pauseMs.most;
  // Not all nodes of a fleet at once.
  return Math.min(longest, pauseMs.first * 2 ** (failures - 1)) * (0.5 + Math.random());
}

async function* linesOf(parts: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let pending: Buffer[] = [];
  let bytes = 0;
  for await (const part of parts) {
    let rest = part;
    for (let end = rest.indexOf(newline); end !== -1; end = rest.indexOf(newline)) {
      const line = Buffer.concat([...pending, rest.subarray(0, end)]);
      [pending, bytes] = [[], 0];
      if (line.length > 0) yield line;
      rest = rest.subarray(end + 1);
    }
    bytes += rest.length;
    if (bytes > objectBytesMax)
      throw new PullError("unavailable", `the API sends an event of over ${bytes} bytes`);
    if (rest.length > 0) pending.push(rest);
  }
}

const newline = 10;
