// The metrics endpoint and the log: what is there to be seen, and what is not.

import { request } from "node:http";
import { Gauge } from "prom-client";
import { expect, test } from "vitest";
import { expose } from "../../src/exposition.ts";
import { createLog } from "../../src/log.ts";
import { createMetrics } from "../../src/metrics.ts";

async function ask(
  port: number,
  path: string,
  method = "GET",
): Promise<{ status: number | undefined; body: string }> {
  return await new Promise((resolve, reject) => {
    const sent = request({ host: "127.0.0.1", port, path, method }, (response) => {
      let body = "";
      response.on("data", (bytes: Buffer) => {
        body += bytes.toString();
      });
      response.on("end", () => resolve({ status: response.statusCode, body }));
    });
    sent.on("error", reject);
    sent.end();
  });
}

test("every metric has Hawser's prefix, a sentence and a documented name", async () => {
  const { registry, ...metrics } = createMetrics("1.2.3", "front");
  const own = (await registry.getMetricsAsJSON()).filter(({ name }) => name.startsWith("hawser_"));
  expect(own).toHaveLength(Object.keys(metrics).length);
  for (const { name, help, type } of own) {
    expect(help, name).toMatch(/^\S.{10,}[^.]$/);
    // Prometheus' naming: counters end in _total, and units come last; one is named as containerd names its own.
    expect(name.endsWith("_total"), name).toBe(String(type) === "counter");
    if (String(type) === "histogram") expect(name).toMatch(/_(?:seconds|bytes|mibps)$/);
  }
});

test("metrics and health, and nothing else", async () => {
  const metrics = createMetrics("1.2.3", "front");
  metrics.pulls.inc({ result: "ok", path: "accelerated" });
  const exposition = await expose({ read: () => metrics.registry.metrics() }, "127.0.0.1", 0);
  const { body } = await ask(exposition.port, "/metrics");
  expect(body).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
  expect(body).toContain('hawser_build_info{version="1.2.3"');
  expect(body).toContain("process_resident_memory_bytes");
  expect(await ask(exposition.port, "/healthz")).toEqual({ status: 200, body: "ok\n" });
  expect((await ask(exposition.port, "/")).status).toBe(404);
  expect((await ask(exposition.port, "/metrics", "POST")).status).toBe(405);
  await expect(
    expose({ read: () => metrics.registry.metrics() }, "127.0.0.1", exposition.port),
  ).rejects.toThrow(/metrics\.listen: cannot listen/);
  await exposition.close();
});

test("a metric that cannot be collected costs an answer, not the daemon", async () => {
  const metrics = createMetrics("1.2.3", "front");
  const exposition = await expose({ read: () => metrics.registry.metrics() }, "127.0.0.1", 0);
  metrics.registry.registerMetric(
    new Gauge({
      name: "broken",
      help: "x",
      registers: [],
      collect: () => Promise.reject(new Error("EMFILE")),
    }),
  );
  expect((await ask(exposition.port, "/metrics")).status).toBe(500);
  expect((await ask(exposition.port, "/healthz")).status).toBe(200);
  await exposition.close();
});

test("what a registry says cannot begin a line of the log or speak to the terminal", () => {
  const lines: string[] = [];
  const log = createLog({ level: "info", format: "text" }, { write: (line) => void lines.push(line) });
  log.warn({ error: "a\nb", tail: "\u001b[2J\u009b" }, "said \u001b[31m\nforged");
  expect(lines).toEqual([
    expect.stringMatching(/ said \\u001b\[31m\\u000aforged error="a\\nb" tail=\\u001b\[2J\\u009b\n$/),
  ]);
});

test("a field is cut when it is longer than anybody will read", () => {
  const lines: string[] = [];
  const log = createLog({ level: "info", format: "json" }, { write: (line) => void lines.push(line) });
  log.warn({ image: "x".repeat(100_000), detail: "short" }, "pull");
  expect(lines[0]?.length).toBeLessThan(3000);
  expect(lines[0]).toMatch(/x\.\.\. \(100000 characters\)","detail":"short"/);
});

test.each(["json", "text"] as const)("secrets do not reach the log (%s)", (format) => {
  const lines: string[] = [];
  const log = createLog({ level: "info", format }, { write: (line) => void lines.push(line) });
  log.info(
    { password: "hush-1", request: { authorization: "hush-2", auth: "hush-3" }, image: "a b" },
    "pull",
  );
  log.debug("not at this level");
  expect(lines).toHaveLength(1);
  expect(lines[0]).not.toContain("hush");
  expect(lines[0]).toContain("[redacted]");
  expect(lines[0]).toMatch(format === "json" ? /"level":"info"/ : /^\S+Z info {2}pull .*image="a b"/);
});
