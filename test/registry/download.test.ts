// Blobs over bad connections: whatever breaks wherever, the spool ends with the right bytes, each asked for once, or the
// download fails with the reason.

import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { type AddressInfo, connect, createServer as createTcp, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { PullError } from "../../src/errors.ts";
import { parseDigest } from "../../src/oci/digest.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { Bandwidth } from "../../src/registry/bandwidth.ts";
import type { RegistryOptions } from "../../src/registry/client.ts";
import { realTiming } from "../../src/registry/patience.ts";
import { Spool } from "../../src/spool.ts";
import { ForwardProxy } from "../fakes/forward.ts";
import { type Behaviour, FakeRegistry, gate, sha256 } from "../fakes/registry.ts";
import { bytesAsked } from "../harness/crash.ts";
import { permits, testRegistry } from "./registries.ts";

const never = new AbortController().signal;
const bytes = randomBytes(200_000);
const digest = sha256(bytes);

let folder = "";
let fake: FakeRegistry;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "download-"));
  fake = await FakeRegistry.start();
  fake.put("a/b:v1", [{ bytes, tar: bytes }]);
});

afterEach(() => {
  fake.behave = () => undefined;
});

afterAll(async () => {
  await fake[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

test("each byte that comes in is paid for, whatever the lanes", async () => {
  let paid = 0;
  const wait = async (): Promise<void> => {};
  const bandwidth = new (class extends Bandwidth {
    override async pay(length: number, signal: AbortSignal): Promise<number> {
      paid += length;
      return await super.pay(length, signal);
    }
  })(1_000_000, { ...realTiming, wait });
  expect(await download({ bandwidth })).toEqual(bytes);
  expect(paid).toBe(bytes.length);
});

let count = 0;

async function download(options: Partial<RegistryOptions> = {}, host = fake.host): Promise<Buffer> {
  count += 1;
  const registry = testRegistry({ retries: 3, ...options });
  const descriptor = { mediaType: "any", digest: parseDigest(digest), size: bytes.length };
  await using spool = await Spool.open(join(folder, `spool-${count}`), bytes.length);
  try {
    const repository = registry.repository(parseReference(`${host}/a/b:v1`), undefined);
    await repository.download(descriptor, spool, permits, never);
    return await readFile(spool.view.path);
  } finally {
    await registry.close();
  }
}

async function failure(options: Partial<RegistryOptions> = {}, host = fake.host): Promise<PullError> {
  const thrown: unknown = await download(options, host).then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(thrown).toMatchObject({ name: "PullError" });
  return thrown as PullError;
}

/** Only the first so many requests for the blob are answered in this way. */
function first(times: number, behaviour: Behaviour): void {
  let left = times;
  fake.behave = ({ path }) => (path.endsWith(digest) && left-- > 0 ? behaviour : undefined);
}

test("a reset at any byte, with and without ranges: the rest is fetched, nothing twice", async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(bytes.length), fc.boolean(), async (after, ignoreRange) => {
      first(1, { after, afterwards: "reset", ...(ignoreRange && { ignoreRange }) });
      expect((await download()).equals(bytes)).toBe(true);
    }),
    { numRuns: 25 },
  );
});

test("a stall at any byte ends with progress_timeout, and the rest is fetched", async () => {
  for (const after of [0, 1, 65_535, 100_000]) {
    const pause = gate();
    first(1, { after, afterwards: pause.opened });
    expect((await download({ progressTimeoutMs: 150 })).equals(bytes)).toBe(true);
    pause.open();
  }
});

test("bytes that were there before are not asked for", async () => {
  count += 1;
  const registry = testRegistry();
  const written = [
    { start: 0, end: 70_000 },
    { start: 100_000, end: 120_000 },
  ];
  const path = join(folder, `spool-${count}`);
  await (await Spool.open(path, bytes.length)).close();
  await using spool = await Spool.open(path, bytes.length, { written });
  const before = fake.asked.length;
  const repository = registry.repository(parseReference(`${fake.host}/a/b:v1`), undefined);
  const descriptor = { mediaType: "any", digest: parseDigest(digest), size: bytes.length };
  await repository.download(descriptor, spool, permits, never);
  await registry.close();
  const asked = bytesAsked(fake.asked.slice(before), digest, bytes.length).sort((a, b) => a.start - b.start);
  expect(asked).toEqual([
    { start: 70_000, end: 100_000 },
    { start: 120_000, end: 185_536 },
    { start: 185_536, end: 200_000 },
  ]);
});

test("a drip that never pauses for long is one request, however long it takes", async () => {
  const pieces = 6;
  const server = createServer((_request, response) => {
    response.writeHead(206, {
      "content-length": String(bytes.length),
      "content-range": `bytes 0-${bytes.length - 1}/${bytes.length}`,
    });
    let sent = 0;
    const drip = setInterval(() => {
      response.write(bytes.subarray((sent * bytes.length) / pieces, ((sent + 1) * bytes.length) / pieces));
      sent += 1;
      if (sent < pieces) return;
      clearInterval(drip);
      response.end();
    }, 300);
  });
  let requests = 0;
  server.on("request", () => {
    requests += 1;
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  // The whole takes longer than the pause that ends a request.
  const options = { progressTimeoutMs: 1000, chunkBytes: bytes.length, retries: 0 };
  expect((await download(options, host)).equals(bytes)).toBe(true);
  expect(requests).toBe(1);
  server.closeAllConnections();
  server.close();
});

describe("answers that are wrong", () => {
  test.each<[string, Behaviour]>([
    ["another range than asked for", { headers: { "content-range": "bytes 5-9/200000" } }],
    ["a range of a blob of another length", { headers: { "content-range": "bytes 0-65535/999" } }],
    ["no Content-Range", { headers: { "content-range": "nonsense" } }],
    ["a whole blob of another length", { ignoreRange: true, body: Buffer.from("short") }],
  ])("%s", async (_name, behaviour) => {
    fake.behave = ({ path }) => (path.endsWith(digest) ? behaviour : undefined);
    expect((await failure({ retries: 1 })).code).toBe("corrupt");
  });

  test("Content-Encoding: the bytes count and not the label; what really is encoded is corrupt", async () => {
    const headers = { "content-encoding": "gzip" };
    fake.behave = ({ path }) => (path.endsWith(digest) ? { headers } : undefined);
    expect((await download()).equals(bytes)).toBe(true);
    const body = gzipSync(bytes);
    fake.behave = ({ path }) => (path.endsWith(digest) ? { headers, body, ignoreRange: true } : undefined);
    expect((await failure({ retries: 0 })).code).toBe("corrupt");
  });
});

describe("patience", () => {
  test.each([
    [429, { "retry-after": "0" }],
    [429, {}],
    [503, {}],
    [500, {}],
    [408, {}],
  ])("%i %j is tried again", async (status, headers) => {
    first(2, { status, headers });
    expect((await download()).equals(bytes)).toBe(true);
  });

  test("who asks for an hour is given up at once", async () => {
    first(1, { status: 429, headers: { "retry-after": "3600" } });
    const before = fake.asked.length;
    expect((await failure({ streams: 1 })).code).toBe("unavailable");
    expect(fake.asked.length).toBe(before + 1);
  });

  test.each([400, 404, 410])("%i is not tried again", async (status) => {
    fake.behave = ({ path }) => (path.endsWith(digest) ? { status } : undefined);
    const before = fake.asked.length;
    await failure({ streams: 1 });
    expect(fake.asked.length - before).toBeLessThanOrEqual(2);
  });
});

test("IPv6", async () => {
  const server = createServer((_request, response) => {
    response.writeHead(200, { "content-length": String(bytes.length) }).end(bytes);
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "::1", resolve);
  });
  const { port } = server.address() as AddressInfo;
  expect((await download({}, `[::1]:${port}`)).equals(bytes)).toBe(true);
  server.closeAllConnections();
  server.close();
});

describe("a proxy from the environment", () => {
  test("fetches what is http, with its own user and password, and is never asked for this machine", async () => {
    await using proxy = await ForwardProxy.start(new Map([["reg.invalid:80", fake.host]]));
    const address = `http://some%40body:pass%20word@${proxy.host}`;
    const settings = { http: address, https: address, no: "" };
    await download({ proxy: settings });
    expect(proxy.asked).toEqual([]);
    const configPath = [join(folder, "certs.d")];
    mkdirSync(join(folder, "certs.d/_default"), { recursive: true });
    writeFileSync(join(folder, "certs.d/_default/hosts.toml"), 'server = "http://reg.invalid"\n[host]\n');
    expect((await download({ proxy: settings, configPath }, "reg.invalid")).equals(bytes)).toBe(true);
    const login = `Basic ${Buffer.from("some@body:pass word").toString("base64")}`;
    const target = `http://reg.invalid/v2/a/b/blobs/${digest}`;
    expect(proxy.asked.length).toBeGreaterThan(1);
    for (const asked of proxy.asked) expect(asked).toMatchObject({ method: "GET", target, login });
    // What is the proxy's is not passed on.
    expect(fake.asked.filter(({ headers }) => headers["proxy-authorization"] !== undefined)).toEqual([]);
  });

  test.each([407, 502])("that says %i to everything", async (status) => {
    const refusing = createServer((_request, response) => response.writeHead(status).end());
    refusing.on("connect", (_request, socket: Socket) => socket.end(`HTTP/1.1 ${status} No\r\n\r\n`));
    await new Promise<void>((resolve) => {
      refusing.listen(0, "127.0.0.1", resolve);
    });
    const address = `http://user:s3cret@127.0.0.1:${(refusing.address() as AddressInfo).port}`;
    const proxy = { http: address, https: address, no: "" };
    for (const scheme of ["http", "https"]) {
      const configPath = [join(folder, `certs.d-${scheme}`)];
      mkdirSync(join(configPath[0] ?? "", "_default"), { recursive: true });
      writeFileSync(
        join(configPath[0] ?? "", "_default/hosts.toml"),
        `server = "${scheme}://reg.invalid"\n[host]\n`,
      );
      const error = await failure({ proxy, configPath, retries: 0 }, "reg.invalid");
      expect(error.code).toBe("unavailable");
      expect(`${error.stack} ${JSON.stringify(error.cause)}`).not.toMatch(/s3cret|dXNlcjpzM2NyZXQ/);
    }
    refusing.closeAllConnections();
    refusing.close();
  });
});

test("a black hole: its breaker opens, it is not asked while open, and a probe closes it", async () => {
  const told: string[] = [];
  let open = false;
  const fallen: Socket[] = [];
  const holes = createTcp((socket) => {
    fallen.push(socket);
    if (!open) return;
    socket.on("error", () => {});
    const [hostname = "", port = ""] = fake.host.split(":");
    const onward = connect(Number(port), hostname);
    fallen.push(onward);
    socket.pipe(onward).pipe(socket);
  });
  await new Promise<void>((resolve) => {
    holes.listen(0, "127.0.0.1", resolve);
  });
  const host = `127.0.0.1:${(holes.address() as AddressInfo).port}`;
  const changed = gate();
  const registry = testRegistry({
    retries: 0,
    progressTimeoutMs: 100,
    fallbackAfterMs: 300,
    breaker: { failures: 2, resetMs: 20 },
    events: {
      bytes: () => {},
      retry: () => {},
      breaker: (name, isOpen) => {
        told.push(`${name} ${isOpen ? "open" : "closed"}`);
        if (!isOpen) changed.open();
      },
    },
  });
  const repository = registry.repository(parseReference(`${host}/a/b:v1`), undefined);
  await expect(repository.resolve(false, never)).rejects.toMatchObject({ name: "PullError" });
  await expect(repository.resolve(false, never)).rejects.toMatchObject({ name: "PullError" });
  expect(told).toEqual([`${host} open`]);
  await expect(repository.resolve(false, never)).rejects.toMatchObject({ code: "unavailable" });
  open = true;
  await changed.opened;
  expect(told).toEqual([`${host} open`, `${host} closed`]);
  await repository.resolve(false, never);
  await registry.close();
  holes.close();
  // Who reads nothing does not hear of the end.
  for (const socket of fallen) socket.destroy();
});
