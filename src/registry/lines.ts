// Lines to where blobs come from: kept between requests, and given up where a server frames its answers in a way that they
// do not read. There, and through proxies, blobs come by undici like everything else.

import { errors } from "undici";
import { whileNotAborted } from "../errors.ts";
import type { Body } from "./body.ts";
import type { Open } from "./connector.ts";
import { bodyBytesOf, formatGet, type Head } from "./head.ts";
import { Lately } from "./lately.ts";
import { Line } from "./line.ts";

export interface LineAnswer extends Head {
  readonly body: Body;
}

/** containerd's idle timeout; and what a server's own is cut by, so that it does not close one that is just used. */
const idleMs = { max: 30_000, margin: 1_000 } as const;
/** For how long a server is left to undici. */
const unfitMs = 600_000;

interface Idle {
  readonly origin: string;
  readonly timer: NodeJS.Timeout;
}

export class Lines {
  readonly #open: Open;
  readonly #timeoutMs: number;
  readonly #all = new Set<Line>();
  /** Those of them that nobody uses, the one used last at the end. */
  readonly #idle = new Map<Line, Idle>();
  readonly #unfit = new Lately(unfitMs);
  #isClosed = false;

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
    if (request === undefined || this.#unfit.has(url.origin)) return undefined;
    for (;;) {
      if (this.#isClosed) throw new errors.ClientDestroyedError();
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
          this.#unfit.add(url.origin);
        }
        return answer;
      } catch (error) {
        done();
        // A server may close a connection while nobody uses it, and just when somebody is about to.
        if (kept === undefined || line.hasAnswered || signal.aborted) throw error;
      }
    }
  }

  /** Connections that are open. */
  get count(): number {
    return this.#all.size;
  }

  close(): void {
    this.#isClosed = true;
    for (const line of this.#all) line.fail(new errors.ClientDestroyedError());
  }

  /** The body of a failure is not read, only dumped, however it is framed; then the line is closed. */
  #answer(line: Line, head: Head, done: () => void): LineAnswer | undefined {
    const sizeBytes = bodyBytesOf(head);
    const isRead = head.status === 200 || head.status === 206;
    if (sizeBytes === undefined && isRead) return undefined;
    const body = new LineBody(line, sizeBytes ?? Number.POSITIVE_INFINITY, this.#timeoutMs, done);
    return { ...head, body };
  }

  async #connect(url: URL, signal: AbortSignal): Promise<Line> {
    const { protocol, hostname, port, host } = url;
    const opening = Line.open((receive) => this.#open({ protocol, hostname, port, host }, receive));
    const added = opening.then((line) => {
      this.#all.add(line);
      line.ended = () => this.#forget(line);
      return line;
    });
    try {
      return await whileNotAborted(added, signal);
    } catch (error) {
      // Who waited for it is gone: it is the next one's.
      added.then(
        (line) => this.#putBack(url, line),
        () => {},
      );
      throw error;
    }
  }

  #take({ origin }: URL): Line | undefined {
    const own = [...this.#idle].flatMap(([line, idle]) => (idle.origin === origin ? [line] : []));
    for (let line = own.pop(); line; line = own.pop()) {
      clearTimeout(this.#idle.get(line)?.timer);
      this.#idle.delete(line);
      if (line.isFree) return line;
      // It has said something unasked, as a server may that is about to close it.
      this.#drop(line);
    }
    return undefined;
  }

  #putBack({ origin }: URL, line: Line): void {
    const kept = line.keptSeconds;
    const keepMs = kept === undefined ? idleMs.max : Math.min(idleMs.max, kept * 1000 - idleMs.margin);
    if (!line.isFree || keepMs <= 0 || this.#isClosed) {
      this.#drop(line);
      return;
    }
    line.rest();
    this.#idle.set(line, { origin, timer: setTimeout(() => this.#drop(line), keepMs).unref() });
  }

  #drop(line: Line): void {
    line.fail(new errors.SocketError("closed"));
    this.#forget(line);
  }

  /** It is closed. */
  #forget(line: Line): void {
    this.#all.delete(line);
    clearTimeout(this.#idle.get(line)?.timer);
    this.#idle.delete(line);
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
    if (this.#isDone) return undefined;
    try {
      const part = await this.#line.next(this.#left, this.#timeoutMs);
      this.#left -= part?.length ?? 0;
      if (part === undefined) this.destroy();
      return part;
    } catch (error) {
      this.destroy();
      throw error;
    }
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
