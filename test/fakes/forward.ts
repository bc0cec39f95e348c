// An HTTP proxy as companies have it: it fetches what is asked for by whole URLs and tunnels what is asked for by
// CONNECT, and writes down how it was asked. Whatever is named, the test says where it leads.

import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";

export interface Forwarded {
  /** CONNECT for tunnels. */
  readonly method: string;
  /** host:port of a tunnel, else a URL. */
  readonly target: string;
  readonly login: string | undefined;
  readonly agent: string | undefined;
}

export class ForwardProxy implements AsyncDisposable {
  readonly asked: Forwarded[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  /** host:port of what really answers, by the host and port that are named. */
  readonly #leads: ReadonlyMap<string, string>;

  private constructor(server: Server, leads: ReadonlyMap<string, string>) {
    this.#server = server;
    this.#leads = leads;
  }

  static async start(leads: ReadonlyMap<string, string>): Promise<ForwardProxy> {
    const server = createServer();
    const proxy = new ForwardProxy(server, leads);
    server.on("request", (asked, response) => proxy.#fetch(asked, response));
    server.on("connect", (asked: IncomingMessage, socket: Socket, head: Buffer) => {
      proxy.#tunnel(asked, socket, head);
    });
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    return proxy;
  }

  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  #fetch(asked: IncomingMessage, response: ServerResponse): void {
    this.#log(asked);
    const url = new URL(asked.url ?? "");
    const [host = "", port = ""] = (this.#leads.get(`${url.hostname}:${url.port || 80}`) ?? "").split(":");
    const { "proxy-authorization": _login, ...headers } = asked.headers;
    const path = url.pathname + url.search;
    const onward = request({ host, port, path, method: asked.method, headers, agent: false }, (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
    });
    onward.on("error", () => response.destroy());
    asked.pipe(onward);
  }

  #tunnel(asked: IncomingMessage, socket: Socket, head: Buffer): void {
    this.#log(asked);
    const [host = "", port = ""] = (this.#leads.get(asked.url ?? "") ?? "").split(":");
    const onward = connect(Number(port), host, () => {
      socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
      onward.write(head);
      socket.pipe(onward).pipe(socket);
    });
    for (const end of [socket, onward]) {
      this.#sockets.add(end);
      end.on("error", () => {}).once("close", () => this.#sockets.delete(end));
    }
  }

  #log({ method = "", url = "", headers }: IncomingMessage): void {
    const { "proxy-authorization": login, "user-agent": agent } = headers;
    this.asked.push({ method, target: url, login, agent });
  }
}
