// Bad input and faults: the caller gets containerd's own answer, and nothing is committed or left behind.

import { randomBytes } from "node:crypto";
import { readdirSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { FakeRegistry, gate, sha256 } from "../fakes/registry.ts";
import { dir, file, symlink, tar, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { busyboxLayers, layerTypes, pushImage } from "../harness/images.ts";
import { eventually } from "../harness/process.ts";
import { PrivateRegistry } from "../harness/registry.ts";
import { activeExtracts, leftovers, readLeases, readSnapshots } from "../harness/state.ts";

let containerd: PrivateContainerd;
let hawser: PrivateHawser;
let fake: FakeRegistry;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  hawser = await PrivateHawser.start({
    containerd: containerd.address,
    config:
      '[download]\nretries = 2\nconnect_timeout = "1s"\nchunk_size = "64KiB"\n[fallback]\nafter = "2s"\nbreaker_failures = 100',
  });
  fake = await FakeRegistry.start();
});

afterAll(async () => {
  await hawser[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

afterEach(() => {
  fake.behave = () => undefined;
});

/** Nothing of a pull is left: not in leases, active snapshots, staging or spool. */
async function nothingLeft(): Promise<void> {
  await eventually(async () => {
    expect(await readLeases(containerd)).toEqual([]);
    expect(leftovers(containerd)).toEqual([]);
    expect(await activeExtracts(containerd)).toEqual([]);
  }, "the end of what follows a pull");
}

/** Digests, times, request ids and ports that differ between two calls with the same outcome. */
function comparable(reply: unknown): unknown {
  return JSON.parse(JSON.stringify(reply).replace(/:\d+->|127\.0\.0\.1:\d+: connect/g, "PORT"));
}

/** Hawser's answer must be the one that containerd gives when it is asked directly. */
async function sameAnswer(reference: string, auth?: { username: string; password: string }): Promise<void> {
  const ours = await hawser.cri.pull(reference, auth);
  await nothingLeft();
  const theirs = await containerd.cri.pull(reference, auth);
  expect(comparable(ours)).toEqual(comparable(theirs));
  expect(ours).toHaveProperty("code");
}

describe("what the caller gets wrong", () => {
  test.each([
    ["a malformed reference", "UPPER/case:x"],
    ["an empty reference", ""],
    ["an image id", "a".repeat(64)],
    ["an unreachable registry", "127.0.0.1:1/nothing:here"],
  ])("%s", async (_name, reference) => {
    await sameAnswer(reference);
  });

  test("an unknown tag and a missing repository", async () => {
    fake.behave = () => undefined;
    fake.put("known/image:v1", [{ bytes: tarGz([file("x")]) }]);
    await sameAnswer(`${fake.host}/known/image:v2`);
    await sameAnswer(`${fake.host}/missing/image:v1`);
  });

  test("wrong credentials, and a second caller with wrong ones after right ones", async () => {
    const login = { username: "somebody", password: "correct horse" };
    await using registry = await PrivateRegistry.start({ login });
    const image = await pushImage(registry, "private/image:v1", busyboxLayers());
    const wrong = { username: "somebody", password: "wrong" };
    await sameAnswer(image.reference, wrong);
    expect(await hawser.cri.pull(image.reference, login)).toEqual({ value: image.config.digest });
    await sameAnswer(image.reference, wrong);
    await sameAnswer(image.reference);
    expect(hawser.logs()).not.toContain("correct horse");
    await containerd.cri.removeImage(image.reference);
  });

  test("a token server that refuses, and a token that gives no access", async () => {
    const tokens = { status: 401, body: "{}" };
    const server = createServer((_request, response) => response.writeHead(tokens.status).end(tokens.body));
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    const realm = `http://127.0.0.1:${(server.address() as AddressInfo).port}/token`;
    fake.put("tokens/image:v1", [{ bytes: tarGz([file("x")]) }]);
    const login = { username: "somebody", password: "secret" };
    const challenge = (error: string) =>
      `Bearer realm="${realm}",service="fake",scope="repository:tokens/image:pull"${error}`;
    fake.behave = ({ authorization }) => ({
      status: 401,
      headers: { "www-authenticate": challenge(authorization ? ',error="insufficient_scope"' : "") },
    });
    await sameAnswer(`${fake.host}/tokens/image:v1`, login);
    tokens.status = 200;
    tokens.body = JSON.stringify({ token: "t", access_token: "t", expires_in: 300 });
    await sameAnswer(`${fake.host}/tokens/image:v1`, login);
    fake.behave = () => undefined;
    server.close();
    server.closeAllConnections();
  });
});

describe("blobs that are not what they should be", () => {
  const good = tarGz([dir("d"), file("d/f", randomBytes(200_000))]);
  const other = tarGz([file("other")]);
  const truncatedTar = tar([file("x", randomBytes(5000))]).subarray(0, 3000);
  const cases: [string, Parameters<FakeRegistry["put"]>[1]][] = [
    ["truncated gzip", [{ bytes: good.subarray(0, good.length - 20), diffID: sha256(good) }]],
    [
      "corrupted gzip",
      [
        {
          bytes: Buffer.concat([good.subarray(0, 1000), Buffer.alloc(500), good.subarray(1500)]),
          diffID: sha256(good),
        },
      ],
    ],
    ["another blob's bytes", [{ bytes: other, digest: sha256(good), diffID: sha256(other) }]],
    ["longer than announced", [{ bytes: good, size: good.length - 10, diffID: sha256(good) }]],
    ["shorter than announced", [{ bytes: good, size: good.length + 10, diffID: sha256(good) }]],
    ["another diffID", [{ bytes: good, diffID: sha256(other) }]],
    ["a truncated archive", [{ bytes: gzipSync(truncatedTar), diffID: sha256(truncatedTar) }]],
    [
      "no archive at all",
      [{ bytes: gzipSync(Buffer.alloc(2000, 1)), diffID: sha256(Buffer.alloc(2000, 1)) }],
    ],
    ["an unknown layer type", [{ bytes: good, mediaType: "application/vnd.example.layer" }]],
    ["an encrypted layer", [{ bytes: good, mediaType: `${layerTypes.ociGzip}+encrypted` }]],
    [
      "a hard link out of the layer",
      [{ bytes: tarGz([{ name: "l", type: "1", linkName: "../../etc/passwd" }]) }],
    ],
    ["an unknown entry type", [{ bytes: tarGz([{ name: "l", type: "Z" }]) }]],
    ["a bare whiteout", [{ bytes: good }, { bytes: tarGz([file(".wh.")]) }]],
  ];
  test.each(cases)("%s", async (name, layers) => {
    const image = fake.put(`bad/${name.replace(/\W+/g, "-").toLowerCase()}:v1`, layers);
    const committed = (await readSnapshots(containerd)).length;
    const ours = await hawser.cri.pull(image.reference);
    await nothingLeft();
    const theirs = await containerd.cri.pull(image.reference);
    // containerd names ingests and layers by random keys, and a Go error carries byte offsets that depend on timing.
    const shape = (reply: typeof ours) =>
      "value" in reply ? reply : { code: reply.code, message: reply.message.slice(0, 60) };
    expect(shape(ours)).toEqual(shape(theirs));
    if ("code" in ours) {
      await eventually(
        async () => expect(await readSnapshots(containerd)).toHaveLength(committed),
        "the snapshots' end",
      );
    }
  });

  test("paths that try to escape stay inside, as with containerd", async () => {
    const layer = tarGz([
      symlink("out", "/dev/shm"),
      symlink("up", "../../../.."),
      file("out/escaped-by-link", "x"),
      file("../../../escaped-by-name", "x"),
      file("up/escaped-by-dots", "x"),
    ]);
    const image = fake.put("bad/escapes:v1", [{ bytes: layer }]);
    expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
    await containerd.cri.removeImage(image.reference);
    for (const folder of ["/dev/shm", "/", containerd.snapshotterRoot, containerd.root]) {
      expect(activeNames(folder)).toEqual([]);
    }
  });
});

describe("registries that fail in the middle", () => {
  const bytes = tarGz([file("data", randomBytes(500_000))]);

  async function heals(name: string, behave: FakeRegistry["behave"]): Promise<string> {
    const image = fake.put(`flaky/${name}:v1`, [{ bytes }]);
    fake.behave = behave;
    try {
      expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
    } finally {
      fake.behave = () => undefined;
    }
    await nothingLeft();
    await containerd.cri.removeImage(image.reference);
    return image.layers[0]?.digest ?? "";
  }

  const isLayer = (path: string): boolean => path.endsWith(`/blobs/${sha256(bytes)}`);

  test("a reset in the middle of each range is resumed where it broke", async () => {
    const seen = new Set<string>();
    const digest = await heals("reset", ({ path, range }) => {
      if (!isLayer(path) || seen.has(range ?? "")) return undefined;
      seen.add(range ?? "");
      // Ranges of the first attempts are 64 KiB long; what is asked for again is shorter and served whole.
      const [start = 0, end = 0] = (range ?? "").replace("bytes=", "").split("-").map(Number);
      return end - start + 1 === 65_536 ? { after: 30_000, afterwards: "reset" } : undefined;
    });
    const resumed = fake
      .rangesOf(digest)
      .filter(
        (range) =>
          /^bytes=\d*[1-9]\d*-/.test(range ?? "") && Number(/=(\d+)/.exec(range ?? "")?.[1]) % 65_536 !== 0,
      );
    expect(resumed.length).toBeGreaterThan(0);
    expect(await hawser.metrics()).toMatch(/hawser_retries_total\{reason="unavailable"\} [1-9]/);
  });

  test("a host without ranges is read in one stream", async () => {
    const before = fake.asked.length;
    await heals("no-ranges", ({ path }) => (isLayer(path) ? { ignoreRange: true } : undefined));
    expect(fake.asked.slice(before).filter(({ path }) => isLayer(path))).toHaveLength(1);
  });

  test("429 with Retry-After is waited for, and 503 without is tried again", async () => {
    let refusals = 0;
    await heals("busy", ({ path }) => {
      if (!isLayer(path) || refusals >= 2) return undefined;
      refusals += 1;
      return refusals === 1 ? { status: 429, headers: { "retry-after": "1" } } : { status: 503 };
    });
    expect(refusals).toBe(2);
  });

  test("a redirect goes without the credentials, and is asked for again when it has expired", async () => {
    await using store = await FakeRegistry.start();
    const held = store.put("flaky/redirect:v1", [{ bytes }]);
    let signature = 0;
    store.behave = ({ query }) =>
      query === "?sig=1" && store.asked.length > 2 ? { status: 403 } : undefined;
    const login = { username: "somebody", password: "secret" };
    const image = fake.put("flaky/redirect:v1", [{ bytes }]);
    fake.behave = ({ path, authorization }) => {
      if (!authorization) return { status: 401, headers: { "www-authenticate": 'Basic realm="fake"' } };
      if (!isLayer(path)) return undefined;
      signature += 1;
      return {
        status: 307,
        headers: {
          location: `http://${store.host}/v2/flaky/redirect/blobs/${held.layers[0]?.digest}?sig=${signature}`,
        },
      };
    };
    expect(await hawser.cri.pull(image.reference, login)).toEqual({ value: image.configDigest });
    fake.behave = () => undefined;
    expect(store.asked.map(({ authorization }) => authorization).filter(Boolean)).toEqual([]);
    expect(signature).toBeGreaterThan(1);
    await nothingLeft();
    await containerd.cri.removeImage(image.reference);
  });

  test("a breaker is a metric while it is open, and no series is left of the host afterwards", async () => {
    await using impatient = await PrivateHawser.start({
      containerd: containerd.address,
      config: '[download]\nretries = 0\n[fallback]\nbreaker_failures = 1\nbreaker_reset = "1s"',
    });
    const image = fake.put("flaky/breaker:v1", [{ bytes }]);
    fake.behave = () => ({ status: 503 });
    expect(await impatient.cri.pull(image.reference)).toHaveProperty("code");
    await impatient.untilMetric(new RegExp(`hawser_breaker_open\\{host="${fake.host}"\\} 1`));
    fake.behave = () => undefined;
    await impatient.untilLogged(/a registry host answers again/);
    expect(await impatient.metrics()).not.toContain("hawser_breaker_open{");
  });

  test("a host that does not answer delegates after fallback.after", async () => {
    const image = fake.put("flaky/silent:v1", [{ bytes }]);
    const silence = gate();
    let manifests = 0;
    fake.behave = ({ path }) => {
      if (!path.includes("/manifests/")) return undefined;
      manifests += 1;
      // Only the first one, which is Hawser's, waits.
      return manifests === 1 ? { after: 0, afterwards: silence.opened, headers: {} } : undefined;
    };
    const reply = await hawser.cri.pull(image.reference);
    silence.open();
    fake.behave = () => undefined;
    expect(reply).toEqual({ value: image.configDigest });
  });
});

test("a black hole: delegated after fallback.after, not asked while its breaker is open, and asked again when probed", async () => {
  const image = fake.put("black/hole:v1", [{ bytes: tarGz([file("data", randomBytes(1000))]) }]);
  const breaker = `hawser_breaker_open{host="${fake.host}"}`;
  await using patient = await PrivateHawser.start({
    containerd: containerd.address,
    config:
      '[download]\nretries = 0\n[fallback]\nafter = "300ms"\nbreaker_failures = 1\nbreaker_reset = "1s"',
  });
  const silence = gate();
  const isOurs = (headers: Record<string, unknown>): boolean =>
    String(headers["user-agent"]).startsWith("hawser/");
  fake.behave = ({ headers, path }) => {
    if (!isOurs(headers)) return undefined;
    // No probe gets through either.
    return path === "/v2/" ? { status: 503 } : { after: 0, afterwards: silence.opened };
  };
  expect(await patient.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  expect(await patient.metrics()).toContain('hawser_fallbacks_total{reason="slow"} 1');
  expect(await patient.metrics()).toContain(`${breaker} 1`);
  const asked = fake.asked.filter(({ headers, path }) => isOurs(headers) && path.includes("/manifests/"));
  // Pulls go on through containerd, and none of them waits for the hole again.
  expect(await patient.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  const since = fake.asked.filter(({ headers, path }) => isOurs(headers) && path.includes("/manifests/"));
  expect(since).toHaveLength(asked.length);
  fake.behave = () => undefined;
  silence.open();
  await eventually(
    async () => expect(await patient.metrics()).not.toContain(breaker),
    "the closing of the breaker",
  );
  expect(await patient.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  expect(await patient.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  await containerd.cri.removeImage(image.reference);
});

function activeNames(folder: string): string[] {
  return readdirSync(folder).filter((name) => name.startsWith("escaped-by"));
}
