// The CRI service: PullImage goes to its handler, every other method of both services straight through to containerd.
//
// Connections come from the listener and are served over HTTP/2 here. Bytes pass from handler to handler as they are;
// this file never decodes a message, and never answers a call of its own accord.

import { once } from "node:events";
import type { Socket } from "node:net";
import {
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
} from "@grpc/grpc-js";
import { type Forward, relay } from "./forward.ts";
import type { PullHandler } from "./images.ts";
import { inherit, type Listener, listen } from "./listener.ts";
import { methodPaths, pullPaths } from "./methods.ts";

export interface CriServerOptions {
  /** Path of the socket to listen on. */
  readonly socket: string;
  /** A descriptor that listens on that path already; absent: the socket is made. */
  readonly inherited?: number | undefined;
  /** Largest request that is accepted, in bytes. */
  readonly messageBytesMax: number;
  readonly forward: Forward;
  readonly pull: PullHandler;
}

export interface CriServer {
  /** Settles when the socket answers. Throws `invalid` with what to do when it cannot be had. */
  listen(): Promise<void>;
  /** The listening descriptor, for a successor. */
  readonly fd: number;
  /** Leaves new connections to a successor that listens as well, and asks clients to go there (GOAWAY). */
  yield(): void;
  /**
   * Takes no new call, lets running ones end for this long, then cancels them. The socket's file is gone afterwards,
   * unless it was inherited or yielded.
   */
  drain(timeoutMs: number): Promise<void>;
}

const identity = (bytes: Buffer): Buffer => bytes;

export function createCriServer(options: CriServerOptions): CriServer {
  const server = new Server({
    "grpc.max_receive_message_length": options.messageBytesMax,
    "grpc.max_send_message_length": -1,
    "grpc.enable_channelz": 0,
  });
  for (const path of methodPaths()) {
    if (pullPaths.has(path)) {
      server.register(path, unary(options.pull, path), identity, identity, "unary");
    } else {
      const handler = (call: ServerWritableStream<Buffer, Buffer>): void => relay(call, options.forward);
      server.register(path, handler, identity, identity, "serverStream");
    }
  }
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const connections = new Set<Socket>();
  const accept = (connection: Socket): void => {
    connections.add(connection);
    connection.once("close", () => connections.delete(connection));
    injector.injectConnection(connection);
  };
  let listener: Listener | undefined;
  let over: Promise<void> | undefined;
  /** Asked once only: a second time grpc-js forgets the connections that it still waits for. */
  const end = (): Promise<void> => {
    over ??= new Promise((resolve) => {
      server.tryShutdown(() => resolve());
    });
    return over;
  };
  return {
    listen: async () => {
      const { socket, inherited } = options;
      listener = inherited === undefined ? await listen(socket, accept) : await inherit(inherited, accept);
    },
    get fd() {
      return listener?.fd ?? -1;
    },
    yield: () => {
      listener?.leave();
      listener = undefined;
      void end();
    },
    drain: async (timeoutMs) => {
      listener?.close();
      let force: NodeJS.Timeout | undefined;
      const forced = new Promise<void>((resolve) => {
        force = setTimeout(() => {
          server.forceShutdown();
          resolve();
        }, timeoutMs);
      });
      await Promise.race([end(), forced]);
      clearTimeout(force);
      // Somebody who reads nothing does not hear of the end, and their connection would keep this process.
      await destroyAll(connections);
    },
  };
}

async function destroyAll(connections: ReadonlySet<Socket>): Promise<void> {
  const closed = Array.from(connections, async (connection) => {
    const over = connection.closed ? undefined : once(connection, "close");
    connection.destroy();
    await over;
  });
  await Promise.all(closed);
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
