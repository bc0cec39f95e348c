// A registry on the operator's word: from its door to the rate of a layer, each finding in each of its states.

import { randomBytes } from "node:crypto";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { DoctorOptions, RegistryTarget } from "../../src/doctor/doctor.ts";
import { judgeRates, type Sample } from "../../src/doctor/rate.ts";
import { checkRegistry } from "../../src/doctor/registry.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { type Behaviour, FakeRegistry, gate } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { TunnelProxy } from "../fakes/tunnel.ts";
import { all, lines, MadeUpNode } from "./node.ts";

const never = new AbortController().signal;
const big = tarGz([file("x", randomBytes(3_000_000))]);
const credentials = { username: "user", password: "secret-word" };

let node: MadeUpNode;
let fake: FakeRegistry;

beforeEach(async () => {
  node = new MadeUpNode();
  node.folder("/certs.d");
  fake = await FakeRegistry.start();
  fake.put("a/big:v1", [{ bytes: tarGz([file("y")]) }, { bytes: big }]);
  fake.put("a/small:v1", [{ bytes: tarGz([file("z")]) }]);
});

afterEach(async () => {
  node[Symbol.dispose]();
  await fake[Symbol.asyncDispose]();
});

/** Findings without what differs from run to run: ports, times and rates. */
async function found(
  target: Partial<RegistryTarget> & { readonly image?: string } = {},
  options: Partial<DoctorOptions> = {},
): Promise<string[]> {
  const { image, ...more } = target;
  const reference = image === undefined ? undefined : parseReference(image);
  const asked = { host: reference?.host ?? fake.host, reference, credentials: undefined, ...more };
  const configPath = [node.context().tree.at("/certs.d")];
  const context = node.context({ configPath, ...options });
  const text = lines(await all(checkRegistry(context, asked, never))).map(plain);
  expect(text.join("\n")).not.toContain("secret-word");
  return text;
}

function plain(line: string): string {
  return line
    .replaceAll(/127\.0\.0\.1:\d+/g, "HOST")
    .replace(/ \(\d+ ms\)/, "")
    .replaceAll(/\d+\.\d MB\/s/g, "N MB/s")
    .replaceAll(/sha256:\w+/g, "DIGEST")
    .replace(/^(?:ok|slow) rate: one connection .*$/, "rate: measured")
    .replace(/^(?:ok|slow) TCP: (.*?)(?: -> .*)?$/, "TCP: $1");
}

const image = (name: string): { image: string } => ({ image: `${fake.host}/${name}` });
const door = [
  "TCP: HOST, connected to HOST",
  "ok authorization: none asked for at the door",
  "ok clock: agrees with this node's",
];

/** The registry's answer at its door. */
function atDoor(behaviour: Behaviour): void {
  fake.behave = ({ path }) => (path === "/v2/" ? behaviour : undefined);
}

describe("its door", () => {
  test("without an image there is nothing to measure", async () => {
    expect(await found()).toEqual([
      ...door,
      "unknown rate: not measured without an image -> hawser doctor --registry HOST/REPOSITORY:TAG",
    ]);
  });

  test.each<[string, Behaviour, string]>([
    [
      "tokens",
      {
        status: 401,
        headers: {
          "www-authenticate": 'Bearer realm="https://auth.example.com/token?a=secret-word",service="s"',
        },
      },
      "ok authorization: tokens from https://auth.example.com/token",
    ],
    ["basic", { status: 401, headers: { "www-authenticate": 'Basic realm="r"' } }, "ok authorization: basic"],
    [
      "something else",
      { status: 401, headers: { "www-authenticate": "Negotiate" } },
      "broken authorization: asks for negotiate, and only basic and bearer are known -> use a registry or mirror with one of these",
    ],
    [
      "nothing",
      { status: 401 },
      "broken authorization: asks for nothing that is understood, and only basic and bearer are known -> use a registry or mirror with one of these",
    ],
    [
      "trouble",
      { status: 503 },
      "broken authorization: http://HOST/v2/ answers 503, where a registry answers 200 or 401 -> look at the registry's own log, and at override_path in hosts.toml",
    ],
    [
      "no registry",
      { status: 404 },
      "broken authorization: http://HOST/v2/ answers 404, where a registry answers 200 or 401 -> look at the registry's own log, and at override_path in hosts.toml",
    ],
    [
      "some other answer",
      { status: 403 },
      "slow authorization: http://HOST/v2/ answers 403, where a registry answers 200 or 401 -> look at the registry's own log, and at override_path in hosts.toml",
    ],
  ])("%s", async (_name, behaviour, expected) => {
    atDoor(behaviour);
    expect((await found())[1]).toBe(expected);
  });

  test("a clock of its own", async () => {
    atDoor({ status: 200, headers: { date: new Date(Date.now() + 3_600_000).toUTCString() } });
    expect((await found())[2]).toMatch(/^broken clock: 3\d\d\d s ahead of this node's -> /);
  });

  test("no answer at all", async () => {
    fake.behave = () => ({ body: Buffer.from("x"), headers: { "content-length": "y" } });
    const text = await found();
    expect(text[1]).toMatch(
      /^broken API: no answer to http:\/\/HOST\/v2\/: .* -> see whether a registry is there$/,
    );
    expect(text).toHaveLength(2);
  });

  test("nobody", async () => {
    expect(await found({ host: "127.0.0.1:1" })).toEqual([
      "broken TCP: HOST: nobody listens there -> start it, or look at its port",
    ]);
  });
});

describe("an image", () => {
  test("its largest layer, over one connection and several", async () => {
    const [layer] = fake.put("a/big:v1", [{ bytes: big }]).layers;
    // Parts end only when all four are on their way.
    const together = gate();
    fake.behave = ({ path, range }) => {
      if (!path.includes("/blobs/") || /^bytes=0-(?:1023|3\d{6})$/.test(range ?? "")) return undefined;
      if (fake.openBlobs === 3) together.open();
      return { after: 10, afterwards: together.opened };
    };
    expect(await found(image("a/big:v1"))).toEqual([
      ...door,
      "ok image: HOST/a/big:v1 can be pulled",
      "ok ranges: served",
      "rate: measured",
    ]);
    const ranges = fake.rangesOf(layer?.digest ?? "");
    expect(ranges[0]).toBe("bytes=0-1023");
    expect(ranges[1]).toBe(`bytes=0-${big.length - 1}`);
    expect(ranges.slice(2)).toHaveLength(4);
    expect(fake.peakBlobs).toBe(4);
  });

  test("one connection where the configuration says so", async () => {
    const [layer] = fake.put("a/big:v1", [{ bytes: big }]).layers;
    await found(image("a/big:v1"), { hostStreams: new Map([[fake.host, 1]]) });
    expect(fake.rangesOf(layer?.digest ?? "")).toHaveLength(2);
  });

  test("without ranges", async () => {
    fake.behave = ({ path }) => (path.includes("/blobs/") ? { ignoreRange: true } : undefined);
    expect((await found(image("a/big:v1"))).slice(4)).toEqual([
      "slow ranges: not served: one connection for each layer, and no going on after a break -> use a registry, mirror or proxy that serves ranges",
      "rate: measured",
    ]);
    expect(fake.peakBlobs).toBe(1);
  });

  test("with a wrong range", async () => {
    fake.behave = ({ path, range }) =>
      path.includes("/blobs/") && range ? { headers: { "content-range": "bytes 5-6/7" } } : undefined;
    expect((await found(image("a/big:v1"))).at(-1)).toMatch(
      /^broken layers: a layer cannot be read: asked for bytes 0-1023\/\d+ and got "bytes 5-6\/7" -> look at the registry's own log$/,
    );
  });

  test("too small to measure, and without layers", async () => {
    expect((await found(image("a/small:v1"))).at(-1)).toMatch(
      /^unknown rate: the largest layer has only \d+ bytes -> name an image with a larger layer$/,
    );
    fake.put("a/none:v1", []);
    expect((await found(image("a/none:v1"))).at(-1)).toBe(
      "unknown rate: the image has no layers -> name another image",
    );
  });

  test("that is not there", async () => {
    expect((await found(image("a/none:v2"))).slice(3)).toEqual([
      "broken image: HOST/a/none:v2 is not there -> look at the name and tag",
    ]);
  });

  test("a layer that is not there", async () => {
    fake.behave = ({ path }) => (path.includes("/blobs/") ? { status: 404 } : undefined);
    expect((await found(image("a/big:v1"))).at(-1)).toMatch(
      /^broken layers: a layer cannot be read: .*404 Not Found/,
    );
  });

  test("a registry that is asked too often", async () => {
    fake.behave = ({ path }) => (path.includes("/manifests/") ? { status: 429 } : undefined);
    expect((await found(image("a/big:v1"))).at(-1)).toMatch(
      /^broken image: .*429 Too Many Requests -> look at the registry's own log$/,
    );
  });
});

describe("credentials", () => {
  beforeEach(() => {
    const right = `Basic ${Buffer.from("user:secret-word").toString("base64")}`;
    fake.behave = ({ authorization }) =>
      authorization === right
        ? undefined
        : { status: 401, headers: { "www-authenticate": 'Basic realm="r"' } };
  });

  test("that are asked for, right, and wrong", async () => {
    expect((await found(image("a/small:v1")))[3]).toBe(
      "broken image: no basic auth credentials -> give credentials with --creds-stdin",
    );
    expect((await found({ ...image("a/small:v1"), credentials }))[3]).toBe(
      "ok image: HOST/a/small:v1 can be pulled",
    );
    const wrong = { username: "user", password: "other" };
    expect((await found({ ...image("a/small:v1"), credentials: wrong }))[3]).toMatch(
      /^broken image: .* -> look at the credentials, and at what they may read$/,
    );
  });
});

describe("several hosts", () => {
  test("each by its name: a mirror that is down, one that has not got it, one that does not resolve", async () => {
    await using empty = await FakeRegistry.start();
    await using partial = await FakeRegistry.start();
    node.write(
      "/certs.d/reg.example.com/hosts.toml",
      `server = "http://${fake.host}"
[host."http://127.0.0.1:1"]
[host."http://${empty.host}"]
[host."http://${partial.host}"]
capabilities = ["pull"]
`,
    );
    const text = await found({ image: "reg.example.com/a/small:v1" });
    expect(text.filter((line) => !/TCP|clock|authorization/.test(line))).toEqual([
      "unknown HOST image: reg.example.com/a/small:v1 is not there; a pull asks the next host",
      "unknown HOST image: hosts.toml does not let it say what a tag stands for",
      "ok HOST image: reg.example.com/a/small:v1 can be pulled",
      "ok HOST ranges: served",
      expect.stringMatching(/^unknown HOST rate/) as string,
    ]);
    expect(text[0]).toBe(
      "slow HOST TCP: HOST: nobody listens there; pulls can do without this host -> start it, or look at its port",
    );
    expect(empty.asked[0]?.query).toBe("");
    expect(empty.asked[1]?.query).toBe("?ns=reg.example.com");
  });

  const hosts = (...urls: readonly string[]): void =>
    node.write(
      "/certs.d/reg.example.com/hosts.toml",
      `server = "http://127.0.0.1:1"\n${urls.map((url) => `[host."${url}"]\n`).join("")}`,
    );
  const states = (text: readonly string[]): string[] =>
    text.filter((line) => line.includes("nobody listens")).map((line) => line.split(" ", 1)[0] ?? "");

  test("a registry behind a mirror that has it need not be there", async () => {
    hosts(`http://${fake.host}`);
    expect(states(await found({ image: "reg.example.com/a/small:v1" }))).toEqual(["slow"]);
    expect(states(await found({ host: "reg.example.com" }))).toEqual(["slow"]);
  });

  test("a registry behind mirrors that are down, or have not got it, must be there", async () => {
    hosts("http://127.0.0.1:2");
    expect(states(await found({ image: "reg.example.com/a/small:v1" }))).toEqual(["slow", "broken"]);
    hosts(`http://${fake.host}`);
    expect(states(await found({ image: "reg.example.com/a/none:v1" }))).toEqual(["broken"]);
    atDoor({ status: 503 });
    expect(states(await found({ host: "reg.example.com" }))).toEqual(["broken"]);
  });

  test("more hosts than are tried", async () => {
    hosts(...Array.from({ length: 9 }, (_, index) => `http://127.0.0.1:${index + 2}`));
    expect((await found({ host: "reg.example.com" })).at(-1)).toBe(
      "unknown hosts: only the first 8 of 10 were tried",
    );
  });

  test("certs.d of a containerd that does not answer", async () => {
    expect((await found({}, { configPath: undefined }))[0]).toBe(
      "unknown certs.d: not looked at, since containerd does not say where it is: containerd does not answer",
    );
  });
});

test("the daemon's proxy is used, not this shell's", async () => {
  await using proxy = await TunnelProxy.start(fake.host);
  node.process(8, {
    command: ["node", "main.js", "serve"],
    listens: ["/run/hawser/hawser.sock"],
    environment: { HTTP_PROXY: `http://user:secret-word@${proxy.host}` },
  });
  node.write("/certs.d/reg.invalid/hosts.toml", 'server = "http://reg.invalid"\n[host]\n');
  const options = { environment: { HTTP_PROXY: "http://127.0.0.1:1" } };
  const text = await found({ image: "reg.invalid/a/small:v1" }, options);
  expect(text.slice(0, 2).join("\n")).toContain("proxy http://HOST (with credentials)");
  expect(text).toContain("ok image: reg.invalid/a/small:v1 can be pulled");
});

describe("what rates mean", () => {
  const sample = (streams: number, megabytes: number): Sample => ({
    streams,
    bytes: megabytes * 2e6,
    seconds: 2,
  });

  test.each([
    [sample(1, 80), sample(8, 300), "ok rate: one connection 80.0 MB/s, 8 together 300.0 MB/s"],
    [sample(1, 80), undefined, "ok rate: one connection 80.0 MB/s"],
    [sample(1, 10), sample(8, 80), "ok rate: one connection 10.0 MB/s, 8 together 80.0 MB/s"],
    [
      sample(1, 2),
      sample(8, 10),
      "slow rate: one connection 2.0 MB/s, 8 together 10.0 MB/s: a gigabyte takes 100 s or more -> put a mirror near this node, or look at what is in between; no pull can be faster than this",
    ],
    [
      sample(1, 0),
      undefined,
      "slow rate: one connection 0.0 MB/s: a gigabyte takes 10000 s or more -> put a mirror near this node, or look at what is in between; no pull can be faster than this",
    ],
    [
      sample(1, 100),
      sample(8, 40),
      "slow rate: one connection 100.0 MB/s, 8 together 40.0 MB/s: connections get in each other's way -> set streams = 1 in [registry.host.\"reg:5000\"] of Hawser's configuration",
    ],
  ])("%j %j", (one, several, expected) => {
    expect(lines([judgeRates(one, several, "reg:5000")])).toEqual([expected]);
  });
});
