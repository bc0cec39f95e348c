// One connection: how long its parts may take, in virtual time, and what leads from TLS to plain HTTP.

import { once } from "node:events";
import { createServer as createHttp, type Server as HttpServer } from "node:http";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { createServer as createTls } from "node:tls";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type ConnectorOptions, connectorOf, openerTo } from "../../src/registry/connector.ts";
import type { Host } from "../../src/registry/hosts.ts";
import { BlackHole } from "../fakes/blackhole.ts";
import { Authority, readPair } from "../harness/authority.ts";

const anHour = 3_600_000;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
});

afterEach(() => {
  vi.useRealTimers();
});

async function listen(server: Server | HttpServer): Promise<string> {
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

interface Outcome {
  readonly error?: unknown;
  readonly socket?: Socket;
}

type Settings = Partial<Host> & { readonly timeoutMs?: number; readonly ca?: readonly string[] };

/** Connects to a URL as the host that it is, and to others as one that it redirects to. */
function connector(url: string, { timeoutMs = anHour, ca = [], ...settings }: Settings) {
  const host: Host = {
    url: new URL(url),
    isMirror: false,
    canResolve: true,
    headers: {},
    tls: { ca: [], skipVerify: false },
    offerTls: false,
    ...settings,
  };
  const tls: ConnectorOptions["tls"] = { ca: [...ca], rejectUnauthorized: !host.tls.skipVerify };
  const open = connectorOf(openerTo({ host, tls, timeoutMs }));
  return async (to = url): Promise<Outcome> => {
    const target = new URL(to);
    const { hostname, protocol, port } = target;
    return await new Promise((resolve) => {
      open({ hostname, protocol, port, host: target.host }, (error, socket) => {
        resolve(socket ? { socket } : { error });
      });
    });
  };
}

/** Whether it is settled once everything that is ready has been dealt with. */
async function isSettled(outcome: Promise<Outcome>): Promise<boolean> {
  const pending = {};
  const turn = new Promise((resolve) => {
    setImmediate(resolve);
  });
  return (await Promise.race([outcome, turn.then(() => pending)])) !== pending;
}

describe("patience", () => {
  test("dial_timeout is the time for TCP, to the millisecond", async () => {
    await using hole = await BlackHole.start();
    const outcome = connector(`http://${hole.host}`, { dialTimeoutMs: 200 })();
    await vi.advanceTimersByTimeAsync(199);
    expect(await isSettled(outcome)).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect((await outcome).error).toMatchObject({ code: "UND_ERR_CONNECT_TIMEOUT" });
  });

  test.each([
    ["with a dial_timeout, TLS has the usual time to itself", { dialTimeoutMs: 200 }, 5200],
    ["without, TCP and TLS share it", {}, 5000],
  ])("%s", async (_name, settings, wholeMs) => {
    const silent = createServer();
    const host = await listen(silent);
    const accepted = once(silent, "connection") as Promise<[Socket]>;
    const outcome = connector(`https://${host}`, { ...settings, timeoutMs: 5000 })();
    const [socket] = await accepted;
    await once(socket, "data");
    await vi.advanceTimersByTimeAsync(wholeMs - 1);
    expect(await isSettled(outcome)).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect((await outcome).error).toMatchObject({ code: "UND_ERR_CONNECT_TIMEOUT" });
    socket.destroy();
    silent.close();
  });
});

describe("a host that is offered TLS though its URL says http", () => {
  /** In front of a server: how many connections began with TLS (its records begin with 22), and how many did not. */
  async function counting(behind: string) {
    const seen = { tls: 0, plain: 0 };
    const sockets = new Set<Socket>();
    const front = createServer((socket) => {
      const [host = "", port = ""] = behind.split(":");
      const onward = connect(Number(port), host);
      for (const end of [socket, onward]) sockets.add(end.on("error", () => {}));
      socket.once("data", (bytes: Buffer) => {
        seen[bytes[0] === 22 ? "tls" : "plain"] += 1;
        onward.write(bytes);
        socket.pipe(onward).pipe(socket);
      });
    });
    const host = await listen(front);
    const close = (): void => {
      for (const socket of sockets) socket.destroy();
      front.close();
    };
    return { host, seen, close };
  }

  test("and answers in plain HTTP is not offered it again for a minute", async () => {
    const plain = createHttp((_request, response) => response.end());
    const front = await counting(await listen(plain));
    const open = connector(`http://${front.host}`, { offerTls: true });
    for (const expected of [
      { tls: 1, plain: 1 },
      { tls: 1, plain: 2 },
    ]) {
      const { socket } = await open();
      socket?.end("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
      await new Promise((resolve) => socket?.once("close", resolve).resume());
      expect(front.seen).toEqual(expected);
    }
    await vi.advanceTimersByTimeAsync(60_001);
    (await open()).socket?.destroy();
    expect(front.seen.tls).toBe(2);
    front.close();
    plain.close();
  });

  test("and speaks it is spoken to in TLS alone; one that is not trusted not at all", async () => {
    using authority = new Authority();
    const { cert, key } = readPair(authority.issue("server"));
    const server = createTls({ cert, key }, (socket) => socket.end());
    const front = await counting(await listen(server));
    const url = `http://${front.host}`;
    const trusting = connector(url, { offerTls: true, ca: [String(readPair(authority.pair).cert)] });
    const { socket } = await trusting();
    expect(socket).toHaveProperty("encrypted", true);
    socket?.destroy();
    const other = await connector(url, { offerTls: true })();
    expect(other.error).toMatchObject({ code: expect.stringMatching(/CERT|SIGNATURE|ISSUER/) });
    expect(front.seen).toEqual({ tls: 2, plain: 0 });
    front.close();
    server.close();
  });

  test("and does not answer the greeting is spoken to in plain HTTP when its time is over", async () => {
    const silent = createServer();
    const host = await listen(silent);
    const accepted = once(silent, "connection") as Promise<[Socket]>;
    const outcome = connector(`http://${host}`, { offerTls: true, timeoutMs: 5000 })();
    const [greeted] = await accepted;
    expect(((await once(greeted, "data")) as [Buffer])[0][0]).toBe(22);
    const again = once(silent, "connection") as Promise<[Socket]>;
    await vi.advanceTimersByTimeAsync(5000);
    const { socket } = await outcome;
    expect(socket).not.toHaveProperty("encrypted");
    for (const one of [socket, greeted, ...(await again)]) one?.destroy();
    silent.close();
  });

  test("is that only for itself, not for where it redirects", async () => {
    const plain = createHttp((_request, response) => response.end());
    const front = await counting(await listen(plain));
    const { socket } = await connector("http://reg.invalid", { offerTls: true })(`http://${front.host}`);
    socket?.end("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    await new Promise((resolve) => socket?.once("close", resolve).resume());
    expect(front.seen).toEqual({ tls: 0, plain: 1 });
    front.close();
    plain.close();
  });
});
