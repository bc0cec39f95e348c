// A client that reads nothing any more (a kubelet that hangs, or that a debugger holds) does not hear of the end, and its
// connection kept the daemon, until systemd killed that after half a minute.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { createCriServer } from "../../src/cri/server.ts";

test("draining ends although a client reads nothing", async () => {
  const unused = async (): Promise<never> => await Promise.reject(new Error("nothing is asked here"));
  const socket = join(tmpdir(), "frozen.sock");
  const server = createCriServer({
    socket,
    messageBytesMax: 1000,
    forward: () => unused() as never,
    pull: unused,
  });
  await server.listen();
  // The server's ends of connections carry its path, the clients' do not.
  const open = (): number => readFileSync("/proc/net/unix", "utf8").split(socket).length - 1;
  const client = connect(socket);
  await once(client, "connect");
  // The connection preface of HTTP/2 and empty SETTINGS (RFC 9113, 3.4), which the server answers.
  client.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u0004\0\0\0\0\0");
  await once(client, "readable");
  expect(open()).toBe(2);
  await server.drain(100);
  expect(open()).toBe(0);
  client.destroy();
  await once(client, "close");
});
