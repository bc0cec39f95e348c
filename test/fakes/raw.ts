// A server that says anything: bytes on a socket, written by the test for each request that comes in.

import { type AddressInfo, createServer, type Server, type Socket } from "node:net";

/** Is given the head of a request, the socket to answer on, and how many requests there were before. */
export type Script = (head: string, socket: Socket, before: number) => void;

/** The first byte of a TLS record that begins a handshake (RFC 8446, 5.1). */
const tlsHandshake = 22;

export class RawServer implements AsyncDisposable {
  /** Heads of all requests, as they came. */
  readonly heads: string[] = [];
  script: Script;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(script: Script) {
    this.script = script;
    this.#server = createServer((socket) => this.#serve(socket));
  }

  static async start(script: Script): Promise<RawServer> {
    const raw = new RawServer(script);
    await new Promise<void>((resolve) => {
      raw.#server.listen(0, "127.0.0.1", resolve);
    });
    return raw;
  }

  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => {
      this.#server.close(resolve);
    });
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
    socket.on("error", () => {});
    let text = "";
    socket.on("data", (bytes) => {
      // TLS, which is offered to this machine first: told at once that there is none, as real servers do.
      if (text === "" && bytes[0] === tlsHandshake) {
        socket.end(answer("400 Bad Request"));
        return;
      }
      text += bytes.toString("latin1");
      for (let end = text.indexOf("\r\n\r\n"); end >= 0; end = text.indexOf("\r\n\r\n")) {
        const head = text.slice(0, end);
        text = text.slice(end + 4);
        this.heads.push(head);
        this.script(head, socket, this.heads.length - 1);
      }
    });
  }
}

/** A whole answer. */
export function answer(status: string, headers: readonly string[] = [], body = ""): string {
  const lines = [...headers, `content-length: ${Buffer.byteLength(body)}`];
  return `HTTP/1.1 ${status}\r\n${lines.join("\r\n")}\r\n\r\n${body}`;
}

/** Writes the same for ever, as fast as it is taken. */
export function flood(socket: Socket, text: string): void {
  const more = (): void => {
    if (socket.destroyed) return;
    if (socket.write(text)) setImmediate(more);
    else socket.once("drain", more);
  };
  more();
}

/** Writes the same for ever, a little at a time. */
export function drip(socket: Socket, text: string): void {
  const timer = setInterval(() => socket.write(text), 20);
  socket.once("close", () => clearInterval(timer));
}
