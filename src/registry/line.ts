// One kept connection that blobs come through: a GET at a time, whose body is received into memory that is used again.
//
// undici copies each part of a body several times, which costs more than everything else that a download does; this does
// not copy at all. It reads nothing but what it fully understands.

import type { OnReadOpts, Socket } from "node:net";
import { errors } from "undici";
import { type Head, isKept, keptSeconds, parseHead } from "./head.ts";
import { Inbox } from "./inbox.ts";

/** undici's limit, within which every registry keeps. */
const headBytesMax = 16 * 1024;
/** Informational answers (1xx) before the one that counts. */
const headsMax = 8;
/** So much may wait for whoever takes the parts before the connection is told to pause. */
const unreadBytesMax = 128 * 1024;

export class Line {
  readonly #socket: Socket;
  readonly #inbox: Inbox;
  /** Of the body, what came together with its head. */
  #rest: Buffer = Buffer.alloc(0);
  /** Set once nothing more can come. */
  #failure: Error | undefined;
  #wake = (): void => {};
  #head: Head | undefined;
  /** Nothing of a body is still to come. */
  #isWhole = true;
  /** Something of the answer to the last request has come. */
  hasAnswered = false;

  private constructor(socket: Socket, inbox: Inbox) {
    this.#socket = socket;
    this.#inbox = inbox;
    socket.once("error", (error) => this.fail(error));
    socket.once("close", () => this.fail(new errors.SocketError("other side closed")));
  }

  static async open(connect: (receive: OnReadOpts) => Promise<Socket>): Promise<Line> {
    const inbox = new Inbox();
    let line: Line | undefined;
    const callback = (bytes: number): boolean => {
      inbox.came(bytes);
      if (line) line.#wake();
      return inbox.unreadBytes < unreadBytesMax;
    };
    const socket = await connect({ buffer: () => inbox.room(), callback });
    line = new Line(socket, inbox);
    return line;
  }

  /** Called once, when it is closed by whomever. */
  ended = (): void => {};

  /** While it is not used it keeps no process alive. */
  rest(): void {
    this.#socket.unref();
  }

  /** Another request may be sent: the last answer came whole, with nothing behind it. */
  get isFree(): boolean {
    const isLeft = this.#rest.length + this.#inbox.unreadBytes > 0;
    return this.#isWhole && !isLeft && this.#failure === undefined && (!this.#head || isKept(this.#head));
  }

  /** How long the server keeps it without a request, if it has told. */
  get keptSeconds(): number | undefined {
    return this.#head && keptSeconds(this.#head);
  }

  /** Closes it; whoever waits for something is thrown this. */
  fail(failure: Error): void {
    if (this.#failure) return;
    this.#failure = failure;
    this.#socket.destroy();
    this.#wake();
    this.ended();
  }

  /** Sends a request and reads the head of its answer; undefined when that is not understood. */
  async ask(request: string): Promise<Head | undefined> {
    this.hasAnswered = false;
    this.#isWhole = false;
    // Nobody answers before they are asked.
    if (this.#inbox.unreadBytes > 0) return undefined;
    this.#socket.ref();
    this.#socket.write(request, "latin1");
    let bytes: Buffer = Buffer.alloc(0);
    for (let heads = 0; heads < headsMax; ) {
      const end = bytes.indexOf("\r\n\r\n");
      if (end > headBytesMax || (end === -1 && bytes.length > headBytesMax)) return undefined;
      if (end === -1) {
        // It would never end.
        if (/(?:^|[^\r])\n/.test(bytes.toString("latin1"))) return undefined;
        // A copy: nearly every head comes in one part, with little of a body behind it.
        bytes = Buffer.concat([bytes, await this.#wait(Number.POSITIVE_INFINITY)]);
        continue;
      }
      heads += 1;
      const head = parseHead(bytes.toString("latin1", 0, end));
      bytes = bytes.subarray(end + 4);
      if (head === undefined || head.status === 101) return undefined;
      if (head.status < 200) continue;
      this.#rest = bytes;
      this.#head = head;
      return head;
    }
    return undefined;
  }

  /**
   * A part of a body of which so many bytes are left, good until the next call; undefined at its end. Throws undici's error
   * when nothing comes for so long.
   */
  async next(leftBytes: number, timeoutMs: number): Promise<Buffer | undefined> {
    if (leftBytes === 0) {
      this.#inbox.giveBack();
      this.#isWhole = true;
      return undefined;
    }
    if (this.#rest.length === 0) return await this.#wait(leftBytes, timeoutMs);
    const part = this.#rest.subarray(0, leftBytes);
    this.#rest = this.#rest.subarray(part.length);
    return part;
  }

  async #wait(bytesMax: number, timeoutMs?: number): Promise<Buffer> {
    for (;;) {
      const part = this.#inbox.take(bytesMax);
      if (part) {
        this.hasAnswered = true;
        return part;
      }
      if (this.#failure) throw this.#failure;
      const late = (): void => this.fail(new errors.BodyTimeoutError());
      const timer = timeoutMs === undefined ? undefined : setTimeout(late, timeoutMs);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        // It may have been told to pause.
        this.#socket.resume();
      });
      clearTimeout(timer);
    }
  }
}
