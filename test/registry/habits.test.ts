// Registries and proxies that people use, as fakes with their habits; credentials never reach another host.

import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { PullError } from "../../src/errors.ts";
import { type Digest, parseDigest } from "../../src/oci/digest.ts";
import { parseReference } from "../../src/oci/reference.ts";
import type { RegistryOptions } from "../../src/registry/client.ts";
import type { Credentials } from "../../src/registry/registry.ts";
import { wordingOf } from "../../src/registry/wording.ts";
import { Spool } from "../../src/spool.ts";
import { type Asked, type Behaviour, type FakeImage, FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { Authority, readPair } from "../harness/authority.ts";
import { permits, testRegistry } from "./registries.ts";

const never = new AbortController().signal;
const secret = "s3cret-hunter2";
const login: Credentials = { username: "robot", password: secret };

let root = "";

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "habits-"));
});

afterEach(() => {
  rmSync(root, { recursive: true });
});

function put(fake: FakeRegistry, name = "team/app:v1"): FakeImage {
  return fake.put(name, [{ bytes: tarGz([file("noise", randomBytes(300_000))]) }]);
}

/** Resolves a reference and downloads its layer; the bytes come back. */
async function fetchLayer(
  reference: string,
  image: FakeImage,
  credentials?: Credentials,
  options: Partial<RegistryOptions> = {},
): Promise<Buffer> {
  const registry = testRegistry(options);
  try {
    const repository = registry.repository(parseReference(reference), credentials);
    const { descriptor } = await repository.resolve(false, never);
    expect(descriptor.digest).toBe(image.manifestDigest);
    const [layer] = image.layers;
    if (layer === undefined) throw new Error("no layer");
    const digest: Digest = parseDigest(layer.digest);
    const blob = { mediaType: "any", digest, size: layer.bytes.length };
    await using spool = await Spool.open(join(root, `spool-${Math.random()}`), blob.size);
    await repository.download(blob, spool, permits, never);
    return await readFile(spool.view.path);
  } finally {
    await registry.close();
  }
}

const basic = (name: string, password: string): string =>
  `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}`;

/** 401 with a challenge unless the request shows what it should. */
function guarded(shown: string, challenge: string) {
  return ({ authorization }: Asked): Behaviour | undefined =>
    authorization === shown ? undefined : { status: 401, headers: { "www-authenticate": challenge } };
}

function json(body: unknown): Behaviour {
  return {
    status: 200,
    headers: { "content-type": "application/json" },
    body: Buffer.from(JSON.stringify(body)),
  };
}

describe("token servers", () => {
  test("Docker Hub, Harbor, GAR: GET with Basic, service and scope; the token is asked for once", async () => {
    await using tokens = await FakeRegistry.start();
    await using hub = await FakeRegistry.start();
    const image = put(hub);
    // As containerd, which tries OAuth2's POST first where there is a secret.
    tokens.behave = ({ method }) =>
      method === "POST" ? { status: 405 } : json({ token: "t-1", access_token: "t-1", expires_in: 300 });
    hub.behave = guarded(
      "Bearer t-1",
      `Bearer realm="http://${tokens.host}/token",service="registry.docker.io",scope="repository:team/app:pull"`,
    );
    const bytes = await fetchLayer(image.reference, image, login);
    expect(bytes.equals(image.layers[0]?.bytes ?? Buffer.alloc(0))).toBe(true);
    const gets = tokens.asked.filter(({ method }) => method === "GET");
    expect(gets).toMatchObject([{ method: "GET", path: "/token", authorization: basic("robot", secret) }]);
    const query = new URLSearchParams(gets[0]?.query);
    expect([query.get("service"), query.getAll("scope")]).toEqual([
      "registry.docker.io",
      ["repository:team/app:pull"],
    ]);
    // The secret itself went to the token server alone.
    expect(hub.asked.map(({ authorization }) => authorization ?? "").join()).not.toContain(
      basic("robot", secret),
    );
  });

  test("ACR: an identity token is exchanged by POST", async () => {
    await using acr = await FakeRegistry.start();
    const image = put(acr);
    const challenge = `Bearer realm="http://${acr.host}/oauth2/token",service="acr.example",scope="repository:team/app:pull"`;
    const guard = guarded("Bearer t-2", challenge);
    acr.behave = (asked) => (asked.path === "/oauth2/token" ? json({ access_token: "t-2" }) : guard(asked));
    await fetchLayer(image.reference, image, { identityToken: "refresh-me" });
    const exchanges = acr.asked.filter(({ path }) => path === "/oauth2/token");
    expect(exchanges.map(({ method }) => method)).toEqual(["POST"]);
    expect(exchanges[0]?.query).not.toContain("refresh-me");
  });

  test("a token that expires in the middle of a pull is renewed", async () => {
    await using hub = await FakeRegistry.start();
    const image = put(hub);
    let issued = 0;
    let valid = "";
    hub.behave = (asked) => {
      if (asked.path === "/token") {
        issued += 1;
        valid = `Bearer t-${issued}`;
        return json({ access_token: `t-${issued}` });
      }
      // Each token is good for three requests.
      const spent = hub.asked.filter(({ authorization }) => authorization === valid).length > 3;
      if (asked.authorization === valid && !spent) return undefined;
      return { status: 401, headers: { "www-authenticate": `Bearer realm="http://${hub.host}/token"` } };
    };
    await fetchLayer(image.reference, image, login);
    expect(issued).toBeGreaterThan(1);
  });

  test("a second 401 with a fresh token is a refusal, and no text has the secret", async () => {
    await using hub = await FakeRegistry.start();
    const image = put(hub);
    hub.behave = ({ path }) =>
      path === "/token"
        ? json({ access_token: "worthless" })
        : { status: 401, headers: { "www-authenticate": `Bearer realm="http://${hub.host}/token"` } };
    const failure = (await fetchLayer(image.reference, image, login).catch(
      (error: unknown) => error,
    )) as PullError;
    expect(failure).toMatchObject({ code: "refused", credentialsSent: true });
    expect(`${failure.message} ${String(failure.stack)}`).not.toMatch(/s3cret|worthless/);
    expect(hub.asked.filter(({ path }) => path.includes("/manifests/")).length).toBeLessThanOrEqual(3);
  });
});

test("a user and a password in a realm's URL are in no text", async () => {
  await using tokens = await FakeRegistry.start();
  await using registry = await FakeRegistry.start();
  const image = put(registry);
  tokens.behave = () => ({ status: 403 });
  const realm = `http://realm:r3alm-secret@${tokens.host}/token`;
  registry.behave = guarded("Bearer t-1", `Bearer realm="${realm}"`);
  for (const version of ["1.6.20", "2.1.9"]) {
    const options = { wording: wordingOf(version) };
    const failure = (await fetchLayer(image.reference, image, login, options).catch(
      (error: unknown) => error,
    )) as PullError;
    expect(failure).toMatchObject({ code: "refused" });
    expect(`${failure.message} ${String(failure.stack)}`).not.toContain("r3alm-secret");
  }
});

describe("token endpoints that redirect", () => {
  /** A registry whose tokens are had from there. */
  async function registryWith(realm: string): Promise<FakeRegistry> {
    const registry = await FakeRegistry.start();
    registry.behave = guarded("Bearer t-1", `Bearer realm="${realm}",service="s"`);
    return registry;
  }

  test.each([
    [302, "GET", undefined],
    [303, "GET", undefined],
    [307, "POST", undefined],
    [308, "POST", undefined],
  ])("a POST that is sent on with %i is a %s afterwards", async (status, method, authorization) => {
    await using tokens = await FakeRegistry.start();
    await using registry = await registryWith(`http://${tokens.host}/token`);
    const image = put(registry);
    tokens.behave = ({ path }) =>
      path === "/token" ? { status, headers: { location: "/other" } } : json({ access_token: "t-1" });
    await fetchLayer(image.reference, image, login);
    const after = tokens.asked.filter(({ path }) => path === "/other");
    expect(after.map((asked) => [asked.method, asked.authorization])).toEqual([[method, authorization]]);
  });

  test("a GET goes on with its secret on the same host and without it to another", async () => {
    await using elsewhere = await FakeRegistry.start();
    await using tokens = await FakeRegistry.start();
    await using registry = await registryWith(`http://${tokens.host}/token`);
    const image = put(registry);
    tokens.behave = ({ method, path }) => {
      if (method === "POST") return { status: 404 };
      const location = path === "/token" ? "/second" : `http://${elsewhere.host}/third`;
      return { status: 302, headers: { location } };
    };
    elsewhere.behave = () => json({ token: "t-1" });
    await fetchLayer(image.reference, image, login);
    const shown = basic("robot", secret);
    expect(tokens.asked.filter(({ method }) => method === "GET")).toMatchObject([
      { path: "/token", authorization: shown },
      { path: "/second", authorization: shown },
    ]);
    expect(elsewhere.asked.map(({ authorization }) => authorization)).toEqual([undefined]);
  });

  test("a POST is not repeated to another host, nor is a redirect followed for ever", async () => {
    await using elsewhere = await FakeRegistry.start();
    await using tokens = await FakeRegistry.start();
    await using registry = await registryWith(`http://${tokens.host}/token`);
    const image = put(registry);
    tokens.behave = () => ({ status: 307, headers: { location: `http://${elsewhere.host}/token` } });
    await expect(fetchLayer(image.reference, image, login)).rejects.toMatchObject({ code: "unavailable" });
    expect(elsewhere.asked).toEqual([]);
    tokens.behave = () => ({ status: 307, headers: { location: "/token" } });
    await expect(fetchLayer(image.reference, image, login)).rejects.toMatchObject({ code: "unavailable" });
  });
});

describe("redirecting blob stores", () => {
  test("ECR, Artifactory: Basic at the registry, never at the store, which refuses an Authorization", async () => {
    await using store = await FakeRegistry.start();
    await using ecr = await FakeRegistry.start();
    const image = put(ecr);
    const bytes = image.layers[0]?.bytes ?? Buffer.alloc(0);
    store.behave = ({ authorization }) => (authorization === undefined ? { body: bytes } : { status: 400 });
    const guard = guarded(basic("AWS", secret), 'Basic realm="https://ecr.example/",service="ecr.example"');
    ecr.behave = (asked) =>
      guard(asked) ??
      (asked.path.includes("/blobs/")
        ? { status: 307, headers: { location: `http://${store.host}/bucket/blob?X-Amz-Signature=abc` } }
        : undefined);
    const got = await fetchLayer(image.reference, image, { username: "AWS", password: secret });
    expect(got.equals(bytes)).toBe(true);
    expect(store.asked.length).toBeGreaterThan(1);
    expect(store.asked.filter(({ authorization }) => authorization !== undefined)).toEqual([]);
  });

  test("a signature that expires in the middle of a blob: the registry is asked for another", async () => {
    await using store = await FakeRegistry.start();
    await using registry = await FakeRegistry.start();
    const image = put(registry);
    const bytes = image.layers[0]?.bytes ?? Buffer.alloc(0);
    let current = 0;
    registry.behave = ({ path }) => {
      if (!path.includes("/blobs/")) return undefined;
      current += 1;
      return { status: 307, headers: { location: `http://${store.host}/blob?sig=${current}` } };
    };
    store.behave = ({ query }) => {
      const uses = store.asked.filter((asked) => asked.query === query).length;
      return uses > 1 ? { status: 403 } : { body: bytes };
    };
    const got = await fetchLayer(image.reference, image);
    expect(got.equals(bytes)).toBe(true);
    expect(current).toBeGreaterThan(1);
  });
});

test("a host that sends everybody on from http to https is itself, and is shown what it asks for there", async () => {
  using authority = new Authority();
  await using secure = await FakeRegistry.start(readPair(authority.issue("server")));
  await using host = await FakeRegistry.start();
  const image = put(secure);
  mkdirSync(join(root, "_default"));
  // An authority alone would have TLS offered to the host that speaks only http.
  const lines = `server = "http://${host.host}"\nca = "${authority.cert}"\n[host]\n`;
  writeFileSync(join(root, "_default/hosts.toml"), lines);
  host.behave = ({ path, query }) => ({
    status: 308,
    headers: { location: `https://${secure.host}${path}${query}` },
  });
  const shown = basic("robot", secret);
  secure.behave = guarded(shown, 'Basic realm="secure"');
  const got = await fetchLayer("reg.example.com/team/app:v1", image, login, { configPath: [root] });
  expect(got.equals(image.layers[0]?.bytes ?? Buffer.alloc(0))).toBe(true);
});

describe("peer-to-peer proxies on this machine", () => {
  function mirror(at: string, lines = ""): void {
    mkdirSync(join(root, "_default"));
    writeFileSync(join(root, "_default/hosts.toml"), at + lines);
  }

  test("Dragonfly's dfdaemon: its header, one stream for a blob, everything through it", async () => {
    await using dfdaemon = await FakeRegistry.start();
    const image = put(dfdaemon);
    mirror(
      `server = "http://127.0.0.1:1"\n[host."http://${dfdaemon.host}"]\ncapabilities = ["pull", "resolve"]\n`,
      `[host."http://${dfdaemon.host}".header]\nX-Dragonfly-Registry = ["https://reg.example.com"]\n`,
    );
    await fetchLayer("reg.example.com/team/app:v1", image, undefined, { configPath: [root] });
    expect(dfdaemon.rangesOf(image.layers[0]?.digest ?? "?")).toEqual([undefined]);
    expect(dfdaemon.peakBlobs).toBe(1);
    expect(
      dfdaemon.asked.every(({ headers }) => headers["x-dragonfly-registry"] === "https://reg.example.com"),
    ).toBe(true);
  });

  test("Spegel: ?ns=, and what it does not have comes from the registry", async () => {
    await using spegel = await FakeRegistry.start();
    await using origin = await FakeRegistry.start();
    const image = put(origin);
    spegel.behave = () => ({ status: 404 });
    mirror(
      `server = "http://${origin.host}"\n[host."http://${spegel.host}"]\ncapabilities = ["pull", "resolve"]\ndial_timeout = "200ms"\n`,
    );
    const got = await fetchLayer("reg.example.com/team/app:v1", image, login, { configPath: [root] });
    expect(got.equals(image.layers[0]?.bytes ?? Buffer.alloc(0))).toBe(true);
    expect(spegel.asked.length).toBeGreaterThan(1);
    expect(spegel.asked.every(({ query }) => query === "?ns=reg.example.com")).toBe(true);
    expect(spegel.asked.filter(({ authorization }) => authorization !== undefined)).toEqual([]);
  });

  test("headers of hosts.toml are sent, and do not displace what a request needs", async () => {
    await using host = await FakeRegistry.start();
    const image = put(host);
    mirror(
      `server = "http://${host.host}"\n[host]\n[header]\nX-Key = "k"\nAccept-Encoding = "gzip"\nAccept = "text/plain"\n`,
    );
    const got = await fetchLayer("reg.example.com/team/app:v1", image, undefined, {
      configPath: [root],
      hostStreams: new Map([[host.host, 4]]),
    });
    expect(got.equals(image.layers[0]?.bytes ?? Buffer.alloc(0))).toBe(true);
    expect(host.asked.filter(({ headers }) => headers["x-key"] !== "k")).toEqual([]);
    expect(
      host.asked.filter(
        ({ headers }) => headers.accept === "text/plain" || headers["accept-encoding"] === "gzip",
      ),
    ).toEqual([]);
  });

  test.each([true, false])("headers of hosts.toml and a token endpoint of its own: %s", async (isOwn) => {
    await using elsewhere = await FakeRegistry.start();
    await using host = await FakeRegistry.start();
    const image = put(host);
    mirror(`server = "http://${host.host}"\n[host]\n[header]\nX-Key = "k"\n`);
    const tokens = isOwn ? host : elsewhere;
    const guard = guarded("Bearer t-1", `Bearer realm="http://${tokens.host}/token"`);
    const give = json({ access_token: "t-1" });
    elsewhere.behave = () => give;
    host.behave = (asked) => (asked.path === "/token" ? give : guard(asked));
    await fetchLayer("reg.example.com/team/app:v1", image, login, { configPath: [root] });
    const keys = tokens.asked.filter(({ path }) => path === "/token").map(({ headers }) => headers["x-key"]);
    expect(keys).toEqual([isOwn ? "k" : undefined]);
  });

  const never401: Behaviour = { status: 401, headers: { "www-authenticate": 'Negotiate realm="x"' } };
  const deadTokens = 'Bearer realm="http://127.0.0.1:1/token"';
  const failures: Readonly<Record<string, Behaviour | ((asked: Asked) => Behaviour)>> = {
    ...Object.fromEntries(
      [400, 403, 404, 408, 410, 429, 500, 502, 503, 504].map((status) => [status, { status }]),
    ),
    "401 without a challenge": { status: 401 },
    "401 with a challenge that nobody can meet": never401,
    "401 with a token server that is away": { status: 401, headers: { "www-authenticate": deadTokens } },
    "429 for an hour": { status: 429, headers: { "retry-after": "3600" } },
    "a reset before anything": { after: 0, afterwards: "reset" },
    "a reset after a byte": { after: 1, afterwards: "reset" },
    "silence before anything": { after: 0, afterwards: new Promise(() => {}) },
    "silence after a byte": { after: 1, afterwards: new Promise(() => {}) },
    "bytes that are too many": { ignoreRange: true, body: Buffer.alloc(5_000_000, 32) },
    "a redirect to nobody": { status: 307, headers: { location: "http://127.0.0.1:1/" } },
    "a redirect to nowhere": { status: 307 },
    "a redirect out of HTTP": { status: 307, headers: { location: "file:///etc/passwd" } },
    "a redirect in a circle": ({ path }) => ({ status: 302, headers: { location: `${path}?again` } }),
  };
  const ofManifests: typeof failures = {
    "a digest that is none": { headers: { "docker-content-digest": "sha256:nonsense" } },
    "the digest of something else": { headers: { "docker-content-digest": `sha256:${"0".repeat(64)}` } },
    "a page for people": {
      headers: { "content-type": "text/html", "docker-content-digest": "" },
      body: Buffer.from("<p>"),
    },
  };
  const ofBlobs: typeof failures = {
    "bytes that are too few": { body: Buffer.from("short") },
    "another range than asked for": { headers: { "content-range": "bytes 5-9/300" } },
    "a range without Content-Range": { status: 206, body: Buffer.alloc(65_536) },
    "a range of a blob of another length": { headers: { "content-range": "bytes 0-65535/65536" } },
  };

  async function passesOver(
    kind: "manifests" | "blobs",
    behaviour: Behaviour | ((asked: Asked) => Behaviour),
  ) {
    await using bad = await FakeRegistry.start();
    await using origin = await FakeRegistry.start();
    const image = put(origin);
    // It has all of that too, and would serve it, but for what is wrong with it.
    bad.put("team/app:v1", image.layers);
    bad.behave = (asked) => {
      if (!asked.path.includes(`/${kind}/`)) return undefined;
      return typeof behaviour === "function" ? behaviour(asked) : behaviour;
    };
    mirror(`server = "http://${origin.host}"\n[host."http://${bad.host}"]\n`);
    const options = {
      configPath: [root],
      retries: 0,
      progressTimeoutMs: 100,
      hostStreams: new Map([[bad.host, 4]]),
    };
    const bytes = await fetchLayer("reg.example.com/team/app:v1", image, login, options);
    expect(bytes.equals(image.layers[0]?.bytes ?? Buffer.alloc(0))).toBe(true);
    expect(bad.asked.some(({ path }) => path.includes(`/${kind}/`))).toBe(true);
    expect(origin.asked.some(({ path }) => path.includes(`/${kind}/`))).toBe(true);
  }

  test.each(Object.entries({ ...failures, ...ofManifests }))(
    "a mirror is passed over for what it answers to a tag: %s",
    async (_name, behaviour) => {
      await passesOver("manifests", behaviour);
    },
  );

  test.each(Object.entries({ ...failures, ...ofBlobs }))(
    "a mirror is passed over for what it answers to a blob: %s",
    async (_name, behaviour) => {
      await passesOver("blobs", behaviour);
    },
  );
});
