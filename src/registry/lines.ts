// Lines to where blobs come from: kept between requests, and given up where a server frames its answers in a way that they
// do not read. There, and through proxies, blobs come by undici like everything else.

import { errors } from "undici";
import { whileNotAborted } from "../errors.ts";
import type { Body } from "./body.ts";
import type { Open } from "./connector.ts";
import { bodyBytesOf, formatGet, type Head } from "./head.ts";
import { Line } from "./line.ts";

export interface LineAnswer extends Head {
  readonly body: Body;
}

/** containerd's idle timeout; and what a server's own is cut by, so that it does not close one that is just used. */
const idleMs = { max: 30_000, margin: 1_000 } as const;
/** For how long a server is left to undici, and how many are remembered. */
const unfitMs = 600_000;
const unfitMax = 256;

export class Lines {
  readonly #open: Open;
  readonly #timeoutMs: number;
  /** By origin, the one used last at the end. */
  readonly #idle = new Map<string, Line[]>();
  readonly #all = new Set<Line>();
  readonly #unfitUntil = new Map<string, number>();

  /** So long may a body bring nothing. */
  constructor(open: Open, timeoutMs: number) {
    this.#open = open;
    this.#timeoutMs = timeoutMs;
  }

  /** The answer to a GET; undefined when somebody else has to ask. Rejects with errors as undici's. */
  async get(
    url: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<LineAnswer | undefined> {
    const request = formatGet(url, headers);
    if (request === undefined || this.#isUnfit(url)) return undefined;
    for (;;) {
      const kept = this.#take(url);
      const line = kept ?? (await this.#connect(url, signal));
      const abort = (): void => line.fail(new errors.RequestAbortedError());
      signal.addEventListener("abort", abort, { once: true });
      if (signal.aborted) abort();
      const done = (): void => {
        signal.removeEventListener("abort", abort);
        this.#putBack(url, line);
      };
      try {
        const head = await line.ask(request);
        const answer = head && this.#answer(line, head, done);
        if (answer === undefined) {
          done();
          this.#leave(url);
        }
        return answer;
      } catch (error) {
        done();
        // A server may close a connection while nobody uses it, and just when somebody is about to.
        if (kept === undefined || line.hasAnswered || signal.aborted) throw error;
      }
    }
  }

  close(): void {
    for (const line of this.#all) line.fail(new errors.ClientDestroyedError());
  }

  /** The body of a failure is not read, only dumped, however it is framed; then the line is closed. */
  #answer(line: Line, head: Head, done: () => void): LineAnswer | undefined {
    const sizeBytes = bodyBytesOf(head);
    const isRead = head.status === 200 || head.status === 206;
    if (sizeBytes === undefined && isRead) return undefined;
    return {
      ...head,
      body: new LineBody(line, sizeBytes ?? Number.POSITIVE_INFINITY, this.#timeoutMs, done),
    };
  }

  async #connect(url: URL, signal: AbortSignal): Promise<Line> {
    const { protocol, hostname, port, host } = url;
    const opening = Line.open((receive) => this.#open({ protocol, hostname, port, host }, receive));
    const added = opening.then((line) => {
      this.#all.add(line);
      // Who waited for it may be gone: then it is the next one's.
      if (signal.aborted) this.#putBack(url, line);
      return line;
    });
    return await whileNotAborted(added, signal);
  }

  #take({ origin }: URL): Line | undefined {
    const idle = this.#idle.get(origin) ?? [];
    for (let line = idle.pop(); line; line = idle.pop()) {
      if (line.isFree) return line;
      this.#drop(line);
    }
    return undefined;
  }

  #putBack({ origin }: URL, line: Line): void {
    const kept = line.keptSeconds;
    const keepMs = kept === undefined ? idleMs.max : Math.min(idleMs.max, kept * 1000 - idleMs.margin);
    if (!line.isFree || keepMs <= 0) {
      this.#drop(line);
      return;
    }
    const idle = this.#idle.get(origin) ?? [];
    this.#idle.set(origin, idle);
    idle.push(line);
    const since = line.uses;
    setTimeout(() => {
      const index = idle.indexOf(line);
      if (index === -1 || line.uses !== since) return;
      idle.splice(index, 1);
      this.#drop(line);
    }, keepMs).unref();
  }

  #drop(line: Line): void {
    this.#all.delete(line);
    line.fail(new errors.SocketError("closed"));
  }

  #isUnfit({ origin }: URL): boolean {
    return (this.#unfitUntil.get(origin) ?? Number.NEGATIVE_INFINITY) > performance.now();
  }

  #leave({ origin }: URL): void {
    this.#unfitUntil.delete(origin);
    this.#unfitUntil.set(origin, performance.now() + unfitMs);
    const oldest = this.#unfitUntil.keys().next();
    if (this.#unfitUntil.size > unfitMax && !oldest.done) this.#unfitUntil.delete(oldest.value);
  }
}

/** What is left of it when it is let go closes the line. */
class LineBody implements Body {
  readonly #line: Line;
  #left: number;
  readonly #timeoutMs: number;
  readonly #done: () => void;
  #isDone = false;

  constructor(line: Line, sizeBytes: number, timeoutMs: number, done: () => void) {
    this.#line = line;
    this.#left = sizeBytes;
    this.#timeoutMs = timeoutMs;
    this.#done = done;
  }

  async next(): Promise<Buffer | undefined> {
    const part = await this.#line.next(this.#left, this.#timeoutMs);
    this.#left -= part?.length ?? 0;
    if (part === undefined) this.destroy();
    return part;
  }

  /** Takes in what is left if that is little. */
  async dump({ limit }: { readonly limit: number }): Promise<void> {
    if (this.#left > limit) this.destroy();
    else while ((await this.next()) !== undefined);
  }

  destroy(): void {
    if (this.#isDone) return;
    this.#isDone = true;
    this.#done();
  }
}
