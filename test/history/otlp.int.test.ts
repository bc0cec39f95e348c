// OTLP: a collector is sent every pull, as spans below the caller's; one that is slow, down or refuses costs no pull anything.

import { randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { json } from "node:stream/consumers";
import { Metadata } from "@grpc/grpc-js";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Exporter } from "../../src/history/exporter.ts";
import type { PullRecord } from "../../src/history/record.ts";
import { FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { message } from "../harness/cri.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

interface SpanSent {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes: readonly { readonly key: string; readonly value: Readonly<Record<string, unknown>> }[];
  readonly status?: unknown;
}

interface Sent {
  readonly resourceSpans: readonly {
    readonly resource: { readonly attributes: SpanSent["attributes"] };
    readonly scopeSpans: readonly { readonly spans: readonly SpanSent[] }[];
  }[];
}

let collector: Server;
let sent: Sent[];
let requests: IncomingMessage[];
let answer: () => Promise<number>;

beforeEach(async () => {
  sent = [];
  requests = [];
  answer = async () => 200;
  collector = createServer((request, response) => {
    requests.push(request);
    json(request)
      .then(async (body) => {
        const status = await answer();
        if (status === 200) sent.push(body as Sent);
        response.writeHead(status).end("{}");
      })
      .catch(() => response.destroy());
  });
  await new Promise<void>((resolve) => {
    collector.listen(0, "127.0.0.1", resolve);
  });
});

afterEach(async () => {
  await new Promise<void>((resolve) => {
    collector.close(() => resolve());
    collector.closeAllConnections();
  });
});

function endpoint(path = ""): string {
  return `http://127.0.0.1:${(collector.address() as AddressInfo).port}${path}`;
}

function spansIn(all: readonly Sent[]): readonly SpanSent[] {
  return all.flatMap((one) =>
    one.resourceSpans.flatMap(({ scopeSpans }) => scopeSpans.flatMap(({ spans }) => spans)),
  );
}

describe("a daemon", () => {
  let containerd: PrivateContainerd;
  let fake: FakeRegistry;

  beforeAll(async () => {
    containerd = await PrivateContainerd.start();
    fake = await FakeRegistry.start();
  });

  afterAll(async () => {
    await containerd[Symbol.asyncDispose]();
    await fake[Symbol.asyncDispose]();
  });

  test("sends a pull's spans, which continue its caller's trace", async () => {
    await using hawser = await PrivateHawser.start({
      containerd: containerd.address,
      config: `[trace]\notlp_endpoint = "${endpoint("/base")}"`,
    });
    const layers = [0, 1].map((index) => ({ bytes: tarGz([dir(`${index}`), file("a", randomBytes(1000))]) }));
    const { reference } = fake.put("sent/image:v1", layers);
    const [traceId, parentId] = [randomBytes(16).toString("hex"), randomBytes(8).toString("hex")];
    const metadata = new Metadata();
    const path = "/runtime.v1.ImageService/PullImage";
    const pulled = async (flags: string): Promise<void> => {
      metadata.set("traceparent", `00-${traceId}-${parentId}-${flags}`);
      await hawser.cri.raw(path, message([1, message([1, reference])]), undefined, metadata);
    };
    const before = Date.now();
    await pulled("01");
    const after = Date.now();
    // Of this one the caller wants nothing collected.
    await pulled("00");
    await eventually(async () => expect(sent).toHaveLength(1), "what is sent");
    expect(requests.map(({ method, url, headers }) => [method, url, headers["content-type"]])).toEqual([
      ["POST", "/base/v1/traces", "application/json"],
    ]);
    expect(sent[0]?.resourceSpans[0]?.resource.attributes).toContainEqual({
      key: "service.name",
      value: { stringValue: "hawser" },
    });
    const [pull, ...others] = spansIn(sent);
    expect(pull).toMatchObject({
      traceId,
      parentSpanId: parentId,
      name: "PullImage",
      kind: 2,
      status: { code: 1 },
    });
    expect(pull?.attributes).toContainEqual({ key: "hawser.image", value: { stringValue: reference } });
    expect(pull?.attributes).toContainEqual({ key: "hawser.layers.fetched", value: { intValue: "2" } });
    const below = others.filter(({ parentSpanId }) => parentSpanId === pull?.spanId).map(({ name }) => name);
    expect(below).toEqual(
      expect.arrayContaining(["resolve", "plan", "layers", "register", "layer 1", "layer 2"]),
    );
    const layer = others.find(({ name }) => name === "layer 1");
    const ofLayer = others
      .filter(({ parentSpanId }) => parentSpanId === layer?.spanId)
      .map(({ name }) => name);
    expect(ofLayer).toEqual(expect.arrayContaining(["download", "unpack", "commit"]));
    expect(new Set(others.map((span) => span.spanId)).size).toBe(others.length);
    for (const span of spansIn(sent)) {
      expect(span.traceId).toBe(traceId);
      const [start, end] = [span.startTimeUnixNano, span.endTimeUnixNano].map((nano) =>
        Number(BigInt(nano) / 1_000_000n),
      );
      expect(start).toBeGreaterThanOrEqual(before - 1);
      expect(end).toBeGreaterThanOrEqual(start ?? 0);
      expect(end).toBeLessThanOrEqual(after + 1);
    }
  });

  test("with a collector that never answers, pulls are as before, and it ends in time", async () => {
    const never = gate();
    answer = async () => {
      await never.opened;
      return 200;
    };
    await using hawser = await PrivateHawser.start({
      containerd: containerd.address,
      config: `[trace]\notlp_endpoint = "${endpoint()}"`,
    });
    const { reference } = fake.put("sent/other:v1", [{ bytes: tarGz([file("a", randomBytes(1000))]) }]);
    for (let time = 0; time < 3; time++) await hawser.cri.mustPull(reference);
    await eventually(async () => expect(requests.length).toBeGreaterThan(0), "a request");
    await hawser.stop();
    expect(hawser.logs()).toMatch(/traces of pulls were not taken by the collector.*count=/);
    never.open();
  });
});

function record(id: string): PullRecord {
  return {
    id,
    traceId: "1".repeat(32),
    image: "example.com/a:b",
    startedAt: "2026-01-01T00:00:00.000Z",
    seconds: 1,
    state: "error",
    outcome: { state: "error", path: "accelerated", error: "it failed" },
    isAhead: false,
    isJoined: false,
    presentLayers: 0,
    stages: [],
    layers: [],
    hosts: [],
  };
}

describe("an exporter", () => {
  function make(to = endpoint()): { exporter: Exporter; dropped: [number, string][] } {
    const dropped: [number, string][] = [];
    const exporter = new Exporter({
      endpoint: new URL(to),
      version: "1",
      nodeName: "node",
      dropped: (...told) => void dropped.push(told),
    });
    return { exporter, dropped };
  }

  test("sends several in one request, while another is on its way", async () => {
    const first = gate();
    answer = async () => {
      await first.opened;
      return 200;
    };
    const { exporter, dropped } = make();
    for (let index = 0; index < 40; index++) exporter.add(record(String(index)));
    first.open();
    await exporter.close();
    expect(sent.map((one) => spansIn([one]).length)).toEqual([1, 32, 7]);
    expect(spansIn(sent)[0]?.status).toEqual({ code: 2, message: "it failed" });
    expect(dropped).toEqual([]);
  });

  test("tries again what the collector could not take, and not what it refuses", async () => {
    const statuses = [503, 200, 400, 200];
    answer = async () => statuses.shift() ?? 500;
    const { exporter, dropped } = make();
    exporter.add(record("a"));
    await eventually(async () => expect(spansIn(sent)).toHaveLength(1), "the first");
    exporter.add(record("b"));
    await eventually(async () => expect(dropped).toEqual([[1, "it answers 400"]]), "what was dropped");
    exporter.add(record("c"));
    await exporter.close();
    expect(spansIn(sent).map(({ spanId }) => spanId)).toEqual(["a", "c"]);
  });

  test("drops what does not fit into its queue", async () => {
    const first = gate();
    answer = async () => {
      await first.opened;
      return 200;
    };
    const { exporter, dropped } = make();
    for (let index = 0; index < 300; index++) exporter.add(record(String(index)));
    // One is on its way, and 256 wait.
    expect(dropped).toEqual(Array.from({ length: 43 }, () => [1, "the collector is too slow"]));
    first.open();
    await exporter.close();
    expect(spansIn(sent)).toHaveLength(257);
  });
});
