// The API of a cluster, as far as a pod asks for its own DaemonSet: over TLS, for whoever has the account's token.

import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import { Authority, readPair } from "../harness/authority.ts";

export type Answer = "there" | "deleting" | "gone" | "forbidden" | "unauthorized" | "broken" | "strange";

const bodies: Readonly<Record<Answer, { readonly status: number; readonly body: unknown }>> = {
  there: { status: 200, body: { kind: "PartialObjectMetadata", metadata: { uid: "1-2-3" } } },
  deleting: { status: 200, body: { metadata: { uid: "1-2-3", deletionTimestamp: "2026-01-01T00:00:00Z" } } },
  gone: { status: 404, body: { kind: "Status", reason: "NotFound" } },
  forbidden: { status: 403, body: { kind: "Status", reason: "Forbidden" } },
  unauthorized: { status: 401, body: { kind: "Status", reason: "Unauthorized" } },
  broken: { status: 503, body: {} },
  strange: { status: 200, body: [] },
};

export class FakeCluster implements AsyncDisposable {
  answer: Answer = "there";
  /** What it says of namespaces. */
  namespace: Answer = "there";
  /** Method, path and Accept of each question. */
  readonly asked: string[] = [];
  readonly token = "the account's token";
  readonly port: number;
  readonly #server: Server;
  readonly #authority: Authority;

  private constructor(server: Server, authority: Authority) {
    this.#server = server;
    this.#authority = authority;
    this.port = (server.address() as AddressInfo).port;
    server.on("request", (request, response) => {
      this.asked.push(`${request.method} ${request.url} ${request.headers.accept}`);
      const isKnown = request.headers.authorization === `Bearer ${this.token}`;
      const answer = request.url?.startsWith("/api/v1/namespaces/") ? this.namespace : this.answer;
      const { status, body } = bodies[isKnown ? answer : "unauthorized"];
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
    });
  }

  static async start(): Promise<FakeCluster> {
    const authority = new Authority();
    const server = createServer(readPair(authority.issue("cluster")));
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    return new FakeCluster(server, authority);
  }

  /** PEM file that a pod trusts. */
  get authority(): string {
    return this.#authority.cert;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => {
      this.#server.close(resolve);
    });
    this.#authority[Symbol.dispose]();
  }
}
