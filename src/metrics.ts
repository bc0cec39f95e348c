// Every metric of Hawser, in one list. Names and labels are an interface for dashboards: add, do not rename.

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

export type Metrics = ReturnType<typeof createMetrics>;

const pullBuckets = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640];
const stageBuckets = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180];

export function createMetrics(version: string) {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });
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
      help: "Stages of accelerated pulls: resolve and register once a pull; download, unpack and commit once a layer",
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
    retries: new Counter({
      name: "hawser_retries_total",
      help: "Requests to registries that were tried again, by reason",
      labelNames: ["reason"] as const,
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
      help: "1 while a registry host is not asked because it failed repeatedly",
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
  metrics.build.set({ version, node: process.version }, 1);
  for (const what of ["pulls", "downloads", "unpacks"]) metrics.inFlight.set({ what }, 0);
  return metrics;
}
