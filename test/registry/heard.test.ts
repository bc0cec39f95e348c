// What is told of hosts, for metrics: each of their answers and failures, and whose bytes came.

import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { parseDigest } from "../../src/oci/digest.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { Spool } from "../../src/spool.ts";
import { FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { freePort } from "../harness/process.ts";
import { permits, testRegistry } from "./registries.ts";

const never = new AbortController().signal;
let told: string[] = [];
let seconds: number[] = [];
let received = new Map<string, number>();
let root = "";

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "heard-"));
  [told, seconds, received] = [[], [], new Map()];
});

afterEach(() => {
  rmSync(root, { recursive: true });
});

const events = {
  bytes: (count: number, host: string) => void received.set(host, (received.get(host) ?? 0) + count),
  retry: () => {},
  breaker: () => {},
  answered: (host: string, status: number, took: number) => {
    told.push(`${host} ${status}`);
    seconds.push(took);
  },
  failed: (host: string, code: string) => void told.push(`${host} ${code}`),
};

async function download(fake: FakeRegistry, store?: FakeRegistry): Promise<void> {
  const bytes = tarGz([file("noise", randomBytes(1000))]);
  const image = fake.put("a/b:v1", [{ bytes }]);
  store?.put("a/b:v1", [{ bytes }]);
  const registry = testRegistry({ events, retries: 0 });
  try {
    const repository = registry.repository(parseReference(image.reference), undefined);
    await repository.resolve(false, never);
    const digest = parseDigest(image.layers[0]?.digest ?? "");
    await using spool = await Spool.open(join(root, "spool"), bytes.length);
    await repository.download({ mediaType: "x/y", digest, size: bytes.length }, spool, permits, never);
    expect([...received.values()]).toEqual([bytes.length]);
  } finally {
    await registry.close();
  }
}

test("a redirect's target has its own answers and bytes", async () => {
  await using fake = await FakeRegistry.start();
  await using store = await FakeRegistry.start(undefined, "127.0.0.2");
  fake.behave = ({ path }) =>
    path.includes("/blobs/")
      ? { status: 307, headers: { location: `http://${store.host}${path}` } }
      : undefined;
  await download(fake, store);
  expect(told).toEqual([`${fake.host} 200`, `${fake.host} 307`, `${store.host} 200`]);
  expect([...received.keys()]).toEqual([store.host]);
  for (const took of seconds) expect(took).toBeGreaterThan(0);
});

test("a refusal is an answer, and so is trouble; a body that breaks off and a host that is not there are failures", async () => {
  await using fake = await FakeRegistry.start();
  fake.behave = ({ path }) => (path.includes("/blobs/") ? { status: 503 } : undefined);
  await expect(download(fake)).rejects.toThrow(/503/);
  expect(told).toEqual([`${fake.host} 200`, `${fake.host} 503`]);

  told = [];
  fake.behave = ({ path }) => (path.includes("/blobs/") ? { after: 10, afterwards: "reset" } : undefined);
  await expect(download(fake)).rejects.toThrow();
  expect(told).toEqual([`${fake.host} 200`, `${fake.host} 200`, `${fake.host} unavailable`]);

  told = [];
  const nobody = `127.0.0.1:${await freePort()}`;
  const registry = testRegistry({ events, retries: 0 });
  const repository = registry.repository(parseReference(`${nobody}/a/b:v1`), undefined);
  await expect(repository.resolve(false, never)).rejects.toThrow();
  await registry.close();
  expect(told).toEqual([`${nobody} unavailable`]);
});

test("who goes away has not been failed", async () => {
  await using fake = await FakeRegistry.start();
  const went = new AbortController();
  fake.behave = () => {
    went.abort();
    return { answer: new Promise(() => {}) };
  };
  const registry = testRegistry({ events });
  const repository = registry.repository(parseReference(`${fake.host}/a/b:v1`), undefined);
  await expect(repository.resolve(false, went.signal)).rejects.toThrow();
  await registry.close();
  expect(told).toEqual([]);
});
