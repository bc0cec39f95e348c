// Every metric of Hawser, in one list. Names and labels are an interface for dashboards: add, do not rename.

import {
  Counter,
  collectDefaultMetrics,
  Gauge,
  Histogram,
  type Metric,
  type MetricObjectWithValues,
  type MetricValue,
  Registry,
} from "prom-client";

export type Metrics = ReturnType<typeof createMetrics>;

/** A metric as prom-client writes it to JSON. */
export type MetricValues = MetricObjectWithValues<MetricValue<string>>;

const pullBuckets = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640];
const stageBuckets = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180];

/** The process that counts has a label on what is the process's own. */
export function createMetrics(version: string, process: "front" | "puller") {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry, labels: { process } });
  const metrics = {
    registry,
    pulls: new Counter({
      name: "hawser_pulls_total",
      help: "PullImage calls that were answered, by result and by who did the work",
      labelNames: ["result", "path"] as const,
      registers,
    }),
    pullSeconds: new Histogram({
      name: "hawser_pull_duration_seconds",
      help: "From PullImage to its answer, of pulls that succeeded",
      labelNames: ["path"] as const,
      buckets: pullBuckets,
      registers,
    }),
    stageSeconds: new Histogram({
      name: "hawser_stage_duration_seconds",
      help: "Stages of accelerated pulls: resolve, plan, layers, blobs and register one behind another, once a pull; download, unpack and commit once a layer, within layers",
      labelNames: ["stage"] as const,
      buckets: stageBuckets,
      registers,
    }),
    downloadedBytes: new Counter({
      name: "hawser_downloaded_bytes_total",
      help: "Bytes of blobs received from registries",
      registers,
    }),
    unpackedBytes: new Counter({
      name: "hawser_unpacked_bytes_total",
      help: "Bytes of layers after inflating",
      registers,
    }),
    inFlight: new Gauge({
      name: "hawser_in_flight",
      help: "What is going on now: pulls (calls), downloads (blob requests), unpacks (layers)",
      labelNames: ["what"] as const,
      registers,
    }),
    spoolBytes: new Gauge({
      name: "hawser_spool_bytes",
      help: "Bytes reserved for blobs on their way (live) and left by broken-off pulls to be gone on with (parked)",
      labelNames: ["state"] as const,
      registers,
    }),
    retries: new Counter({
      name: "hawser_retries_total",
      help: "Requests to registries that were tried again, by reason",
      labelNames: ["reason"] as const,
      registers,
    }),
    prewarmImages: new Gauge({
      name: "hawser_prewarm_images",
      help: "Images that are fetched ahead of need, by state: wanted, fetching, warm, failed",
      labelNames: ["state"] as const,
      registers,
    }),
    prewarmFetches: new Counter({
      name: "hawser_prewarm_fetches_total",
      help: "Attempts at such images: fetched, unchanged (warm already, and what its tag stands for still), error",
      labelNames: ["result"] as const,
      registers,
    }),
    prewarmAge: new Gauge({
      name: "hawser_prewarm_oldest_wanted_seconds",
      help: "For how long the oldest of them has been wanted that is not warm",
      registers,
    }),
    registrations: new Counter({
      name: "hawser_registrations_total",
      help: "Accelerated pulls that ended well, by whose image records they ended with: earlier (nothing was missing), hawser, or containerd (its own PullImage)",
      labelNames: ["by"] as const,
      registers,
    }),
    fallbacks: new Counter({
      name: "hawser_fallbacks_total",
      help: "Pulls that were left to containerd, by reason",
      labelNames: ["reason"] as const,
      registers,
    }),
    breakerOpen: new Gauge({
      name: "hawser_breaker_open",
      help: "1 while a registry host is not asked because it failed repeatedly; no series otherwise",
      labelNames: ["host"] as const,
      registers,
    }),
    passThrough: new Gauge({
      name: "hawser_pass_through",
      help: "1 with the reason while every pull goes through to containerd; no series while pulls are accelerated",
      labelNames: ["reason"] as const,
      registers,
    }),
    engine: new Gauge({
      name: "hawser_engine_info",
      help: "1 for the engine that unpacks layers",
      labelNames: ["engine"] as const,
      registers,
    }),
    build: new Gauge({
      name: "hawser_build_info",
      help: "1 with the version of Hawser and of Node.js",
      labelNames: ["version", "node"] as const,
      registers,
    }),
  };
  if (process === "front") metrics.build.set({ version, node: globalThis.process.version }, 1);
  for (const what of ["pulls", "downloads", "unpacks"]) metrics.inFlight.set({ what }, 0);
  return metrics;
}

/** The text of several processes' metrics: what has the same name and labels is summed up. */
export async function mergeMetrics(lists: readonly (readonly MetricValues[])[]): Promise<string> {
  const merged = new Map<string, { metric: MetricValues; values: Map<string, MetricValue<string>> }>();
  for (const metric of lists.flat()) {
    const { name } = metric;
    const known = merged.get(name) ?? { metric, values: new Map<string, MetricValue<string>>() };
    merged.set(name, known);
    for (const one of metric.values) {
      const { metricName } = one as { readonly metricName?: string };
      const labels = Object.entries(one.labels).map((pair) => pair.join("="));
      const key = [metricName, ...labels.sort()].join("\n");
      const value = (known.values.get(key)?.value ?? 0) + one.value;
      known.values.set(key, { ...one, value });
    }
  }
  const registry = new Registry();
  for (const [name, { metric, values }] of merged) {
    const all = { ...metric, values: [...values.values()] };
    registry.registerMetric({ name, get: async () => all } as unknown as Metric);
  }
  return await registry.metrics();
}
