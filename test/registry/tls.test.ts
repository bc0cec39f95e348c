// TLS as hosts.toml and Docker's older layout describe it: private authorities and client certificates, on real sockets.

import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { createServer as createTls, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { sha256 } from "../../src/oci/digest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { hostsOf } from "../../src/registry/hosts.ts";
import { BlackHole } from "../fakes/blackhole.ts";
import { FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { Authority, type KeyPair, readPair } from "../harness/authority.ts";
import { testRegistry } from "./registries.ts";

const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, config: {}, layers: [] }));
const never = new AbortController().signal;

let authority: Authority;
let stranger: Authority;
let node: KeyPair;
/** The node's certificate and its key in one file. */
let both = "";
let root = "";
let server: Server;
let host = "";

beforeAll(async () => {
  authority = new Authority();
  stranger = new Authority();
  node = authority.issue("node");
  both = join(authority.folder, "both.pem");
  const { cert, key } = readPair(node);
  writeFileSync(both, Buffer.concat([cert, key]));
  server = createTls(
    {
      ...readPair(authority.issue("server")),
      ca: readFileSync(authority.cert),
      requestCert: true,
      rejectUnauthorized: true,
    },
    (_request, response) => {
      response.writeHead(200, { "content-type": mediaTypes.ociManifest }).end(manifest);
    },
  );
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
});

afterAll(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => {
    server.close(resolve);
  });
  stranger[Symbol.dispose]();
  authority[Symbol.dispose]();
});

beforeEach(() => {
  root = mkdtempSync(join(authority.folder, "certs.d-"));
});

function write(name: string, toml: string): string {
  const made = join(root, name);
  mkdirSync(made, { recursive: true });
  if (toml) writeFileSync(join(made, "hosts.toml"), toml);
  return made;
}

async function digestOf(): Promise<string> {
  const registry = testRegistry({ configPath: [root] });
  try {
    const reference = parseReference("reg.example.com/a/b:v1");
    return (await registry.repository(reference, undefined).resolve(false, never)).descriptor.digest;
  } finally {
    await registry.close();
  }
}

const hostTable = (lines: string): string =>
  `server = "https://${host}"\nca = "${authority.cert}"\n${lines}\n`;

test.each([
  ["a file with both", () => `client = "${both}"`],
  ["a list of one file", () => `client = ["${both}"]`],
  ["a list of one pair", () => `client = [["${node.cert}", "${node.key}"]]`],
  ["a pair with an empty key", () => `client = [["${both}", ""]]`],
])("a client certificate as %s", async (_name, client) => {
  write("reg.example.com", `${hostTable(client())}[host]\n`);
  expect(await digestOf()).toBe(sha256(manifest));
});

test("relative paths are the folder's", async () => {
  const made = write(
    "reg.example.com",
    `server = "https://${host}"\nca = "ca.pem"\nclient = "sub/both.pem"\n[host]\n`,
  );
  mkdirSync(join(made, "sub"));
  writeFileSync(join(made, "ca.pem"), readFileSync(authority.cert));
  writeFileSync(join(made, "sub/both.pem"), readFileSync(both));
  expect(await digestOf()).toBe(sha256(manifest));
});

test("without a certificate, or with a stranger's, the server refuses", async () => {
  write("reg.example.com", `${hostTable("")}[host]\n`);
  await expect(digestOf()).rejects.toMatchObject({ code: "unavailable" });
  write(
    "reg.example.com",
    `${hostTable(`client = [["${stranger.pair.cert}", "${stranger.pair.key}"]]`)}[host]\n`,
  );
  await expect(digestOf()).rejects.toMatchObject({ code: "unavailable" });
});

test("an unknown authority is refused, and skip_verify passes over it", async () => {
  const client = `client = "${both}"`;
  write("reg.example.com", `server = "https://${host}"\n${client}\n[host]\n`);
  await expect(digestOf()).rejects.toMatchObject({ code: "unavailable" });
  write("reg.example.com", `server = "https://${host}"\n${client}\nskip_verify = true\n[host]\n`);
  expect(await digestOf()).toBe(sha256(manifest));
});

test("Docker's layout: authorities and a client certificate beside each other", async () => {
  const made = write("reg.example.com", "");
  for (const [from, to] of [
    [authority.cert, "ca.crt"],
    [node.cert, "client.cert"],
    [node.key, "client.key"],
  ] as const)
    writeFileSync(join(made, to), readFileSync(from));
  const [only] = await hostsOf("reg.example.com", [root]);
  expect(only?.tls).toEqual({
    ca: [readFileSync(authority.cert, "utf8")],
    skipVerify: false,
    client: {
      cert: readFileSync(node.cert, "utf8"),
      key: readFileSync(node.key, "utf8"),
    },
  });
});

test("dial_timeout is the host's own: a mirror that nobody reaches costs just that", async () => {
  await using hole = await BlackHole.start();
  await using origin = await FakeRegistry.start();
  const image = origin.put("a/b:v1", [{ bytes: tarGz([file("x")]) }]);
  write(
    "reg.example.com",
    `server = "http://${origin.host}"\n[host."http://${hole.host}"]\ndial_timeout = "200ms"\n`,
  );
  const registry = testRegistry({ configPath: [root], connectTimeoutMs: 3_600_000, fallbackAfterMs: 30_000 });
  const repository = registry.repository(parseReference("reg.example.com/a/b:v1"), undefined);
  expect((await repository.resolve(false, never)).descriptor.digest).toBe(image.manifestDigest);
  await registry.close();
});

test.each([
  ["1m30s", 90_000],
  ["1.5s", 1500],
  ["250ms", 250],
])("dial_timeout %s", async (text, timeoutMs) => {
  write("reg.example.com", `[host."https://a.example"]\ndial_timeout = "${text}"\n`);
  expect((await hostsOf("reg.example.com", [root]))[0]?.dialTimeoutMs).toBe(timeoutMs);
});
