// A proxy in front of a real containerd that lets a test see every call, hold it, or answer it with a status of its own.
//
// Calls are bytes both ways; streams keep their messages and order.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  Client,
  credentials,
  type Metadata,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServiceError,
  type StatusObject,
  status,
} from "@grpc/grpc-js";
import * as containerd from "../../src/containerd/methods.ts";
import { methodPaths } from "../../src/cri/methods.ts";

const identity = (bytes: Buffer): Buffer => bytes;
const unlimited = { "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 };

/** What happens to a call: a status instead of being passed on, something to wait for before, a status for its answer. */
export type Fault =
  | { readonly code: number; readonly details: string }
  | { readonly until: Promise<unknown> }
  | { readonly lost: number };

export class ContainerdProxy implements AsyncDisposable {
  readonly address: string;
  /** Asked for each call, by the method's path. */
  fault: (path: string) => Fault | undefined = () => undefined;
  /** Paths of all calls so far, in order. */
  readonly calls: string[] = [];
  /** How many of them have been passed on. */
  passed = 0;
  readonly #folder: string;
  readonly #client: Client;
  #server: Server | undefined;

  private constructor(folder: string, target: string) {
    this.#folder = folder;
    this.address = join(folder, "proxy.sock");
    this.#client = new Client(`unix:${target}`, credentials.createInsecure(), unlimited);
  }

  static async start(target: string): Promise<ContainerdProxy> {
    const proxy = new ContainerdProxy(await mkdtemp(join(tmpdir(), "proxy-")), target);
    await proxy.listen();
    return proxy;
  }

  async listen(): Promise<void> {
    const server = new Server(unlimited);
    for (const path of allPaths()) {
      server.register(
        path,
        (call: ServerDuplexStream<Buffer, Buffer>) => void this.#pass(path, call),
        identity,
        identity,
        "bidi",
      );
    }
    this.#server = server;
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`unix:${this.address}`, ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      );
    });
  }

  /** Cuts every connection, as the end of containerd does. */
  cut(): void {
    this.#server?.forceShutdown();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    this.#client.close();
    await rm(this.#folder, { recursive: true, force: true });
  }

  async #pass(path: string, call: ServerDuplexStream<Buffer, Buffer>): Promise<void> {
    this.calls.push(path);
    const fault = this.fault(path);
    if (fault && "code" in fault) {
      call.emit("error", fault);
      return;
    }
    // A call that is ended meanwhile has nobody to tell.
    call.on("error", () => {});
    if (fault && "until" in fault) await fault.until;
    const isLost = fault !== undefined && "lost" in fault;
    const metadata: Metadata = call.metadata;
    const onward = this.#client.makeBidiStreamRequest(path, identity, identity, metadata, {
      deadline: call.getDeadline(),
    });
    call.on("data", (bytes: Buffer) => onward.write(bytes, () => (this.passed += 1)));
    call.on("end", () => onward.end());
    call.on("cancelled", () => onward.cancel());
    onward.on("data", (bytes: Buffer) => {
      if (isLost) call.emit("error", { code: fault.lost, details: "the answer was lost" });
      else call.write(bytes);
    });
    onward.on("error", (error: ServiceError) => call.emit("error", error));
    onward.on("status", ({ code }: StatusObject) => {
      if (code === status.OK && !isLost) call.end();
    });
  }
}

function allPaths(): string[] {
  const ours = Object.values(containerd)
    .flatMap((service) => Object.values(service))
    .filter((method): method is { path: string } => typeof method === "object" && "path" in method)
    .map(({ path }) => path);
  return [...new Set([...ours, ...methodPaths()])];
}
