// Who is asked for what: whatever hosts.toml says and however mirrors fail, Hawser asks the hosts that containerd asks,
// in containerd's order, by the same paths and with the same headers. Each case is pulled by containerd itself first.

import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ForwardProxy } from "../fakes/forward.ts";
import { type Asked, type Behaviour, FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { Authority, readPair } from "../harness/authority.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { containerdRelease, minors } from "../harness/versions.ts";

let authority: Authority;
let stranger: Authority;
let mirror: FakeRegistry;
let origin: FakeRegistry;
/** The only one that speaks TLS. */
let secure: FakeRegistry;
let six: FakeRegistry;
/** Ends every connection as soon as it is asked something. */
let hangup: Server;
/** Answers, but not in HTTP. */
let noise: Server;
let certs = "";
let images = 0;

beforeAll(async () => {
  authority = new Authority();
  stranger = new Authority();
  certs = mkdtempSync(join(tmpdir(), "certs.d-"));
  const tls = readPair(authority.issue("server"));
  [mirror, origin, secure, six] = await Promise.all([
    FakeRegistry.start(),
    FakeRegistry.start(),
    FakeRegistry.start(tls),
    FakeRegistry.start(undefined, "::1"),
  ]);
  hangup = createServer((socket) => socket.once("data", () => socket.end()));
  noise = createServer((socket) => socket.once("data", () => socket.end("220 mail.example ESMTP\r\n")));
  for (const server of [hangup, noise]) {
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
  }
});

afterAll(async () => {
  await Promise.all([mirror, origin, secure, six].map((fake) => fake[Symbol.asyncDispose]()));
  for (const server of [hangup, noise]) server.close();
  rmSync(certs, { recursive: true });
  stranger[Symbol.dispose]();
  authority[Symbol.dispose]();
});

interface Case {
  /** hosts.toml; MIRROR, ORIGIN and the like stand for the hosts, AUTHORITY and STRANGER for their files. */
  readonly toml: string;
  /** The folder that it lies in; its host is the one that is named. */
  readonly folder?: string;
  readonly mirror?: (asked: Asked) => Behaviour | undefined;
  /** Headers that must be alike as well. */
  readonly headers?: readonly string[];
}

const first = (lines = "", path = ""): string =>
  `server = "http://ORIGIN"\n[host."http://MIRROR${path}"]\n${lines}\n`;
const missing = (): Behaviour => ({ status: 404 });

const cases: Readonly<Record<string, Case>> = {
  "a mirror that has everything": {
    toml: first(),
    headers: ["accept", "authorization"],
  },
  "a mirror without blobs": {
    toml: first(),
    mirror: ({ path }) => (path.includes("/blobs/") ? missing() : undefined),
  },
  "a mirror that may not resolve": { toml: first('capabilities = ["pull"]') },
  "capabilities in any case": { toml: first('capabilities = ["Pull", "RESOLVE"]') },
  "no capabilities, which is all of them": { toml: first("capabilities = []") },
  "a mirror that nobody listens at": {
    toml: 'server = "http://ORIGIN"\n[host."http://127.0.0.1:1"]\n',
  },
  "a mirror that hangs up": { toml: 'server = "http://ORIGIN"\n[host."http://HANGUP"]\n' },
  "a mirror that does not speak HTTP": { toml: 'server = "http://ORIGIN"\n[host."http://NOISE"]\n' },
  "a mirror that is not trusted": { toml: 'server = "http://ORIGIN"\n[host."https://SECURE"]\n' },
  "a mirror that does not speak TLS": { toml: 'server = "http://ORIGIN"\n[host."https://MIRROR"]\n' },
  IPv6: { toml: `server = "http://SIX"\n[host]\n` },
  "_default, for hosts without a folder": { toml: first(), folder: "_default", mirror: missing },
  "three hosts in a row": {
    toml: `${first()}[host."http://127.0.0.1:1"]\n`,
    mirror: missing,
  },
  "a path": { toml: first("", "/api"), mirror: missing },
  "a path that says v2": { toml: first("", "/api/v2/"), mirror: missing },
  "a path that is not quite clean": { toml: first("", "/a//b/../c"), mirror: missing },
  "a path that is the root of the API": {
    toml: first("override_path = true", "/api/"),
    mirror: missing,
  },
  "no path, and that is the root of the API": { toml: first("override_path = true"), mirror: missing },
  "a query and a user in a host's URL": {
    toml: 'server = "http://ORIGIN"\n[host."http://user:word@MIRROR/api?x=y#z"]\n',
    mirror: missing,
    headers: ["authorization"],
  },
  headers: {
    toml: `${first()}[host."http://MIRROR".header]\nX-One = "1"\nx-two = ["a", "b"]\nAuthorization = "Basic Zm9vOmJhcg=="\n`,
    headers: ["x-one", "x-two", "authorization"],
  },
  "no server: the host itself": {
    toml: '[host."http://MIRROR"]\n',
    folder: "ORIGIN",
    mirror: missing,
  },
  "an empty server, in a folder named host_port_": {
    toml: 'server = ""\n[host."http://MIRROR"]\n',
    folder: "ORIGIN_",
    mirror: missing,
  },
  "a server alone": { toml: 'server = "http://MIRROR"\n[host]\n', folder: "ORIGIN" },
  "http, with settings for TLS that nobody needs": { toml: first("skip_verify = true") },
};

/** containerd 1.6 takes http for http. */
const sinceOneSeven: Readonly<Record<string, Case>> = {
  "http, with an authority: TLS goes first": {
    toml: 'server = "http://ORIGIN"\n[host."http://SECURE"]\nca = "AUTHORITY"\n',
  },
  "http, with skip_verify: TLS goes first": {
    toml: 'server = "http://ORIGIN"\n[host."http://SECURE"]\nskip_verify = true\n',
  },
  "http, with an authority that is not its own: no host for us": {
    toml: 'server = "http://ORIGIN"\n[host."http://SECURE"]\nca = "STRANGER"\n',
  },
};

const statuses = [400, 401, 403, 404, 405, 408, 410, 418, 429, 500, 502, 503, 504];

describe.each(minors)("beside containerd %s", (minor) => {
  let containerd: PrivateContainerd;
  let hawser: PrivateHawser;

  beforeAll(async () => {
    const release = containerdRelease(minor);
    // A list, of which 2.1 takes only the whole for one folder.
    const configPath = minor === "2.1" ? certs : `${certs}/elsewhere:${certs}`;
    containerd = await PrivateContainerd.start({ release, configPath });
    const config = "[download]\nretries = 0\n[fallback]\nbreaker_failures = 1000";
    hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  });

  afterAll(async () => {
    await hawser[Symbol.asyncDispose]();
    await containerd[Symbol.asyncDispose]();
  });

  /** A pull of a new image, which all fakes have: for each kind of thing, who was asked for it, and how. */
  async function pull(by: "containerd" | "hawser", given: Case) {
    images += 1;
    const repository = `team/app${images}`;
    const layers = [{ bytes: tarGz([file("noise", randomBytes(1000))]) }];
    const image = [mirror, origin, secure, six].map((fake) => fake.put(`${repository}:v1`, layers))[0];
    const asked: [string, string][] = [];
    const names: [FakeRegistry, string][] = [
      [mirror, "MIRROR"],
      [origin, "ORIGIN"],
      [secure, "SECURE"],
      [six, "SIX"],
    ];
    for (const [fake, name] of names) {
      fake.behave = (request) => {
        if (request.headers["user-agent"]?.startsWith(by) !== true) return undefined;
        const kind = kindOf(request.path);
        const path = request.path.replace(repository, "REPOSITORY").replace(/[^/]+$/, "");
        const headers = (given.headers ?? []).map(
          (header) => `${header}: ${String(request.headers[header])}`,
        );
        asked.push([kind, [name, path + request.query, ...headers].join(" ")]);
        return fake === mirror ? given.mirror?.(request) : undefined;
      };
    }
    const kindOf = (path: string): string => {
      if (path.endsWith("/manifests/v1")) return "tag";
      if (path.endsWith(image?.configDigest ?? "?")) return "config";
      return path.endsWith(image?.layers[0]?.digest ?? "?") ? "layer" : "manifest";
    };
    const host = given.folder?.startsWith("ORIGIN") ? origin.host : "reg.example.com";
    const client = by === "hawser" ? hawser.cri : containerd.cri;
    const reply = await client.pull(`${host}/${repository}:v1`);
    for (const [fake] of names) fake.behave = () => undefined;
    const ofKind = (kind: string): string[] => [
      ...new Set(asked.filter(([one]) => one === kind).map(([, how]) => how)),
    ];
    const isPulled = "value" in reply && reply.value === image?.configDigest;
    return { isPulled, tag: ofKind("tag"), config: ofKind("config"), layer: ofKind("layer") };
  }

  async function compare(given: Case): Promise<void> {
    rmSync(certs, { recursive: true, force: true });
    const folder = (given.folder ?? "reg.example.com")
      .replace(/^ORIGIN_$/, `${origin.host.replace(":", "_")}_`)
      .replace("ORIGIN", origin.host);
    mkdirSync(join(certs, folder), { recursive: true });
    const toml = given.toml
      .replaceAll("MIRROR", mirror.host)
      .replaceAll("ORIGIN", origin.host)
      .replaceAll("SECURE", secure.host)
      .replaceAll("SIX", six.host)
      .replaceAll("HANGUP", hostOf(hangup))
      .replaceAll("NOISE", hostOf(noise))
      .replaceAll("AUTHORITY", authority.cert)
      .replaceAll("STRANGER", stranger.cert);
    writeFileSync(join(certs, folder, "hosts.toml"), toml);
    const theirs = await pull("containerd", given);
    const before = await hawser.metrics();
    expect(await pull("hawser", given)).toEqual(theirs);
    expect(theirs.isPulled).toBe(true);
    expect(accelerated(await hawser.metrics())).toBe(accelerated(before) + 1);
  }

  test.each(Object.entries(cases))("%s", async (_name, given) => {
    await compare(given);
  });

  test.each(minor === "1.6" ? [] : Object.entries(sinceOneSeven))("%s", async (_name, given) => {
    await compare(given);
  });

  test.each(statuses)("a mirror that says %i", async (status) => {
    await compare({ toml: first(), mirror: () => ({ status }) });
  });
});

describe("through a proxy that the environment names", () => {
  test("http is fetched and https tunnelled, as by containerd, and its password is in nothing that is said", async () => {
    const tls = readPair(authority.issue("named", ["secure.invalid"]));
    await using named = await FakeRegistry.start(tls);
    await using proxy = await ForwardProxy.start(
      new Map([
        ["plain.invalid:80", origin.host],
        ["secure.invalid:443", named.host],
      ]),
    );
    const address = `http://some%40body:pass%20word@${proxy.host}`;
    const env = { HTTP_PROXY: address, HTTPS_PROXY: address, NO_PROXY: "other.invalid" };
    rmSync(certs, { recursive: true, force: true });
    for (const [name, server] of Object.entries({ p: "http://plain.invalid", s: "https://secure.invalid" })) {
      mkdirSync(join(certs, `${name}.example.com`), { recursive: true });
      const toml = `server = "${server}"\n${name === "s" ? `ca = "${authority.cert}"\n` : ""}[host]\n`;
      writeFileSync(join(certs, `${name}.example.com`, "hosts.toml"), toml);
    }
    await using containerd = await PrivateContainerd.start({ configPath: certs, env });
    await using hawser = await PrivateHawser.start({ containerd: containerd.address, env });
    for (const by of ["containerd", "hawser"] as const) {
      for (const name of ["p", "s"]) {
        const layers = [{ bytes: tarGz([file("noise", randomBytes(1000))]) }];
        const [image] = [origin, named].map((fake) => fake.put(`${by}/app:v1`, layers));
        const client = by === "hawser" ? hawser.cri : containerd.cri;
        expect(await client.pull(`${name}.example.com/${by}/app:v1`)).toEqual({ value: image?.configDigest });
      }
    }
    const login = `Basic ${Buffer.from("some@body:pass word").toString("base64")}`;
    const ways = proxy.asked.map(({ method, target }) => {
      return method === "CONNECT" ? `tunnel ${target}` : `fetch ${new URL(target).origin}`;
    });
    expect(new Set(ways)).toEqual(new Set(["fetch http://plain.invalid", "tunnel secure.invalid:443"]));
    expect(proxy.asked.filter((asked) => asked.login !== login)).toEqual([]);
    const fetches = proxy.asked.filter(({ method }) => method !== "CONNECT");
    expect(fetches.filter(({ agent }) => agent?.startsWith("hawser/")).length).toBeGreaterThan(2);
    expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 2');
    expect(`${hawser.logs()}${await hawser.metrics()}`).not.toMatch(/pass(%20| )word|c29tZUBib2R5/);
  });
});

function hostOf(server: Server): string {
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function accelerated(metrics: string): number {
  return Number(/hawser_pulls_total\{result="ok",path="accelerated"\} (\d+)/.exec(metrics)?.[1] ?? 0);
}
