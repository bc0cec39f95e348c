// Every metric of Hawser, in one list. Names and labels are an interface for dashboards: add, do not rename.

import {
  type Aggregator,
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
const queueBuckets = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600];
const answerBuckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
/** From 256 KiB to 16 GiB. */
const sizeBuckets = [2 ** 18, 2 ** 20, 2 ** 22, 2 ** 24, 2 ** 26, 2 ** 28, 2 ** 30, 2 ** 32, 2 ** 34];
/** Those of containerd's own metric of that name. */
const throughputBuckets = [0.1, 1, 10, 25, 75, 150, 300, 500, 1000, 2000, 4000];
const stageBuckets = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180];

/** For how long something has been so; looked at whenever it is asked, since nothing happens while it goes on. */
class AgeGauge extends Gauge {
  #sinceMs: number | undefined;

  /** Undefined where it is not so: then it says 0. */
  since(ms: number | undefined): void {
    this.#sinceMs = ms;
  }

  override async get(): ReturnType<Gauge["get"]> {
    this.set(this.#sinceMs === undefined ? 0 : Math.max(0, (Date.now() - this.#sinceMs) / 1000));
    return await super.get();
  }
}

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
    pulledBytes: new Histogram({
      name: "hawser_pull_fetched_bytes",
      help: "Bytes of layers that came from registries, of accelerated pulls that succeeded and fetched any",
      buckets: sizeBuckets,
      registers,
    }),
    throughput: new Histogram({
      name: "hawser_image_pulling_throughput_mibps",
      help: "MiB a second, of the same pulls: those bytes over the whole time of the pull, as containerd counts its own",
      buckets: throughputBuckets,
      registers,
    }),
    bottlenecks: new Counter({
      name: "hawser_pull_bottlenecks_total",
      help: "Pulls that succeeded, by what most of their time went by with: registry, network, cpu, disk, containerd, limit, others, hawser",
      labelNames: ["cause"] as const,
      registers,
    }),
    causeSeconds: new Counter({
      name: "hawser_pull_cause_seconds_total",
      help: "All time of these pulls, by what it went by with along their critical paths",
      labelNames: ["cause"] as const,
      registers,
    }),
    queueWaits: new Histogram({
      name: "hawser_queue_wait_seconds",
      help: "Waits of requests, unpacking and blobs for their turn, of those that had to wait, by what for: a key of the configuration, host, cores or others",
      labelNames: ["key"] as const,
      buckets: queueBuckets,
      registers,
    }),
    queueLength: new Gauge({
      name: "hawser_queue_length",
      help: "How many wait for it now",
      labelNames: ["key"] as const,
      registers,
    }),
    limits: new Gauge({
      name: "hawser_limit",
      help: "Limits in force, by the key of the configuration, in the unit of that key",
      labelNames: ["key"] as const,
      aggregator: "first",
      registers,
    }),
    limitsUsed: new Gauge({
      name: "hawser_limit_used",
      help: "How much of a limit is in use; of one for each image, by the image that uses most",
      labelNames: ["key"] as const,
      aggregator: "first",
      registers,
    }),
    receivedBytes: new Counter({
      name: "hawser_registry_received_bytes_total",
      help: "Bytes of blobs by the host that sent them; the first 32 hosts have their names, later ones are other",
      labelNames: ["host"] as const,
      registers,
    }),
    requests: new Counter({
      name: "hawser_registry_requests_total",
      help: "Answers of registry hosts, tokens and redirects included, by class of status: 2xx, 3xx, 4xx, 5xx",
      labelNames: ["host", "status"] as const,
      registers,
    }),
    failures: new Counter({
      name: "hawser_registry_failures_total",
      help: "Failures of registry hosts: answers 429 and 5xx, and whatever came of no answer or a broken one (unavailable, slow and so on)",
      labelNames: ["host", "reason"] as const,
      registers,
    }),
    firstByteSeconds: new Histogram({
      name: "hawser_registry_first_byte_seconds",
      help: "From a request to the head of its answer, connecting included",
      labelNames: ["host"] as const,
      buckets: answerBuckets,
      registers,
    }),
    openRequests: new Gauge({
      name: "hawser_registry_open_requests",
      help: "Blob requests that are open to a host",
      labelNames: ["host"] as const,
      aggregator: "first",
      registers,
    }),
    openRequestsMax: new Gauge({
      name: "hawser_registry_open_requests_max",
      help: "Blob requests that may be open to a host, as configured or as was found out from how it answers",
      labelNames: ["host"] as const,
      aggregator: "first",
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
      aggregator: "first",
      registers,
    }),
    prewarmFetches: new Counter({
      name: "hawser_prewarm_fetches_total",
      help: "Attempts at such images: fetched, unchanged (warm already, and what its tag stands for still), error",
      labelNames: ["result"] as const,
      registers,
    }),
    prewarmAge: new AgeGauge({
      name: "hawser_prewarm_oldest_wanted_seconds",
      help: "For how long the oldest of them has been wanted that is not warm",
      aggregator: "max",
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
      aggregator: "max",
      registers,
    }),
    passThrough: new Gauge({
      name: "hawser_pass_through",
      help: "1 with the reason while every pull goes through to containerd; no series while pulls are accelerated",
      labelNames: ["reason"] as const,
      aggregator: "max",
      registers,
    }),
    pullerEnds: new Counter({
      name: "hawser_puller_restarts_total",
      help: "How often the process that pulls ended without having been told to, and was started again",
      registers,
    }),
    tracesLost: new Counter({
      name: "hawser_traces_lost_total",
      help: "Traces of pulls that could not be kept",
      registers,
    }),
    engine: new Gauge({
      name: "hawser_engine_info",
      help: "1 for the engine that unpacks layers",
      labelNames: ["engine"] as const,
      aggregator: "max",
      registers,
    }),
    build: new Gauge({
      name: "hawser_build_info",
      help: "1 with the version of Hawser and of Node.js",
      labelNames: ["version", "node"] as const,
      aggregator: "max",
      registers,
    }),
  };
  if (process === "front") metrics.build.set({ version, node: globalThis.process.version }, 1);
  for (const what of ["pulls", "downloads", "unpacks"]) metrics.inFlight.set({ what }, 0);
  // A series that begins with its first event is one that rates know nothing of before the second.
  for (const path of ["accelerated", "delegated"]) {
    metrics.pullSeconds.zero({ path });
    for (const result of ["ok", "error"]) metrics.pulls.inc({ result, path }, 0);
  }
  return metrics;
}

/**
 * The text of several processes' metrics, of which those of the same name and labels become one: most are summed up, and
 * some are what only the greatest or the first says (`aggregator`). So the newest process comes first.
 */
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
      const former = known.values.get(key)?.value;
      const value = former === undefined ? one.value : combine(metric.aggregator, former, one.value);
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

function combine(aggregator: Aggregator, former: number, value: number): number {
  switch (aggregator) {
    case "sum":
      return former + value;
    case "min":
      return Math.min(former, value);
    // Of how long a loop lags, what matters is the worst.
    case "average":
    case "max":
      return Math.max(former, value);
    case "first":
    case "omit":
      return former;
  }
}
