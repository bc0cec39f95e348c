// The way to a registry: names, connections, proxies and certificates, on real sockets.

import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer as createTls, type Server as TlsServer } from "node:https";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { tryWay, type Way } from "../../src/doctor/way.ts";
import { TunnelProxy } from "../fakes/tunnel.ts";
import { certificate } from "../harness/certificates.ts";
import { all, lines } from "./node.ts";

const never = new AbortController().signal;
let folder = "";
const servers: (Server | TlsServer)[] = [];
const sockets = new Set<Socket>();

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "way-"));
  certificate(folder, "authority");
  certificate(folder, "good", { by: "authority" });
  certificate(folder, "alone");
  certificate(folder, "other", { by: "authority", subjectAltName: "DNS:other.example.com" });
  certificate(folder, "old", { by: "authority", dates: ["20200101000000Z", "20210101000000Z"] });
  certificate(folder, "early", { by: "authority", dates: ["20900101000000Z", "20910101000000Z"] });
});

afterAll(() => {
  rmSync(folder, { recursive: true });
});

afterEach(async () => {
  for (const socket of sockets) socket.destroy();
  for (const server of servers.splice(0)) {
    server.close();
    await once(server, "close");
  }
});

const pem = (file: string): string => readFileSync(join(folder, file), "utf8");

/** Its host:port. */
async function listen(server: Server | TlsServer): Promise<string> {
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.once("close", () => sockets.delete(socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  servers.push(server);
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function tls(name: string): Promise<string> {
  return await listen(createTls({ cert: pem(`${name}.crt`), key: pem(`${name}.key`) }));
}

const way = (url: string, more: Partial<Way> = {}): Way => ({
  url: new URL(url),
  proxy: undefined,
  tls: { ca: [pem("authority.crt")], rejectUnauthorized: true },
  stepMs: 5000,
  slowMs: { name: Infinity, connection: Infinity, tls: Infinity },
  now: () => Date.now() - 30 * 86_400_000,
  ...more,
});

/** Findings, without how long each step took and on which port. */
async function found(one: Way, signal = never): Promise<string[]> {
  return lines(await all(tryWay(one, signal))).map((line) =>
    line
      .replace(/ \(\d+ ms\)/, "")
      .replaceAll(/127\.0\.0\.1:\d+/g, "HOST")
      .replace(/20\d\d-\d\d-\d\d/, "DAY"),
  );
}

const tcp = "ok TCP: HOST, connected to HOST";

test("plain http on an address: a connection, and nothing else", async () => {
  const host = await listen(createServer());
  expect(await found(way(`http://${host}/v2`))).toEqual([tcp]);
});

test("a name is looked up first", async () => {
  const host = await listen(createServer());
  const [dns, connection] = await found(way(`http://localhost:${host.split(":")[1]}/v2`));
  expect(dns).toMatch(/^ok DNS: localhost is .*127\.0\.0\.1/);
  expect(connection).toMatch(/^ok TCP: localhost:\d+, connected to /);
  const nowhere = await found(way("https://registry.invalid/v2"));
  expect(nowhere).toHaveLength(1);
  expect(nowhere[0]).toMatch(
    /^broken DNS: registry\.invalid: .* -> look at the name, and at the name servers in \/etc\/resolv\.conf$/,
  );
});

test("each step that takes its time", async () => {
  const { port } = new URL(`https://${await tls("other")}`);
  const slowMs = { name: -1, connection: -1, tls: -1 };
  const trusting = { ca: [], rejectUnauthorized: false };
  const text = await found(way(`https://localhost:${port}/v2`, { slowMs, tls: trusting }));
  expect(text[0]).toMatch(/^slow DNS: localhost is .* -> look at the name servers/);
  expect(text[1]).toMatch(
    /^slow TCP: localhost:\d+, .* -> look for a registry or mirror nearer to this node$/,
  );
  expect(text[3]).toMatch(/^slow TLS: the handshake took \d+ ms -> look for a mirror nearer to this node$/);
});

test("nobody there", async () => {
  expect(await found(way("http://127.0.0.1:1/v2"))).toEqual([
    "broken TCP: HOST: nobody listens there -> start it, or look at its port",
  ]);
});

describe("certificates", () => {
  const by = (name: string): string => `TLSv1.3, certificate of ${name} by authority, valid until DAY`;

  test("of a known authority", async () => {
    expect(await found(way(`https://${await tls("good")}/v2`))).toEqual([tcp, `ok TLS: ${by("good")}`]);
  });

  test("that end soon", async () => {
    const soon = way(`https://${await tls("good")}/v2`, { now: Date.now });
    expect((await found(soon))[1]).toMatch(/^slow TLS: .*valid until DAY, in 1 days -> have it renewed$/);
  });

  test.each([
    [
      "alone",
      "TLSv1.3, certificate of alone by alone, valid until DAY: it is signed by itself -> name its authority with ca in hosts.toml, or install it in the system",
    ],
    [
      "old",
      `${by("old")}: it has expired -> have the registry's certificate renewed, or look at this node's clock`,
    ],
    ["early", `${by("early")}: it is not valid yet -> look at this node's clock`],
    ["other", `${by("other")}: it is another host's -> ask it by a name that is in its certificate`],
  ])("%s", async (name, expected) => {
    expect((await found(way(`https://${await tls(name)}/v2`)))[1]).toBe(`broken TLS: ${expected}`);
  });

  test("of an authority that is not known", async () => {
    const unknown = way(`https://${await tls("good")}/v2`, {
      tls: { ca: [pem("alone.crt")], rejectUnauthorized: true },
    });
    expect((await found(unknown))[1]).toMatch(
      /^broken TLS: .*: its authority is not known here -> name its authority/,
    );
  });

  test("that are not verified", async () => {
    const skipped = way(`https://${await tls("old")}/v2`, { tls: { ca: [], rejectUnauthorized: false } });
    expect((await found(skipped))[1]).toBe(
      `slow TLS: ${by("old")}, not verified (skip_verify) -> name its authority with ca in hosts.toml`,
    );
  });

  test("none: it speaks plain http", async () => {
    const host = await listen(createServer((socket) => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n")));
    const [, line] = await found(way(`https://${host}/v2`));
    expect(line).toMatch(/^broken TLS: the handshake failed: .* -> see whether it speaks TLS at all/);
  });

  test("none within the time, and none once it is given up", async () => {
    const host = await listen(createServer());
    const silent = way(`https://${host}/v2`, { stepMs: 2000 });
    expect((await found(silent))[1]).toMatch(
      /^broken TLS: the handshake failed: no answer within 2000 ms -> /,
    );
    const stop = new AbortController();
    const running = found(way(`https://${host}/v2`), stop.signal);
    stop.abort();
    expect((await running).join("\n")).toContain("given up");
  });
});

describe("proxies", () => {
  test("a tunnel, with the proxy's user and never with its name", async () => {
    await using proxy = await TunnelProxy.start(await tls("good"));
    const through = way("https://127.0.0.1:9/v2", {
      proxy: new URL(`http://user:secret-word@${proxy.host}`),
    });
    expect(await found(through)).toEqual([
      "ok TCP: proxy http://HOST (with credentials), connected to HOST",
      "ok proxy: http://HOST (with credentials) leads to 127.0.0.1",
      "ok TLS: TLSv1.3, certificate of good by authority, valid until DAY",
    ]);
    expect(proxy.asked).toContain("CONNECT 127.0.0.1:9 HTTP/1.1");
  });

  test("one that refuses", async () => {
    const host = await listen(
      createServer((socket) => socket.once("data", () => socket.end("HTTP/1.1 403 No\r\n\r\n"))),
    );
    expect((await found(way("https://reg.example.com/v2", { proxy: new URL(`http://${host}`) })))[1]).toBe(
      "broken proxy: http://HOST: answers 403 to CONNECT -> allow this registry there, or name it in NO_PROXY",
    );
  });

  test("one that is not there, and one of another kind", async () => {
    expect(await found(way("https://reg.example.com/v2", { proxy: new URL("http://127.0.0.1:1") }))).toEqual([
      "broken TCP: proxy http://HOST: nobody listens there -> start the proxy, or look at its address",
    ]);
    const host = await listen(createServer());
    expect((await found(way("https://reg.example.com/v2", { proxy: new URL(`socks5://${host}`) })))[1]).toBe(
      "unknown proxy: socks5://HOST is of a kind that is not looked into",
    );
  });
});
