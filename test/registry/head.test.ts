// HEAD, which is all that a pull of a present image asks: several come over one connection, and a server that sends a
// body behind one's answer, as some do, misleads nobody.

import { createServer, type Server, type Socket } from "node:net";
import { afterEach, beforeEach, expect, test } from "vitest";
import { sha256 } from "../../src/oci/digest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { testRegistry } from "./registries.ts";

const { signal } = new AbortController();
const digest = sha256("the manifest");
const head = [
  "HTTP/1.1 200 OK",
  `content-type: ${mediaTypes.ociManifest}`,
  `docker-content-digest: ${digest}`,
  "content-length: 12",
  "\r\n",
].join("\r\n");

let server: Server;
let connections = 0;
const sockets = new Set<Socket>();
/** What comes behind the head of an answer. */
let behind = "";

beforeEach(async () => {
  connections = 0;
  server = createServer((socket) => {
    let isCounted = false;
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("data", (bytes) => {
      // A greeting of TLS, which is tried first.
      if (!bytes.toString().startsWith("HEAD ")) {
        socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
        return;
      }
      if (!isCounted) connections += 1;
      isCounted = true;
      socket.write(head + behind);
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
});

afterEach(() => {
  for (const socket of sockets) socket.destroy();
  server.close();
});

test.each([
  ["nothing", "", 1],
  ["a body", "the manifest", 3],
  ["another answer", head.replace(digest, sha256("another")), 3],
])("with %s behind its answer", async (_, sent, expected) => {
  behind = sent;
  const registry = testRegistry();
  try {
    const address = server.address();
    const port = typeof address === "object" ? address?.port : undefined;
    for (let count = 0; count < 3; count++) {
      const repository = registry.repository(parseReference(`127.0.0.1:${port}/app:v1`), undefined);
      expect((await repository.resolve(true, signal)).descriptor.digest).toBe(digest);
      // By then the client has read what came behind the answer.
      await new Promise((resolve) => {
        setImmediate(resolve);
      });
    }
    expect(connections).toBe(expected);
  } finally {
    await registry.close();
  }
});
