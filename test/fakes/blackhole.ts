// An address at which no connection is ever made: a server that is stopped, with its queue of connections full, so that
// the kernel drops every further greeting.

import { connect, type Socket } from "node:net";
import { ServerProcess } from "../harness/process.ts";

const script = `
const server = require("node:net").createServer();
server.listen({ port: 0, host: "127.0.0.1", backlog: 1 }, () => {
  process.stdout.write("port " + server.address().port + "\\n", () => process.kill(process.pid, "SIGSTOP"));
});`;
/** Linux queues one connection more than it is told. */
const queued = 2;

export class BlackHole implements AsyncDisposable {
  readonly host: string;
  readonly #process: ServerProcess;
  readonly #fillers: readonly Socket[];

  private constructor(host: string, process: ServerProcess, fillers: readonly Socket[]) {
    this.host = host;
    this.#process = process;
    this.#fillers = fillers;
  }

  static async start(): Promise<BlackHole> {
    const server = new ServerProcess(process.execPath, ["-e", script]);
    const [, port = ""] = await server.untilPrinted(/port (\d+)/);
    const fillers: Socket[] = [];
    for (let count = 0; count < queued; count++) {
      const filler = connect(Number(port), "127.0.0.1");
      filler.on("error", () => {});
      fillers.push(filler);
      await new Promise((resolve) => {
        filler.once("connect", resolve);
      });
    }
    return new BlackHole(`127.0.0.1:${port}`, server, fillers);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const filler of this.#fillers) filler.destroy();
    await this.#process.stop("SIGKILL");
  }
}
