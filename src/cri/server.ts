// The CRI socket: PullImage goes to its handler, every other method of both services straight through to containerd.
//
// The socket belongs to root alone. It is taken over from a dead process, never from a living one. Bytes pass from
// handler to handler as they are; this file never decodes a message.

import { chmod, lstat, mkdir, rm } from "node:fs/promises";
import { connect } from "node:net";
import { dirname } from "node:path";
import {
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
} from "@grpc/grpc-js";
import { PullError } from "../errors.ts";
import { type Forward, relay } from "./forward.ts";
import type { PullHandler } from "./images.ts";
import { methodPaths, pullPaths } from "./methods.ts";

export interface CriServerOptions {
  /** Path of the socket to listen on. */
  readonly socket: string;
  /** Largest request that is accepted, in bytes. */
  readonly messageBytesMax: number;
  readonly forward: Forward;
  readonly pull: PullHandler;
}

export interface CriServer {
  /** Settles when the socket answers. Throws `invalid` with what to do when it cannot be had. */
  listen(): Promise<void>;
  /** Stops listening, lets running calls end for this long, then cancels them; the socket's file is gone afterwards. */
  drain(timeoutMs: number): Promise<void>;
}

const identity = (bytes: Buffer): Buffer => bytes;

export function createCriServer(options: CriServerOptions): CriServer {
  const server = new Server({
    "grpc.max_receive_message_length": options.messageBytesMax,
    "grpc.max_send_message_length": -1,
  });
  for (const path of methodPaths()) {
    if (pullPaths.has(path)) {
      server.register(path, unary(options.pull, path), identity, identity, "unary");
    } else {
      const handler = (call: ServerWritableStream<Buffer, Buffer>): void => relay(call, options.forward);
      server.register(path, handler, identity, identity, "serverStream");
    }
  }
  return {
    listen: async () => {
      await claim(options.socket);
      await bind(server, options.socket);
      await chmod(options.socket, 0o600);
    },
    drain: async (timeoutMs) => {
      await drain(server, timeoutMs);
      await rm(options.socket, { force: true });
    },
  };
}

function unary(pull: PullHandler, path: string) {
  return (call: ServerUnaryCall<Buffer, Buffer>, callback: sendUnaryData<Buffer>): void => {
    const abort = new AbortController();
    call.on("cancelled", () => abort.abort());
    const incoming = { path, request: call.request, metadata: call.metadata, deadline: call.getDeadline() };
    pull(incoming, abort.signal).then(
      ({ bytes, header, trailer }) => {
        if (header) call.sendMetadata(header);
        callback(null, bytes, trailer);
      },
      (error: unknown) => callback(error as Error),
    );
  };
}

/** Makes way for our socket: its folder exists, and a socket that a dead process left is gone. */
async function claim(socket: string): Promise<void> {
  await mkdir(dirname(socket), { recursive: true, mode: 0o755 });
  const present = await lstat(socket).catch(() => undefined);
  if (present === undefined) return;
  // Connecting to any file is refused, so a path that is set wrong must not cost somebody a file.
  if (!present.isSocket()) {
    throw new PullError("invalid", `${socket} exists and is no socket: set cri.listen to another path`);
  }
  const outcome = await new Promise<string>((resolve) => {
    const probe = connect(socket);
    probe.once("connect", () => {
      probe.destroy();
      resolve("alive");
    });
    probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
  });
  if (outcome === "alive") {
    throw new PullError(
      "invalid",
      `another process listens on ${socket}: stop it, or set cri.listen to another path`,
    );
  }
  if (outcome === "ECONNREFUSED") await rm(socket, { force: true });
}

async function bind(server: Server, socket: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) => {
      if (error)
        reject(new PullError("invalid", `cannot listen on ${socket}: ${error.message}`, { cause: error }));
      else resolve();
    });
  });
}

async function drain(server: Server, timeoutMs: number): Promise<void> {
  await new Promise<void>((resolve) => {
    const force = setTimeout(() => {
      server.forceShutdown();
      resolve();
    }, timeoutMs);
    server.tryShutdown(() => {
      clearTimeout(force);
      resolve();
    });
  });
}
