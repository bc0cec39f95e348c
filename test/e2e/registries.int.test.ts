// Real registries, as they are set up: TLS, client certificates, token servers and blob stores elsewhere. containerd
// pulls by itself, then through Hawser; both must end alike, and no secret may be anywhere but where it belongs.

import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { IncomingMessage } from "node:http";
import { get } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { ForwardProxy } from "../fakes/forward.ts";
import { dir, file, symlink, tarGz } from "../fakes/tar.ts";
import { Authority, type KeyPair } from "../harness/authority.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import type { Auth, Reply } from "../harness/cri.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { type PushedImage, pushImage } from "../harness/images.ts";
import { expectSame, settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";
import { PrivateRegistry, type Request } from "../harness/registry.ts";
import { BlobStore, RegistryFront } from "../harness/storefront.ts";
import { TokenServer, tokenService } from "../harness/tokens.ts";

const user = { username: "robot", password: `pass-${randomBytes(12).toString("hex")}` };
const identityToken = `identity-${randomBytes(12).toString("hex")}`;

let authority: Authority;
let server: KeyPair;
let signer: Authority;
/** Without TLS and without asking who is there: images are pushed here. */
let plain: PrivateRegistry;
let app: PushedImage;
let open: PushedImage;
let certs = "";
let host = "";
let theirs: PrivateContainerd;
let ours: PrivateContainerd;
let hawser: PrivateHawser;

beforeAll(async () => {
  authority = new Authority();
  server = authority.issue("server", ["127.0.0.1", "127.0.0.2"]);
  signer = new Authority();
  plain = await PrivateRegistry.start();
  const layers = [1, 2, 3].map((number) => ({
    bytes: tarGz([
      dir(`layer-${number}`),
      file(`layer-${number}/noise`, randomBytes(300_000)),
      symlink("last", `layer-${number}`),
    ]),
  }));
  app = await pushImage(plain, "team/app:v1", layers, { index: true });
  open = await pushImage(plain, "public/tools:v1", layers.slice(0, 1));
});

afterAll(async () => {
  await plain[Symbol.asyncDispose]();
  signer[Symbol.dispose]();
  authority[Symbol.dispose]();
});

beforeEach(async () => {
  certs = mkdtempSync(join(tmpdir(), "certs.d-"));
  const options = { configPath: certs };
  [theirs, ours] = await Promise.all([PrivateContainerd.start(options), PrivateContainerd.start(options)]);
  const config = '[download]\nchunk_size = "64KiB"\n[log]\nlevel = "trace"';
  hawser = await PrivateHawser.start({ containerd: ours.address, config });
});

afterEach(async () => {
  await hawser[Symbol.asyncDispose]();
  await Promise.all([ours[Symbol.asyncDispose](), theirs[Symbol.asyncDispose]()]);
  rmSync(certs, { recursive: true });
});

/** What hosts.toml says of this host, which names ask for from now on. */
function configure(address: string, lines: readonly string[] = [`ca = "${authority.cert}"`]): void {
  host = address;
  mkdirSync(join(certs, host));
  const text = [`server = "https://${host}"`, ...lines, "[host]", ""];
  writeFileSync(join(certs, host, "hosts.toml"), text.join("\n"));
}

const named = ({ reference }: PushedImage): string => reference.replace(/^[^/]+/, host);

async function startTokens(): Promise<TokenServer> {
  return await TokenServer.start({ tls: server, signer: signer.pair, user, identityToken });
}

/** A registry over TLS with the images of the plain one. */
async function startRegistry(
  options: { clients?: string; tokens?: TokenServer } = {},
): Promise<PrivateRegistry> {
  return await PrivateRegistry.start({
    store: plain.store,
    tls: { ...server, ...(options.clients !== undefined && { clients: options.clients }) },
    ...(options.tokens && { tokens: { realm: options.tokens.realm, signer: signer.cert } }),
  });
}

/**
 * An answer without the name of the loop in Go's HTTP client that a broken handshake came up in: whichever of its two
 * reads or writes first tells it, and containerd alone answers now one, now the other.
 */
function plainly(reply: Reply<string>): Reply<string> {
  return "message" in reply
    ? { ...reply, message: reply.message.replace("readLoopPeekFailLocked: ", "") }
    : reply;
}

/** By containerd alone and through Hawser, with the same answer; returned is what it was. */
async function pull(image: PushedImage, auth?: Auth, between: () => void = () => {}): Promise<Reply<string>> {
  const answer = plainly(await theirs.cri.pull(named(image), auth));
  between();
  expect(plainly(await hawser.cri.pull(named(image), auth))).toEqual(answer);
  await settled(ours);
  return answer;
}

async function pullAccelerated(image: PushedImage, auth?: Auth, between?: () => void): Promise<void> {
  expect(await pull(image, auth, between)).toEqual({ value: image.config.digest });
  await expectSame(ours, theirs, [named(image)]);
  const metrics = await hawser.metrics();
  expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  expect(metrics).not.toContain("hawser_fallbacks_total{");
}

/** Nothing that Hawser says holds a secret. */
async function expectSilence(tokens: TokenServer, more: readonly string[] = []): Promise<void> {
  const pair = Buffer.from(`${user.username}:${user.password}`).toString("base64");
  const secrets = [user.password, pair, identityToken, ...tokens.issued, ...more];
  const said = `${hawser.logs()}\n${await hawser.metrics()}`;
  expect(said.length).toBeGreaterThan(1000);
  for (const secret of secrets) expect(said).not.toContain(secret);
}

const byHawser = ({ agent }: { readonly agent: string }): boolean => agent.startsWith("hawser/");

/** Waits until the registry believes a token no longer. */
async function untilRefused(registry: PrivateRegistry, token: string): Promise<void> {
  const options = { headers: { authorization: `Bearer ${token}` }, ca: readFileSync(authority.cert) };
  await eventually(async () => {
    const [answer] = (await once(get(`https://${registry.host}/v2/`, options), "response")) as [
      IncomingMessage,
    ];
    answer.resume();
    expect(answer.statusCode).toBe(401);
  }, "the token's end");
}

/** Since Hawser was asked, containerd asked for nothing, and Hawser fetched each layer in ranges over several connections, and containerd none. */
function expectRanges(registry: PrivateRegistry, requests: readonly Request[], image: PushedImage): void {
  expect(requests.filter(({ agent }) => agent.startsWith("containerd/"))).toEqual([]);
  for (const { digest } of image.layers) {
    const path = `/v2/${image.repository}/blobs/${digest}`;
    const fetched = requests.filter((one) => one.method === "GET" && one.path.startsWith(path));
    expect(fetched.filter(({ agent }) => !agent.startsWith("hawser/"))).toEqual([]);
    expect(fetched.filter(({ status }) => status === 206).length).toBeGreaterThan(2);
    expect(registry.connectionsTo(path, "hawser/").size).toBeGreaterThan(1);
  }
}

describe("TLS", () => {
  test("a private authority: ranges over several connections, and the same image", async () => {
    await using registry = await startRegistry();
    configure(registry.host);
    let before = 0;
    await pullAccelerated(app, undefined, () => {
      before = registry.requests().length;
    });
    expectRanges(registry, registry.requests().slice(before), app);
  });

  test("without its authority nobody pulls, and nobody does so unencrypted", async () => {
    await using registry = await startRegistry();
    configure(registry.host, []);
    expect(await pull(app)).toHaveProperty("message", expect.stringContaining("unknown authority"));
    expect(registry.requests()).toEqual([]);
  });

  test("a client certificate, in files of its own and relative to the folder", async () => {
    await using registry = await startRegistry({ clients: authority.cert });
    const client = authority.issue("node");
    const relative = client.cert.slice(authority.folder.length + 1);
    configure(registry.host, [`ca = ["${authority.cert}"]`, `client = [["${relative}", "${client.key}"]]`]);
    copyFileSync(client.cert, join(certs, registry.host, relative));
    let before = 0;
    await pullAccelerated(app, undefined, () => {
      before = registry.requests().length;
    });
    expectRanges(registry, registry.requests().slice(before), app);
  });

  test("without a client certificate the registry ends the handshake, for both alike", async () => {
    await using registry = await startRegistry({ clients: authority.cert });
    configure(registry.host);
    expect(await pull(app)).toHaveProperty("message", expect.stringContaining("tls: bad certificate"));
    expect(registry.requests()).toEqual([]);
  });
});

test("Docker's layout: an authority and a client certificate beside each other, through a proxy", async () => {
  const pair = authority.issue("named", ["reg.invalid"]);
  const client = authority.issue("docker");
  await using registry = await PrivateRegistry.start({
    store: plain.store,
    tls: { ...pair, clients: authority.cert },
  });
  await using proxy = await ForwardProxy.start(new Map([["reg.invalid:443", registry.host]]));
  mkdirSync(join(certs, "reg.invalid"));
  for (const [from, to] of [
    [authority.cert, "ca.crt"],
    [client.cert, "client.cert"],
    [client.key, "client.key"],
  ] as const)
    copyFileSync(from, join(certs, "reg.invalid", to));
  const env = { HTTPS_PROXY: `http://${proxy.host}` };
  await using alone = await PrivateContainerd.start({ configPath: certs, env });
  await using behind = await PrivateContainerd.start({ configPath: certs, env });
  const config = '[download]\nchunk_size = "64KiB"';
  await using fast = await PrivateHawser.start({ containerd: behind.address, config, env });
  const reference = app.reference.replace(/^[^/]+/, "reg.invalid");
  expect(await alone.cri.pull(reference)).toEqual({ value: app.config.digest });
  const before = registry.requests().length;
  expect(await fast.cri.pull(reference)).toEqual({ value: app.config.digest });
  await settled(behind);
  await expectSame(behind, alone, [reference]);
  expect(await fast.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  expectRanges(registry, registry.requests().slice(before), app);
});

describe("a token server", () => {
  test.each([
    ["POST", undefined, ["password"]],
    ["GET, where POST is not served", 404, ["password", "basic"]],
  ])("%s: one token for all that Hawser fetches", async (_name, postStatus, grants) => {
    await using tokens = await startTokens();
    await using registry = await startRegistry({ tokens });
    configure(registry.host);
    tokens.postStatus = postStatus;
    let before = 0;
    await pullAccelerated(app, user, () => {
      before = registry.requests().length;
    });
    expectRanges(registry, registry.requests().slice(before), app);
    expect(tokens.asked.filter(byHawser).map(({ grant }) => grant)).toEqual(grants);
    for (const { service, scopes } of tokens.asked) {
      expect([service, scopes]).toEqual([tokenService, ["repository:team/app:pull"]]);
    }
    await expectSilence(tokens);
  });

  test("an identity token stands in for a password", async () => {
    await using tokens = await startTokens();
    await using registry = await startRegistry({ tokens });
    configure(registry.host);
    await pullAccelerated(app, { identityToken });
    expect(tokens.asked.filter(byHawser).map(({ grant }) => grant)).toEqual(["refresh_token"]);
    await expectSilence(tokens);
  });

  test("what is public needs no credentials, and what is not is refused without", async () => {
    await using tokens = await startTokens();
    await using registry = await startRegistry({ tokens });
    configure(registry.host);
    await pullAccelerated(open);
    expect(new Set(tokens.asked.map(({ grant }) => grant))).toEqual(new Set(["anonymous"]));
    expect(await pull(app)).toHaveProperty("message", expect.stringContaining("insufficient_scope"));
  });

  test("wrong credentials are refused in containerd's words, and shown no oftener than by containerd", async () => {
    await using tokens = await startTokens();
    await using registry = await startRegistry({ tokens });
    configure(registry.host);
    const wrong = { ...user, password: `${user.password}-no-more` };
    expect(await pull(app, wrong)).toHaveProperty("message", expect.stringContaining("401 Unauthorized"));
    const strikes = tokens.asked.map(({ agent }) => agent.split("/", 1)[0]);
    expect(strikes.filter((agent) => agent === "hawser")).toHaveLength(2);
    expect(strikes.filter((agent) => agent === "containerd")).toHaveLength(2);
    await expectSilence(tokens, [Buffer.from(`${wrong.username}:${wrong.password}`).toString("base64")]);
  });

  test("a second 401: a token that gives no access is the end, for both alike", async () => {
    await using tokens = await startTokens();
    await using registry = await startRegistry({ tokens });
    configure(registry.host);
    tokens.isStrict = true;
    expect(await pull(app, user)).toHaveProperty("message", expect.stringContaining("insufficient_scope"));
    expect(tokens.asked.filter(byHawser)).toHaveLength(1);
    await expectSilence(tokens);
  });

  test.each([
    ["is renewed before its end", 2],
    ["whose end comes before it was told is renewed when it is refused", 300],
  ])("a token that lives shorter than the pull %s", async (_name, toldSeconds) => {
    await using tokens = await startTokens();
    await using registry = await startRegistry({ tokens });
    await using store = await BlobStore.start(server, plain.store);
    await using front = await RegistryFront.start(server, authority.cert, registry, store);
    configure(front.host);
    expect(await theirs.cri.pull(named(app), user)).toEqual({ value: app.config.digest });
    Object.assign(tokens, { lifeSeconds: 2, toldSeconds });
    const asked = tokens.asked.length;
    // The first body does not go on before the token that it was asked for with has expired.
    store.halfway = async () => await untilRefused(registry, tokens.issued[asked] ?? "");
    expect(await hawser.cri.pull(named(app), user)).toEqual({ value: app.config.digest });
    await settled(ours);
    await expectSame(ours, theirs, [named(app)]);
    expect(tokens.asked.slice(asked).filter(byHawser).length).toBeGreaterThan(1);
    const refused = front.asked.filter(({ path, status }) => path.includes("/blobs/") && status === 401);
    if (toldSeconds > 2) expect(refused.filter(byHawser).length).toBeGreaterThan(0);
    // Nothing was asked for without a token, only to be refused.
    expect(refused.filter((one) => byHawser(one) && one.authorization === undefined)).toEqual([]);
    await expectSilence(tokens, store.signatures);
  });
});

describe("a blob store elsewhere", () => {
  test("signatures that expire in the middle of each body; credentials stay at the registry", async () => {
    await using tokens = await startTokens();
    await using registry = await startRegistry({ tokens });
    await using store = await BlobStore.start(server, plain.store);
    await using front = await RegistryFront.start(server, authority.cert, registry, store);
    configure(front.host);
    let before = 0;
    await pullAccelerated(app, user, () => {
      before = store.asked.length;
      store.halfway = async (signature) => void store.expired.add(signature);
    });
    expect(store.asked.filter(({ authorization }) => authorization !== undefined)).toEqual([]);
    const since = store.asked.slice(before);
    expect(since.filter(({ status }) => status === 403).length).toBeGreaterThan(0);
    for (const { digest } of app.layers) {
      const served = since.filter(({ path, status }) => path.includes(digest) && status < 300);
      expect(served.filter((one) => !byHawser(one))).toEqual([]);
      expect(new Set(served.map(({ connection }) => connection)).size).toBeGreaterThan(1);
    }
    // The password went to the token server alone; the registry was shown tokens.
    const shown = front.asked.flatMap(({ authorization }) => authorization ?? []);
    expect(shown.length).toBeGreaterThan(0);
    expect(shown.filter((one) => !one.startsWith("Bearer "))).toEqual([]);
    await expectSilence(tokens, store.signatures);
  });

  test("a store that serves nobody: containerd's own error, without signatures in what Hawser says", async () => {
    await using tokens = await startTokens();
    await using registry = await startRegistry({ tokens });
    await using store = await BlobStore.start(server, plain.store);
    await using front = await RegistryFront.start(server, authority.cert, registry, store);
    configure(front.host);
    store.isClosed = true;
    const answer = await pull(app, user);
    expect(answer).toHaveProperty("message", expect.stringContaining("403 Forbidden"));
    expect(hawser.logs()).toMatch(/403 Forbidden/);
    await expectSilence(tokens, store.signatures);
  });
});
