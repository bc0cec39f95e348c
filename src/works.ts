// Registry and puller: made for what containerd is now, and made anew when its version or its certs.d directories change.

import type { Config } from "./config.ts";
import type { Containerd, ContainerdFacts } from "./containerd/containerd.ts";
import type { Delegation } from "./cri/images.ts";
import { PullError } from "./errors.ts";
import { HostLabels, otherHosts } from "./hostlabels.ts";
import type { LayerEngine } from "./layer/layer.ts";
import { createEngine } from "./layer/pool.ts";
import { hostStreamsOf, keepLayersOf, limitsByKey, limitsOf, streamsOf, threadsOf } from "./limits.ts";
import type { Log } from "./log.ts";
import type { Metrics } from "./metrics.ts";
import { createPuller, type Puller } from "./pull/pull.ts";
import { Bandwidth } from "./registry/bandwidth.ts";
import { createRegistry } from "./registry/client.ts";
import type { ProxySettings } from "./registry/proxy.ts";
import type { Registry } from "./registry/registry.ts";
import { type Wording, wordingOf } from "./registry/wording.ts";
import { vitals } from "./vitals.ts";

export interface WorksOptions {
  readonly config: Config;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly version: string;
  readonly proxy: ProxySettings;
  readonly containerd: Containerd;
  readonly engine: LayerEngine;
}

interface Present {
  readonly key: string;
  readonly wording: Wording;
  readonly registry: Registry;
  readonly puller: Puller;
}

export class Works {
  readonly #options: WorksOptions;
  readonly #bandwidth: Bandwidth | undefined;
  readonly #hosts = new HostLabels();
  #present: Present | undefined;

  constructor(options: WorksOptions) {
    this.#options = options;
    const { bandwidth_limit: bytesPerSecond } = options.config.download;
    this.#bandwidth = bytesPerSecond === "off" ? undefined : new Bandwidth(bytesPerSecond);
    const { limits, limitsUsed, queueLength } = options.metrics;
    for (const [key, most] of limitsByKey(options.config)) {
      limits.set({ key }, most);
      // How much of a bandwidth is used is a matter of bytes that have come.
      if (key.endsWith("bandwidth_limit")) continue;
      limitsUsed.set({ key }, 0);
      queueLength.set({ key }, 0);
    }
  }

  get present(): Pick<Present, "wording" | "puller"> | undefined {
    return this.#present;
  }

  of(facts: ContainerdFacts): Pick<Present, "wording" | "puller"> {
    const { config, metrics } = this.#options;
    const { config_path } = config.registry;
    const paths = config_path === "auto" ? facts.registryConfigPath : config_path;
    const key = JSON.stringify([facts.version, paths]);
    if (this.#present?.key === key) return this.#present;
    const former = this.#present;
    // Breakers begin anew with the connections.
    metrics.breakerOpen.reset();
    const wording = wordingOf(facts.version);
    const registry = this.#makeRegistry(paths, wording);
    this.#present = { key, wording, registry, puller: this.#makePuller(registry) };
    // Pulls that are on their way still use the former connections; they are closed when those have ended.
    void former?.puller.settle().then(() => former.registry.close());
    return this.#present;
  }

  /** Waits until no pull goes on, and what follows them has ended. */
  async settle(): Promise<void> {
    await this.#present?.puller.settle();
  }

  async close(): Promise<void> {
    await this.#present?.registry.close();
  }

  #makeRegistry(configPath: readonly string[], wording: Wording): Registry {
    const { config, metrics, log, version, proxy } = this.#options;
    const { download, fallback } = config;
    return createRegistry({
      configPath,
      userAgent: `hawser/${version}`,
      wording,
      chunkBytes: download.chunk_size,
      streams: streamsOf(config),
      hostStreams: hostStreamsOf(config),
      connectTimeoutMs: download.connect_timeout,
      progressTimeoutMs: download.progress_timeout,
      retries: download.retries,
      bandwidth: this.#bandwidth,
      fallbackAfterMs: fallback.after,
      breaker: { failures: fallback.breaker_failures, resetMs: fallback.breaker_reset },
      proxy,
      events: {
        bytes: (count, from) => {
          metrics.downloadedBytes.inc(count);
          metrics.receivedBytes.inc({ host: this.#hosts.of(from) }, count);
        },
        answered: (from, status, seconds) => this.#answered(this.#hosts.of(from), status, seconds),
        failed: (from, reason) => metrics.failures.inc({ host: this.#hosts.of(from), reason }),
        retry: (reason) => metrics.retries.inc({ reason }),
        breaker: (host, open) => {
          // No series is left behind: hosts come from references, which anybody may make up.
          if (open) metrics.breakerOpen.set({ host }, 1);
          else metrics.breakerOpen.remove({ host });
          log.warn(
            { host },
            open
              ? "a registry host fails repeatedly and is not asked for now"
              : "a registry host answers again",
          );
        },
      },
    });
  }

  #answered(host: string, status: number, seconds: number): void {
    const { requests, failures, firstByteSeconds } = this.#options.metrics;
    requests.inc({ host, status: `${Math.floor(status / 100)}xx` });
    firstByteSeconds.observe({ host }, seconds);
    if (status === 429 || status >= 500) failures.inc({ host, reason: status === 429 ? "429" : "5xx" });
  }

  #opened(host: string, open: number, most: number): void {
    // Of several hosts the one that was asked last would overwrite the others.
    if (host === otherHosts) return;
    const { openRequests, openRequestsMax } = this.#options.metrics;
    openRequests.set({ host }, open);
    openRequestsMax.set({ host }, most);
  }

  #makePuller(registry: Registry): Puller {
    const { config, metrics, log, engine, containerd } = this.#options;
    const { containerd: settings } = config;
    return createPuller({
      containerd,
      registry,
      engine,
      keepLayers: keepLayersOf(config),
      registersDirectly: (facts) => settings.registration === "auto" && facts.takesRecords,
      limits: limitsOf(config),
      vitals,
      events: {
        stage: (stage, seconds) => metrics.stageSeconds.observe({ stage }, seconds),
        unpacked: (bytes) => metrics.unpackedBytes.inc(bytes),
        inFlight: (what, count) => metrics.inFlight.set({ what }, count),
        limits: {
          waited: (key, seconds) => metrics.queueWaits.observe({ key }, seconds),
          queued: (key, count) => metrics.queueLength.set({ key }, count),
          used: (key, count) => metrics.limitsUsed.set({ key }, count),
          host: (name, open, most) => this.#opened(this.#hosts.of(name), open, most),
        },
        warn: (error) =>
          log.warn({ code: error.code, detail: error.message }, "clearing up after a pull failed"),
      },
    });
  }
}

/** See {@link createEngine}: throws `unsupported` when there is none. */
export function makeEngine(config: Config): LayerEngine {
  return createEngine({
    engine: config.unpack.engine === "portable" ? "portable" : "native",
    threads: threadsOf(config),
    workerFile: new URL("./worker.js", import.meta.url),
  });
}

/** The engine, or why there is none. */
export function engineOf(config: Config): LayerEngine | Delegation {
  try {
    return makeEngine(config);
  } catch (error) {
    return { reason: "engine", detail: PullError.from(error).message };
  }
}
