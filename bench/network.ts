// A network between a puller and a registry: a TCP proxy in a process of its own that holds bytes back as one would.
//
// Each direction of a connection takes half of a round trip, each connection has its own rate, and all of them share one.
// There is no loss and no slow start: what is shown is what a limit for each connection means, not how TCP finds it.

import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { fileURLToPath } from "node:url";

export interface Shape {
  readonly roundTripMs: number;
  readonly connectionBytesPerSecond: number;
  readonly bytesPerSecond: number;
}

/** A registry in the same region: 30 ms away, 30 MB/s for a connection, and a gigabit for the node. */
export const regional: Shape = { roundTripMs: 30, connectionBytesPerSecond: 30e6, bytesPerSecond: 125e6 };

export class ShapedNetwork implements AsyncDisposable {
  /** Where the registry is seen behind it (host:port). */
  readonly host: string;
  readonly #child: ChildProcess;

  private constructor(host: string, child: ChildProcess) {
    this.host = host;
    this.#child = child;
  }

  static async before(registry: string, shape: Shape): Promise<ShapedNetwork> {
    const child = fork(fileURLToPath(import.meta.url), [role, registry, JSON.stringify(shape)]);
    const [port] = (await once(child, "message")) as [number];
    return new ShapedNetwork(`127.0.0.1:${port}`, child);
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const exited = once(this.#child, "exit");
    this.#child.kill("SIGKILL");
    await exited;
  }
}

/** Tells the proxy's process from a program that imports it. */
const role = "shaped-network";

/** When bytes that were sent now would have gone through at a rate. */
class Rate {
  readonly #bytesPerMs: number;
  #freeAtMs = 0;

  constructor(bytesPerSecond: number) {
    this.#bytesPerMs = bytesPerSecond / 1000;
  }

  through(bytes: number, now: number): number {
    this.#freeAtMs = Math.max(this.#freeAtMs, now) + bytes / this.#bytesPerMs;
    return this.#freeAtMs;
  }
}

/** What is due within so long goes on in one write: on two cores, what this process costs is taken from the sides. */
const tickMs = 4;

/** Passes on what comes from one side, late; more than what is under way at that rate is not taken in. */
function carry(from: Socket, to: Socket, rates: readonly Rate[], delayMs: number, bytesMax: number): void {
  const queue: { readonly part: Buffer; readonly atMs: number }[] = [];
  let waiting = 0;
  let isTold = false;
  let timer: NodeJS.Timeout | undefined;
  const deliver = (): void => {
    timer = undefined;
    const now = performance.now();
    to.cork();
    for (let [next] = queue; next && next.atMs <= now; [next] = queue) {
      queue.shift();
      waiting -= next.part.length;
      to.write(next.part);
    }
    to.uncork();
    if (waiting < bytesMax / 2) from.resume();
    const [next] = queue;
    if (next) timer = setTimeout(deliver, Math.max(tickMs, next.atMs - now));
    else if (isTold) to.end();
  };
  from.on("data", (part: Buffer) => {
    const now = performance.now();
    const through = Math.max(now, ...rates.map((rate) => rate.through(part.length, now)));
    queue.push({ part, atMs: through + delayMs });
    waiting += part.length;
    if (waiting >= bytesMax) from.pause();
    timer ??= setTimeout(deliver, Math.max(0, (queue[0]?.atMs ?? now) - now));
  });
  from.on("end", () => {
    isTold = true;
    timer ??= setTimeout(deliver, 0);
  });
}

function serve(registry: string, shape: Shape): void {
  const { roundTripMs, connectionBytesPerSecond, bytesPerSecond } = shape;
  const [hostname = "", port = ""] = registry.split(":");
  const shared = new Rate(bytesPerSecond);
  const delayMs = roundTripMs / 2;
  const bytesMax = Math.max(256 * 1024, (2 * connectionBytesPerSecond * roundTripMs) / 1000);
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (near) => {
    const far = connect({ host: hostname, port: Number(port), allowHalfOpen: true, noDelay: true });
    const end = (): void => {
      near.destroy();
      far.destroy();
    };
    near.on("error", end).on("close", end);
    far.on("error", end).on("close", () => setTimeout(end, roundTripMs * 10));
    carry(near, far, [], delayMs, bytesMax);
    carry(far, near, [new Rate(connectionBytesPerSecond), shared], delayMs, bytesMax);
  });
  server.listen(0, "127.0.0.1", () => process.send?.((server.address() as AddressInfo).port));
}

if (process.argv[2] === role) {
  const [, , , registry = "", shape = ""] = process.argv;
  serve(registry, JSON.parse(shape) as Shape);
}
