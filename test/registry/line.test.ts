// Lines to a server: kept and used again, given up where something is unusual, and as exact as undici about every byte.

import { getEventListeners, once } from "node:events";
import { readFileSync } from "node:fs";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { createServer as createTls } from "node:tls";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Body } from "../../src/registry/body.ts";
import { openerTo } from "../../src/registry/connector.ts";
import { type LineAnswer, Lines } from "../../src/registry/lines.ts";
import { Authority, readPair } from "../harness/authority.ts";

type Script = (request: string, socket: Socket, count: number) => void;

let server: Server;
let lines: Lines;
let url: URL;
let connections = 0;
let script: Script;
const never = new AbortController().signal;

function serve(socket: Socket): void {
  connections += 1;
  let count = 0;
  socket.on("error", () => {});
  socket.on("data", (data) => script(data.toString("latin1"), socket, count++));
}

async function listen(scheme: "http" | "https", ca: string[]): Promise<void> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  url = new URL(`${scheme}://127.0.0.1:${port}/v2/a/blobs/sha256:0?ns=b`);
  const host = {
    url,
    isMirror: false,
    canResolve: true,
    headers: {},
    tls: { ca: [], skipVerify: false },
    offerTls: false,
  };
  lines = new Lines(openerTo({ host, tls: { ca, rejectUnauthorized: true }, timeoutMs: 5000 }), 300);
}

beforeEach(async () => {
  connections = 0;
  server = createServer(serve);
  await listen("http", []);
});

afterEach(async () => {
  lines.close();
  server.close();
  await once(server, "close");
});

async function bodyOf(body: Body): Promise<string> {
  let text = "";
  for (let part = await body.next(); part; part = await body.next()) text += part.toString("latin1");
  return text;
}

async function ask(): Promise<LineAnswer> {
  const answer = await lines.get(url, { accept: "*/*" }, never);
  if (answer === undefined) throw new Error("left to somebody else");
  return answer;
}

test("one connection serves one request after another, and both get just what was sent", async () => {
  const requests: string[] = [];
  script = (request, socket, count) => {
    requests.push(request);
    const content = `body ${count}`.repeat(50_000);
    socket.write(
      `HTTP/1.1 206 Partial Content\r\nContent-Length: ${content.length}\r\nA: 1\r\na:2 \r\n\r\n${content}`,
    );
  };
  for (const count of [0, 1, 2]) {
    const answer = await ask();
    expect(answer).toMatchObject({ status: 206, headers: { a: "1, 2" } });
    expect(await bodyOf(answer.body)).toBe(`body ${count}`.repeat(50_000));
  }
  expect(connections).toBe(1);
  const expected = `GET /v2/a/blobs/sha256:0?ns=b HTTP/1.1\r\nhost: ${url.host}\r\naccept: */*\r\n\r\n`;
  expect(requests).toEqual([expected, expected, expected]);
});

test("a head in single bytes, and informational answers before it", async () => {
  const head = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok";
  script = (_request, socket) => {
    socket.setNoDelay(true);
    const write = (at: number): void => {
      if (at < head.length) socket.write(head.charAt(at), () => setImmediate(write, at + 1));
    };
    write(0);
  };
  expect(await bodyOf((await ask()).body)).toBe("ok");
});

test.each([
  ["chunks", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
  ["no length", "HTTP/1.1 200 OK\r\n\r\nok"],
  ["two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"],
  ["an older version", "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"],
  ["a folded field", "HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 2\r\n\r\nok"],
  ["a space before the colon", "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok"],
  ["bare newlines", "HTTP/1.1 200 OK\ncontent-length: 2\n\r\n\r\nok"],
  ["a head without an end", `HTTP/1.1 200 OK\r\na: ${"b".repeat(40_000)}\r\n`],
  ["switched protocols", "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"],
  ["informational answers for ever", "HTTP/1.1 100 Continue\r\n\r\n".repeat(20)],
])("%s: left to undici, for this request and for those that follow", async (_name, answer) => {
  script = (_request, socket) => socket.write(answer);
  expect(await lines.get(url, {}, never)).toBeUndefined();
  expect(await lines.get(url, {}, never)).toBeUndefined();
  expect(connections).toBe(1);
});

test("fields that decide on framing, and values that would be more than one, are not sent", async () => {
  script = () => {};
  for (const headers of [
    { host: "x" },
    { "Transfer-Encoding": "chunked" },
    { a: "b\r\nc: d" },
    { "a b": "c" },
  ]) {
    expect(await lines.get(url, headers as unknown as Record<string, string>, never)).toBeUndefined();
  }
  expect(connections).toBe(0);
});

test("a failure's body is dumped: short ones keep the connection, others of whatever framing close it", async () => {
  script = (_request, socket, count) => {
    if (count === 0) socket.write("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone");
    else socket.write("HTTP/1.1 500 Oops\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n");
  };
  for (const status of [404, 500, 404]) {
    const answer = await ask();
    expect(answer.status).toBe(status);
    await answer.body.dump({ limit: 1000 });
  }
  expect(connections).toBe(2);
});

test("one that the server closed while nobody used it is replaced, and one that breaks off is an error", async () => {
  script = (_request, socket, count) => {
    if (connections === 1 && count === 1) socket.destroy();
    else if (connections === 2 && count === 1) socket.end("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf");
    else socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
  };
  expect(await bodyOf((await ask()).body)).toBe("ok");
  expect(await bodyOf((await ask()).body)).toBe("ok");
  expect(connections).toBe(2);
  const { body } = await ask();
  await expect(bodyOf(body)).rejects.toThrow(/other side closed/);
  expect(connections).toBe(2);
});

test("bytes behind a body, and Connection: close, end the connection with the answer", async () => {
  script = (_request, socket) => {
    if (connections === 1) socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200");
    else socket.write("HTTP/1.1 200 OK\r\nConnection: x, Close\r\ncontent-length: 2\r\n\r\nok");
  };
  for (let count = 1; count <= 3; count++) {
    expect(await bodyOf((await ask()).body)).toBe("ok");
    expect(connections).toBe(count);
  }
});

test("silence in a body is a timeout; an abort ends both waits at once", async () => {
  script = (_request, socket) => socket.write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok");
  const { body } = await ask();
  await expect(bodyOf(body)).rejects.toMatchObject({ code: "UND_ERR_BODY_TIMEOUT" });

  const abort = new AbortController();
  const answer = await lines.get(url, {}, abort.signal);
  setImmediate(() => abort.abort());
  await expect(bodyOf(answer?.body as Body)).rejects.toMatchObject({ code: "UND_ERR_ABORTED" });
  script = () => {};
  const other = new AbortController();
  const waiting = lines.get(url, {}, other.signal);
  setImmediate(() => other.abort());
  await expect(waiting).rejects.toThrow();
});

test("a head of nothing but blanks and one bad byte is judged at once", async () => {
  script = (_request, socket) => {
    socket.write(`HTTP/1.1 200 OK\r\na:${" ".repeat(16_000)}\x01\r\ncontent-length: 2\r\n\r\nok`);
  };
  expect(await lines.get(url, {}, never)).toBeUndefined();
});

test("newlines without returns are not waited on", async () => {
  script = (_request, socket) => socket.write("HTTP/1.1 200 OK\r\na: b\n\n");
  expect(await lines.get(url, {}, never)).toBeUndefined();
});

test("a failure's body that breaks off gives everything back, as does a connection that ends while nobody uses it", async () => {
  script = (_request, socket) => socket.end("HTTP/1.1 307 Elsewhere\r\ncontent-length: 100\r\n\r\nhalf");
  const abort = new AbortController();
  const answer = await lines.get(url, {}, abort.signal);
  await expect(answer?.body.dump({ limit: 1000 })).rejects.toThrow();
  expect(getEventListeners(abort.signal, "abort")).toEqual([]);
  expect(lines.count).toBe(0);

  script = (_request, socket) => socket.end("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
  expect(await bodyOf((await ask()).body)).toBe("ok");
  await expect.poll(() => lines.count).toBe(0);
});

test("what a server says unasked before it closes a kept connection is nobody's answer", async () => {
  let first: Socket | undefined;
  script = (_request, socket) => {
    first ??= socket;
    socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
  };
  expect(await bodyOf((await ask()).body)).toBe("ok");
  expect(lines.count).toBe(1);
  const late = "HTTP/1.1 408 Request Timeout\r\ncontent-length: 4\r\n\r\nlate";
  await new Promise((resolve) => first?.write(late, resolve));
  // It is on this side of the loopback device now, and is read when the event loop has turned.
  for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate);
  expect(await bodyOf((await ask()).body)).toBe("ok");
  expect(connections).toBe(2);
});

test("once closed, nothing is asked for, and what is being connected is closed", async () => {
  script = (_request, socket) => socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
  const abort = new AbortController();
  const connecting = lines.get(url, {}, abort.signal);
  abort.abort();
  await expect(connecting).rejects.toThrow();
  lines.close();
  await expect(ask()).rejects.toMatchObject({ code: "UND_ERR_DESTROYED" });
  await expect.poll(() => lines.count).toBe(0);
});

test.each(["http", "https"] as const)(
  "a slow reader over %s holds the sender back, and loses nothing",
  async (scheme) => {
    const content = Buffer.alloc(30_000_000);
    for (let index = 0; index < content.length; index += 4) content.writeUInt32LE(index, index);
    script = (_request, socket) => {
      socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${content.length}\r\n\r\n`);
      socket.write(content);
    };
    using authority = new Authority();
    const pair = readPair(authority.issue("server"));
    if (scheme === "https") {
      server.close();
      server = createTls(pair, serve);
      await listen(scheme, [readFileSync(authority.cert, "utf8")]);
    }
    const { body } = await ask();
    let at = 0;
    for (let part = await body.next(); part; part = await body.next()) {
      // Others have their turns meanwhile, and so does a connection that has not been told to pause yet.
      for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate);
      expect(content.compare(part, 0, part.length, at, at + part.length)).toBe(0);
      at += part.length;
    }
    expect(at).toBe(content.length);
    expect(connections).toBe(1);
  },
);
