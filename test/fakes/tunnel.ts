// An HTTP proxy whose every way leads to one place, and which remembers what it was asked: CONNECT, and requests in
// absolute form.

import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

export class TunnelProxy implements AsyncDisposable {
  /** First lines of what was asked, in order. */
  readonly asked: string[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(target: string) {
    const [hostname = "", port = ""] = target.split(":");
    this.#server = createServer((socket) => {
      socket.once("data", (head: Buffer) => {
        const text = head.toString("latin1");
        this.asked.push(text.split("\r\n", 1)[0] ?? "");
        const onward = connect(Number(port), hostname);
        if (text.startsWith("CONNECT")) socket.write("HTTP/1.1 200 OK\r\n\r\n");
        else onward.write(head);
        socket.pipe(onward).pipe(socket);
        for (const end of [socket, onward]) {
          this.#sockets.add(end);
          end.on("error", () => {});
          end.once("close", () => this.#sockets.delete(end));
        }
      });
    });
  }

  /** Leads everything to this host:port. */
  static async start(target: string): Promise<TunnelProxy> {
    const proxy = new TunnelProxy(target);
    proxy.#server.listen(0, "127.0.0.1");
    await once(proxy.#server, "listening");
    return proxy;
  }

  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, "close");
  }
}
