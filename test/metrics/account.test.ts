// What is counted of a pull once it is answered.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Metadata } from "@grpc/grpc-js";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Account } from "../../src/account.ts";
import { parseConfig } from "../../src/config.ts";
import type { PullOutcome } from "../../src/cri/images.ts";
import { createLog } from "../../src/log.ts";
import { createMetrics, type Metrics } from "../../src/metrics.ts";
import { BlobTrace, ImageTrace, LayerTrace, type PullTrace } from "../../src/trace.ts";

let root = "";
let account: Account;
let metrics: Metrics;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "account-"));
  const { config } = parseConfig(`[admin]\nstate_dir = "${root}"`, "hawser.toml");
  metrics = createMetrics("1.2.3", "puller");
  const log = createLog({ level: "error", format: "text" }, { write: () => {} });
  account = new Account({ config, log, metrics, version: "1.2.3" });
});

afterEach(() => {
  rmSync(root, { recursive: true });
});

/** A pull of two layers of one blob, of which 5 MiB came. */
async function pull(outcome: Partial<PullOutcome>, change: (trace: PullTrace) => void = () => {}) {
  const trace = account.begin(new Metadata());
  const blob = new BlobTrace("sha256:1", 10 * 2 ** 20);
  blob.received(5 * 2 ** 20);
  trace.image = new ImageTrace();
  trace.image.layers = [0, 1].map((index) => new LayerTrace(`sha256:${index}`, index, blob));
  trace.image.spans.all.push({ name: "register", startMs: trace.startMs, endMs: undefined });
  // Two seconds ago.
  Object.assign(trace, { startMs: trace.startMs - 2000 });
  change(trace);
  account.report({ reference: "r", path: "accelerated", result: "ok", seconds: 2, ...outcome }, trace);
  await account.close();
  return (await metrics.registry.metrics()).split("\n");
}

test("one that succeeded: its bytes once, their throughput, and all of its time by what it went by with", async () => {
  const traces: PullTrace[] = [];
  const lines = await pull({}, (trace) => void traces.push(trace));
  expect(lines).toContain("hawser_pull_fetched_bytes_sum 5242880");
  expect(lines).toContain('hawser_image_pulling_throughput_mibps_bucket{le="1"} 0');
  // 2.5 MiB a second.
  expect(lines).toContain('hawser_image_pulling_throughput_mibps_bucket{le="10"} 1');
  expect(lines).toContain('hawser_pull_bottlenecks_total{cause="hawser"} 1');
  const start = 'hawser_pull_cause_seconds_total{cause="hawser"} ';
  const seconds = Number(lines.find((line) => line.startsWith(start))?.slice(start.length));
  const { startMs = 0, endMs = 0 } = traces[0] ?? {};
  expect(seconds).toBeGreaterThanOrEqual(2);
  // Two seconds, and however long a busy machine took to report it.
  expect(seconds).toBeCloseTo((endMs - startMs) / 1000, 2);
});

test.each<[string, Partial<PullOutcome>, (trace: PullTrace) => void, number]>([
  ["one that joined another", {}, (trace) => void (trace.isJoined = true), 1],
  ["one that fetched nothing", {}, (trace) => void (trace.image = new ImageTrace()), 1],
  ["one that was left to containerd", { path: "delegated" }, () => {}, 1],
  ["one that failed", { result: "error" }, () => {}, 0],
  ["one that was cancelled", { result: "cancelled" }, () => {}, 0],
])("%s has no throughput", async (_, outcome, change, judged) => {
  const lines = await pull(outcome, change);
  expect(lines).toContain("hawser_image_pulling_throughput_mibps_count 0");
  expect(lines).toContain("hawser_pull_fetched_bytes_count 0");
  const counts = lines.filter((line) => line.startsWith("hawser_pull_bottlenecks_total{"));
  expect(counts).toHaveLength(8);
  expect(counts.filter((line) => line.endsWith(" 1"))).toHaveLength(judged);
});

test("a trace that cannot be kept is counted", async () => {
  expect(await pull({})).toContain("hawser_traces_lost_total 0");
  rmSync(join(root, "pulls"), { recursive: true });
  writeFileSync(join(root, "pulls"), "");
  expect(await pull({})).toContain("hawser_traces_lost_total 1");
});
