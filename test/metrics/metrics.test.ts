// What several processes count, put together; and labels that nobody can make as many of as they like.

import { expect, test } from "vitest";
import { HostLabels } from "../../src/hostlabels.ts";
import { createMetrics, mergeMetrics } from "../../src/metrics.ts";
import { eventually } from "../harness/process.ts";

test("the first 32 hosts have their names, and all later ones share one", () => {
  const hosts = new HostLabels();
  const names = Array.from({ length: 1000 }, (_, index) => `made-up-${index}.example:443`);
  expect(names.slice(0, 32).map((name) => hosts.of(name))).toEqual(names.slice(0, 32));
  expect(new Set(names.slice(32).map((name) => hosts.of(name)))).toEqual(new Set(["other"]));
  expect(hosts.of("made-up-31.example:443")).toBe("made-up-31.example:443");
});

/** Two processes that pull, during a reload: the former one had other limits. */
async function merged(): Promise<string> {
  const front = createMetrics("1.2.3", "front");
  const [former, newest] = [createMetrics("1.2.3", "puller"), createMetrics("1.2.3", "puller")];
  const key = "download.max_concurrent";
  const host = "registry.example:443";
  for (const [puller, limit, used] of [
    [former, 64, 10],
    [newest, 8, 2],
  ] as const) {
    puller.limits.set({ key }, limit);
    puller.limitsUsed.set({ key }, used);
    puller.openRequests.set({ host }, used);
    puller.openRequestsMax.set({ host }, limit);
    puller.queueLength.set({ key }, used);
    puller.breakerOpen.set({ host }, 1);
    puller.engine.set({ engine: "native" }, 1);
    puller.prewarmAge.since(Date.now() - 1000 * limit);
    puller.prewarmImages.set({ state: "warm" }, used);
    puller.inFlight.set({ what: "downloads" }, used);
    puller.receivedBytes.inc({ host }, used);
    puller.queueWaits.observe({ key }, used);
  }
  front.pullerEnds.inc();
  const all = await Promise.all(
    [front, newest, former].map(async ({ registry }) => await registry.getMetricsAsJSON()),
  );
  return await mergeMetrics(all);
}

test.each([
  ["a limit is the newest process's", 'hawser_limit{key="download.max_concurrent"} 8'],
  ["and so is its use", 'hawser_limit_used{key="download.max_concurrent"} 2'],
  ["requests to a host", 'hawser_registry_open_requests{host="registry.example:443"} 2'],
  ["and the most of them", 'hawser_registry_open_requests_max{host="registry.example:443"} 8'],
  ["images ahead of need", 'hawser_prewarm_images{state="warm"} 2'],
  ["a breaker is open once", 'hawser_breaker_open{host="registry.example:443"} 1'],
  ["there is one engine", 'hawser_engine_info{engine="native"} 1'],
  ["the oldest is the oldest of both", /^hawser_prewarm_oldest_wanted_seconds 64(?:\.|$)/m],
  ["what goes on is summed up", 'hawser_in_flight{what="downloads"} 12'],
  ["and who waits", 'hawser_queue_length{key="download.max_concurrent"} 12'],
  ["and what has come", 'hawser_registry_received_bytes_total{host="registry.example:443"} 12'],
  ["and histograms", 'hawser_queue_wait_seconds_count{key="download.max_concurrent"} 2'],
  ["what the front alone counts", "hawser_puller_restarts_total 1"],
])("%s", async (_, line) => {
  const text = await merged();
  if (typeof line === "string") expect(text.split("\n")).toContain(line);
  else expect(text).toMatch(line);
});

test("when a process began is said of one, and not the sum of several", async () => {
  const text = await merged();
  const seconds = Number(/^process_start_time_seconds\{process="puller"\} (\d+)$/m.exec(text)?.[1]);
  expect(seconds).toBeGreaterThan(1_500_000_000);
  expect(seconds).toBeLessThan(Date.now() / 1000 + 1);
});

test("pulls have their series before there is one, so that rates know of the first", async () => {
  const text = await createMetrics("1.2.3", "puller").registry.metrics();
  for (const path of ["accelerated", "delegated"]) {
    expect(text).toContain(`hawser_pull_duration_seconds_count{path="${path}"} 0`);
    for (const result of ["ok", "error"])
      expect(text).toContain(`hawser_pulls_total{result="${result}",path="${path}"} 0`);
  }
});

test("an age grows while nothing happens", async () => {
  const { prewarmAge, registry } = createMetrics("1.2.3", "puller");
  const age = async (): Promise<number> =>
    Number(/^hawser_prewarm_oldest_wanted_seconds (\S+)$/m.exec(await registry.metrics())?.[1]);
  expect(await age()).toBe(0);
  prewarmAge.since(Date.now() - 60_000);
  const first = await age();
  expect(first).toBeGreaterThanOrEqual(60);
  await eventually(async () => expect(await age()).toBeGreaterThan(first), "a later moment");
  prewarmAge.since(undefined);
  expect(await age()).toBe(0);
});
