// hosts.toml: which hosts, in which order, and how they are spoken to; over real TLS where that is the point.

import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { sha256 } from "../../src/oci/digest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { hostsOf } from "../../src/registry/hosts.ts";
import { FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { Authority, readPair } from "../harness/authority.ts";
import { testRegistry } from "./registries.ts";

let root: string;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "certs.d-"));
});

afterEach(() => {
  rmSync(root, { recursive: true });
});

function write(folder: string, toml: string): void {
  mkdirSync(join(root, folder), { recursive: true });
  writeFileSync(join(root, folder, "hosts.toml"), toml);
}

function registryWith(
  configPath: readonly string[],
  breaker: (host: string, open: boolean) => void = () => {},
) {
  const events = { bytes: () => {}, retry: () => {}, breaker };
  return testRegistry({ configPath, progressTimeoutMs: 5000, retries: 0, events });
}

const never = new AbortController().signal;

describe("reading", () => {
  test("default hosts", async () => {
    const url = async (host: string): Promise<string | undefined> => (await hostsOf(host, []))[0]?.url.href;
    expect(await url("docker.io")).toBe("https://registry-1.docker.io/v2");
    expect(await url("reg.example.com")).toBe("https://reg.example.com/v2");
    expect(await url("localhost:5000")).toBe("http://localhost:5000/v2");
    expect(await url("127.0.0.1:5000")).toBe("http://127.0.0.1:5000/v2");
    expect(await url("localhost")).toBe("https://localhost/v2");
  });

  test("host tables in their order, then the server; headers and capabilities", async () => {
    write(
      "reg.example.com",
      `server = "https://fallback.example"
[host."https://first.example"]
  capabilities = ["pull", "resolve"]
  [host."https://first.example".header]
    X-Key = "value"
    X-List = ["a", "b"]
[host."http://second.example:8080/prefix"]
  capabilities = ["pull"]
  skip_verify = true
[host."third.example/api"]
  override_path = true
`,
    );
    const hosts = await hostsOf("reg.example.com", [root]);
    expect(hosts.map((host) => [host.url.href, host.isMirror, host.canResolve])).toEqual([
      ["https://first.example/v2", true, true],
      ["http://second.example:8080/prefix/v2", true, false],
      ["https://third.example/api", true, true],
      ["https://fallback.example/v2", true, true],
    ]);
    expect(hosts[0]?.headers).toEqual({ "x-key": "value", "x-list": "a, b" });
    expect(hosts[1]?.tls.skipVerify).toBe(true);
  });

  test.each(["reg.example.com_5000_", "reg.example.com:5000", "_default"])(
    "the folder %s serves reg.example.com:5000",
    async (folder) => {
      write(folder, '[host."https://mirror.example"]\n');
      expect((await hostsOf("reg.example.com:5000", ["/nonexistent", root]))[0]?.url.host).toBe(
        "mirror.example",
      );
    },
  );

  test("as with containerd, a folder without the port serves no host with one", async () => {
    write("reg.example.com", '[host."https://mirror.example"]\n');
    expect((await hostsOf("reg.example.com:5000", [root]))[0]?.url.host).toBe("reg.example.com:5000");
  });

  test.each([
    ["an unknown key", '[host."https://a.example"]\nfrobnicate = 1\n'],
    ["a client certificate that is not there", '[host."https://a.example"]\nclient = "/x"\n'],
    [
      "several client certificates",
      '[host."https://a.example"]\nclient = [["/etc/hostname", ""], ["/etc/hostname", ""]]\n',
    ],
    ["a dial_timeout that is none", '[host."https://a.example"]\ndial_timeout = "soon"\n'],
    ["no TOML", "[host"],
    ["a certificate that is not there", '[host."https://a.example"]\nca = "missing.pem"\n'],
    ["a host that may not pull", '[host."https://a.example"]\ncapabilities = ["push"]\n'],
    ["a capability that is not known", '[host."https://a.example"]\ncapabilities = ["pull", "referrers"]\n'],
    ["digits that URL takes for an address", '[host."http://0x7f.1:5000"]\n'],
    ["capabilities that are no list", '[host."https://a.example"]\ncapabilities = "pull"\n'],
  ])("%s leaves the pull to containerd", async (_name, toml) => {
    write("reg.example.com", toml);
    await expect(hostsOf("reg.example.com", [root])).rejects.toMatchObject({ code: "unsupported" });
  });
});

describe("a host's URL", () => {
  test.each(["0x7f.1", "0x7f.1:5000", "2130706433:5000", "127.1", "[::0001]:5000"])(
    "%s, which URL would rewrite, is left to containerd",
    async (host) => {
      await expect(hostsOf(host, [])).rejects.toMatchObject({ code: "unsupported" });
    },
  );

  test.each(["REG.example.com", "REG.example.com:443", "127.0.0.1:5000", "[::1]:5000", "localhost"])(
    "%s is a host",
    async (host) => {
      expect(await hostsOf(host, [])).toHaveLength(1);
    },
  );

  test.each([
    ["https://a.example", false, "https://a.example/v2"],
    ["a.example:5000", false, "https://a.example:5000/v2"],
    ["https://a.example/", true, "https://a.example/"],
    ["https://a.example/api/", true, "https://a.example/api"],
    ["https://a.example//x/./y/../v2/", false, "https://a.example/x/v2"],
    ["https://user:word@a.example/x?y=z#f", false, "https://a.example/x/v2"],
  ])("%s, override_path = %s", async (address, override, expected) => {
    write("reg.example.com", `[host."${address}"]\noverride_path = ${override}\n`);
    expect((await hostsOf("reg.example.com", [root]))[0]?.url.href).toBe(expected);
  });

  test.each([
    ["http://a.example:5000", "", false],
    ["http://a.example:5000", "skip_verify = false", true],
    ["http://a.example", "skip_verify = true", true],
    ["http://a.example:80", "skip_verify = true", false],
    ["http://a.example:80/v2", "skip_verify = true", false],
    ["https://a.example", "skip_verify = true", false],
  ])("%s with %j is offered TLS: %s", async (address, line, offered) => {
    write("reg.example.com", `[host."${address}"]\n${line}\n`);
    expect((await hostsOf("reg.example.com", [root]))[0]?.offerTls).toBe(offered);
  });

  test.each([
    ["localhost:5000", true],
    ["localhost:80", false],
    ["localhost:443", false],
    ["localhost", false],
    ["[::1]:5000", true],
    ["a.example:5000", false],
  ])("by default %s is offered TLS before http: %s", async (host, offered) => {
    expect((await hostsOf(host, []))[0]?.offerTls).toBe(offered);
    write(host, '[host."https://mirror.example"]\n');
    expect((await hostsOf(host, [root]))[1]?.offerTls).toBe(offered);
  });
});

describe("asking", () => {
  test("a mirror that fails is passed over, and is told which registry is meant", async () => {
    await using mirror = await FakeRegistry.start();
    await using origin = await FakeRegistry.start();
    const image = origin.put("a/b:v1", [{ bytes: tarGz([file("x")]) }]);
    write("_default", `server = "http://${origin.host}"\n[host."http://${mirror.host}"]\n`);
    const registry = registryWith([root]);
    const { descriptor } = await registry
      .repository(parseReference("reg.example.com/a/b:v1"), undefined)
      .resolve(false, never);
    expect(descriptor.digest).toBe(image.manifestDigest);
    expect(mirror.asked).toMatchObject([{ path: "/v2/a/b/manifests/v1", query: "?ns=reg.example.com" }]);
    expect(origin.asked).toHaveLength(1);
    await registry.close();
  });

  test("credentials that one host asks for do not reach another", async () => {
    await using mirror = await FakeRegistry.start();
    await using origin = await FakeRegistry.start();
    origin.put("a/b:v1", [{ bytes: tarGz([file("x")]) }]);
    origin.behave = ({ authorization }) =>
      authorization ? undefined : { status: 401, headers: { "www-authenticate": "Basic" } };
    write("_default", `server = "http://${origin.host}"\n[host."http://${mirror.host}"]\n`);
    const registry = registryWith([root]);
    await registry
      .repository(parseReference("reg.example.com/a/b:v1"), { username: "u", password: "p" })
      .resolve(false, never);
    expect(mirror.asked.map(({ authorization }) => authorization)).toEqual([undefined]);
    await registry.close();
  });

  test("headers that hosts.toml has for a host do not follow it when it redirects", async () => {
    await using store = await FakeRegistry.start();
    await using origin = await FakeRegistry.start();
    store.behave = () => ({ body: Buffer.from("config") });
    origin.behave = () => ({ status: 307, headers: { location: `http://${store.host}/config` } });
    const header = `[host."http://${origin.host}".header]\nX-Key = "s3cret"\n`;
    write("_default", `server = "http://${origin.host}"\n[host."http://${origin.host}"]\n${header}`);
    const registry = registryWith([root]);
    const descriptor = { mediaType: mediaTypes.ociConfig, digest: sha256("config"), size: 6 };
    await registry
      .repository(parseReference("reg.example.com/a/b:v1"), undefined)
      .fetch(descriptor, 6, never);
    expect(origin.asked).toMatchObject([{ headers: { "x-key": "s3cret" } }]);
    expect(store.asked).toHaveLength(1);
    expect(JSON.stringify(store.asked)).not.toMatch(/s3cret|x-key/);
    await registry.close();
  });

  test("a breaker opens after failures, is probed, and closes once the host answers", async () => {
    await using origin = await FakeRegistry.start();
    const image = origin.put("a/b:v1", [{ bytes: tarGz([file("x")]) }]);
    const changes: [string, boolean][] = [];
    let closed = (): void => {};
    const closing = new Promise<void>((resolve) => {
      closed = resolve;
    });
    const registry = registryWith([], (host, open) => {
      changes.push([host, open]);
      if (!open) closed();
    });
    const resolve = async () =>
      registry.repository(parseReference(image.reference), undefined).resolve(false, never);
    origin.behave = () => ({ status: 503 });
    await expect(resolve()).rejects.toMatchObject({ code: "unavailable" });
    await expect(resolve()).rejects.toMatchObject({ code: "unavailable" });
    const before = origin.asked.filter(({ path }) => path.includes("manifests")).length;
    await expect(resolve()).rejects.toThrow(/failed repeatedly/);
    expect(origin.asked.filter(({ path }) => path.includes("manifests"))).toHaveLength(before);
    origin.behave = () => undefined;
    await closing;
    expect((await resolve()).descriptor.digest).toBe(image.manifestDigest);
    expect(changes).toEqual([
      [origin.host, true],
      [origin.host, false],
    ]);
    await registry.close();
  });

  test("manifests and configs that are not what they should be are refused", async () => {
    await using origin = await FakeRegistry.start();
    const image = origin.put("a/b:v1", [{ bytes: tarGz([file("x")]) }]);
    const registry = registryWith([]);
    const repository = registry.repository(parseReference(image.reference), undefined);
    const bytes = Buffer.from("wrong bytes");
    origin.behave = ({ path }) => (path.includes("/blobs/") ? { body: bytes } : undefined);
    const descriptor = { mediaType: mediaTypes.ociConfig, digest: sha256("right bytes"), size: bytes.length };
    await expect(repository.fetch(descriptor, 1000, never)).rejects.toMatchObject({ code: "corrupt" });
    await expect(repository.fetch({ ...descriptor, size: 5 }, 1000, never)).rejects.toMatchObject({
      code: "corrupt",
    });
    origin.behave = () => ({ headers: { "docker-content-digest": sha256("something else") } });
    await expect(repository.resolve(false, never)).rejects.toMatchObject({ code: "corrupt" });
    origin.behave = () => ({ body: Buffer.alloc(5_000_000, 32) });
    await expect(repository.resolve(false, never)).rejects.toMatchObject({ code: "corrupt" });
    await registry.close();
  });
});

describe("TLS", () => {
  let authority: Authority;
  let server: Server;
  let host: string;

  beforeEach(async () => {
    authority = new Authority();
    const manifest = JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest });
    server = createServer(readPair(authority.issue("server")), (_request, response) => {
      response.writeHead(200, { "content-type": mediaTypes.ociManifest }).end(manifest);
    });
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  });

  afterEach(async () => {
    await new Promise<void>((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });
    authority[Symbol.dispose]();
  });

  test.each([
    ["a private authority, by a path beside hosts.toml", 'ca = "../authority.crt"', true],
    ["skip_verify", "skip_verify = true", true],
    ["neither", "", false],
  ])("%s", async (_name, settings, trusted) => {
    write("reg.example.com", `server = "https://${host}"\n[host."https://${host}"]\n${settings}\n`);
    copyFileSync(authority.cert, join(root, "authority.crt"));
    const registry = registryWith([root]);
    const resolving = registry
      .repository(parseReference("reg.example.com/a:b"), undefined)
      .resolve(false, never);
    if (trusted) expect((await resolving).descriptor.mediaType).toBe(mediaTypes.ociManifest);
    else await expect(resolving).rejects.toMatchObject({ code: "unavailable" });
    await registry.close();
  });
});
