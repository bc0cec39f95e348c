// Registry and puller: made for what containerd is now, and made anew when its version or its certs.d directories change.

import type { Config } from "./config.ts";
import type { Containerd, ContainerdFacts } from "./containerd/containerd.ts";
import type { LayerEngine } from "./layer/layer.ts";
import { createEngine } from "./layer/pool.ts";
import { hostStreamsOf, keepLayersOf, limitsOf, streamsOf, threadsOf } from "./limits.ts";
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
  #present: Present | undefined;

  constructor(options: WorksOptions) {
    this.#options = options;
    const { bandwidth_limit: bytesPerSecond } = options.config.download;
    this.#bandwidth = bytesPerSecond === "off" ? undefined : new Bandwidth(bytesPerSecond);
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
        bytes: (count) => metrics.downloadedBytes.inc(count),
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
