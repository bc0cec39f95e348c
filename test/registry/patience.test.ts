// How long is waited, and for whom: in virtual time, with chance fixed.

import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { parseDigest } from "../../src/oci/digest.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { retryAfterMs, type Timing } from "../../src/registry/patience.ts";
import { Spool } from "../../src/spool.ts";
import { type Behaviour, FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { permits, testRegistry } from "./registries.ts";

const never = new AbortController().signal;
const now = Date.parse("2026-01-01T00:00:00Z");

test.each([
  ["3", 3000],
  ["0", 0],
  ["Thu, 01 Jan 2026 00:00:05 GMT", 5000],
  ["Wed, 31 Dec 2025 00:00:00 GMT", 0],
  ["soon", 0],
  ["-1", 0],
  [undefined, 0],
])("Retry-After: %s is %i ms", (header, expected) => {
  expect(retryAfterMs(header, now)).toBe(expected);
});

const timing = (waits: number[]): Timing => ({
  now: () => now,
  random: () => 0,
  wait: async (timeMs) => {
    waits.push(timeMs);
  },
});

describe("a blob, with another host behind", () => {
  let root = "";

  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), "patience-"));
    mkdirSync(join(root, "_default"));
  });

  afterEach(() => {
    rmSync(root, { recursive: true });
  });

  /** The pauses that were made for a host that answers every blob in this way, and how often it was asked. */
  async function pauses(behaviour: Behaviour, hasOther: boolean) {
    await using host = await FakeRegistry.start();
    await using other = await FakeRegistry.start();
    const layers = [{ bytes: tarGz([file("noise", randomBytes(1000))]) }];
    const [image] = [host, other].map((fake) => fake.put("a/b:v1", layers));
    const layer = image?.layers[0];
    if (layer === undefined) throw new Error("no layer");
    host.behave = ({ path }) => (path.includes("/blobs/") ? behaviour : undefined);
    const server = hasOther ? `server = "http://${other.host}"\n[host."http://${host.host}"]\n` : "";
    writeFileSync(join(root, "_default/hosts.toml"), server || `server = "http://${host.host}"\n[host]\n`);
    const waits: number[] = [];
    const registry = testRegistry({ configPath: [root], retries: 2, timing: timing(waits) });
    const repository = registry.repository(parseReference("reg.example.com/a/b:v1"), undefined);
    const descriptor = { mediaType: "any", digest: parseDigest(layer.digest), size: layer.bytes.length };
    await using spool = await Spool.open(join(root, "spool"), descriptor.size);
    const downloading = repository.download(descriptor, spool, permits, never);
    await (hasOther ? downloading : expect(downloading).rejects.toMatchObject({ code: "unavailable" }));
    await registry.close();
    return { waits, asked: host.rangesOf(layer.digest).length };
  }

  test.each([429, 500, 503])("%i is not waited for: the next host is asked at once", async (status) => {
    expect(await pauses({ status, headers: { "retry-after": "20" } }, true)).toEqual({ waits: [], asked: 1 });
    expect(await pauses({ status }, true)).toEqual({ waits: [], asked: 1 });
  });

  test("the last host is waited for", async () => {
    const answer = { status: 429, headers: { "retry-after": "20" } };
    expect(await pauses(answer, false)).toEqual({ waits: [20_000, 20_000], asked: 3 });
  });

  test("what breaks off is gone on with at the same host", async () => {
    const broken = { after: 100, afterwards: "reset" } as const;
    expect(await pauses(broken, true)).toEqual({ waits: [100, 200], asked: 3 });
  });
});

describe("what a tag stands for", () => {
  let fake: FakeRegistry;
  let waits: number[];

  beforeEach(async () => {
    fake = await FakeRegistry.start();
    fake.put("a/b:v1", [{ bytes: tarGz([file("x")]) }]);
    waits = [];
  });

  afterEach(async () => {
    await fake[Symbol.asyncDispose]();
  });

  /** Asks, with so many first answers that are like this. */
  async function resolve(times: number, behaviour: Behaviour, host = fake.host): Promise<string> {
    let left = times;
    fake.behave = () => (left-- > 0 ? behaviour : undefined);
    const registry = testRegistry({
      retries: 3,
      fallbackAfterMs: 10_000,
      timing: timing(waits),
      breaker: { failures: 100, resetMs: 1000 },
    });
    try {
      const repository = registry.repository(parseReference(`${host}/a/b:v1`), undefined);
      return (await repository.resolve(false, never)).descriptor.digest;
    } finally {
      await registry.close();
    }
  }

  test.each([
    [429, {}, [50, 100]],
    [503, {}, [50, 100]],
    [500, {}, [50, 100]],
    [429, { "retry-after": "2" }, [2000, 2000]],
    [503, { "retry-after": "Thu, 01 Jan 2026 00:00:03 GMT" }, [3000, 3000]],
  ])("%i %j is asked again after a pause", async (status, headers, pauses) => {
    await resolve(2, { status, headers });
    expect(waits).toEqual(pauses);
    expect(fake.asked).toHaveLength(3);
  });

  test("who asks for more patience than a pull has is left to containerd at once", async () => {
    const answer = { status: 429, headers: { "retry-after": "11" } };
    await expect(resolve(1, answer)).rejects.toMatchObject({ code: "unavailable" });
    expect([waits, fake.asked.length]).toEqual([[], 1]);
  });

  test("who goes on failing is given up after as many attempts as are configured", async () => {
    await expect(resolve(100, { status: 503 })).rejects.toMatchObject({ code: "unavailable" });
    expect(waits).toEqual([50, 100, 200]);
    expect(fake.asked).toHaveLength(4);
  });

  test.each([400, 404, 410])("%i is not asked again", async (status) => {
    await expect(resolve(1, { status })).rejects.toMatchObject({ name: "PullError" });
    expect([waits, fake.asked.length]).toEqual([[], 1]);
  });

  test("where nobody listens, containerd is better asked at once", async () => {
    await expect(resolve(0, {}, "127.0.0.1:1")).rejects.toMatchObject({ code: "unavailable" });
    expect(waits).toEqual([]);
  });
});
