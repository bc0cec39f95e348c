// The wiring of the daemon: constructs every long-lived thing, in order, and takes them down in reverse.
//
// Nothing here decides anything about a pull: cri/ decides what is delegated, pull/ does the work, and the site says
// whether work may be done at all. No bad configuration and no missing part keeps the daemon from serving: then every
// call goes through to containerd, and log and metrics say why.

import { existsSync } from "node:fs";
import type { Config, Problem } from "./config.ts";
import { createContainerd } from "./containerd/client.ts";
import type { Containerd, ContainerdFacts } from "./containerd/containerd.ts";
import { availableCores } from "./cores.ts";
import { createPullHandler, type Delegation, type PullOutcome } from "./cri/images.ts";
import { type CriServer, createCriServer } from "./cri/server.ts";
import { PullError } from "./errors.ts";
import { type Exposition, expose } from "./exposition.ts";
import type { LayerEngine } from "./layer/layer.ts";
import { createEngine } from "./layer/pool.ts";
import type { Log } from "./log.ts";
import type { Metrics } from "./metrics.ts";
import { parseReference } from "./oci/reference.ts";
import type { PullImageRequest } from "./proto/gen/cri_pb.js";
import { createPuller, type Pulled, type Puller } from "./pull/pull.ts";
import { SiteKeeper, type SiteState } from "./pull/site.ts";
import { createRegistry } from "./registry/client.ts";
import type { Credentials, Registry } from "./registry/registry.ts";

export interface DaemonOptions {
  readonly config: Config;
  /** What is wrong with the configuration; with any problem, the daemon only passes calls through. */
  readonly problems: readonly Problem[];
  readonly log: Log;
  readonly metrics: Metrics;
  readonly version: string;
}

export interface Daemon {
  /** Stops accepting calls, lets running ones end for this long, cancels the rest and removes what is ours. */
  drain(timeoutMs: number): Promise<void>;
}

/** Resolves once the CRI socket answers; containerd need not be there. Rejects when the socket cannot be had. */
export async function startDaemon(options: DaemonOptions): Promise<Daemon> {
  const daemon = new NodeDaemon(options);
  await daemon.start();
  return daemon;
}

/** Registry and puller, as long as containerd's certs.d directories stay the same. */
interface Works {
  readonly configPath: string;
  readonly registry: Registry;
  readonly puller: Puller;
}

class NodeDaemon implements Daemon {
  readonly #options: DaemonOptions;
  readonly #containerd: Containerd;
  readonly #server: CriServer;
  readonly #engine: LayerEngine | undefined;
  /** Why no pull is accelerated for as long as this process runs. */
  readonly #hindrance: Delegation | undefined;
  #site: SiteKeeper | undefined;
  #works: Works | undefined;
  #exposition: Exposition | undefined;
  #pulls = 0;

  constructor(options: DaemonOptions) {
    this.#options = options;
    const { config, problems } = options;
    const { snapshotter } = config.containerd;
    this.#containerd = createContainerd({
      address: config.containerd.address,
      namespace: config.containerd.namespace,
      configFile: config.containerd.config_file,
      snapshotter: snapshotter === "auto" ? undefined : snapshotter,
    });
    const engine = problems.length > 0 ? configurationProblem(problems) : makeEngine(config);
    if ("reason" in engine) this.#hindrance = engine;
    else this.#engine = engine;
    const forward = this.#containerd.forward.bind(this.#containerd);
    this.#server = createCriServer({
      socket: config.cri.listen,
      messageBytesMax: config.cri.max_message_size,
      forward,
      pull: createPullHandler({
        forward,
        fallback: config.fallback.enabled,
        ineligible: (request) => this.#ineligible(request),
        pull: (reference, credentials, signal) => this.#pull(reference, credentials, signal),
        started: () => this.#count(1),
        done: (outcome) => this.#report(outcome),
        registered: (seconds) => options.metrics.stageSeconds.observe({ stage: "register" }, seconds),
      }),
    });
  }

  async start(): Promise<void> {
    const { config, log, metrics } = this.#options;
    await this.#server.listen();
    if (config.metrics.listen !== "off") {
      const { host, port } = config.metrics.listen;
      // The node's pulls matter more than its metrics: a port that is taken is reported, and nothing else.
      this.#exposition = await expose(metrics, host, port).catch((error: unknown) => {
        log.error(PullError.from(error).message);
        return undefined;
      });
      if (this.#exposition) log.info(`metrics on ${host}:${this.#exposition.port}`);
    }
    if (this.#engine) metrics.engine.set({ engine: this.#engine.name }, 1);
    if (this.#hindrance) {
      const { reason, detail } = this.#hindrance;
      metrics.passThrough.set({ reason }, 1);
      log.error({ reason, detail }, "every pull goes through to containerd");
      return;
    }
    this.#site = new SiteKeeper({
      containerd: this.#containerd,
      selfTest: (site, signal) => this.#containerd.selfTest(site.instance.staging, signal),
      changed: (state) => this.#siteChanged(state),
      swept: (outcome) => this.#swept(outcome),
    });
  }

  async drain(timeoutMs: number): Promise<void> {
    await this.#server.drain(timeoutMs);
    await this.#works?.puller.settle();
    await this.#site?.[Symbol.asyncDispose]();
    await this.#works?.registry.close();
    await this.#engine?.close();
    await this.#exposition?.close();
    this.#containerd.close();
  }

  #ineligible(request: PullImageRequest): Delegation | undefined {
    if (this.#hindrance) return this.#hindrance;
    const state = this.#site?.state;
    if (state?.kind !== "open")
      return { reason: state?.reason ?? "starting", detail: state?.detail ?? "starting" };
    const { snapshotter } = this.#options.config.containerd;
    const handler =
      request.image?.runtimeHandler || request.sandboxConfig?.annotations[runtimeHandlerAnnotation];
    if (handler && snapshotter === "auto") {
      // A runtime handler may have a snapshotter of its own (reference 2.10), which only containerd knows.
      return { reason: "runtime_handler", detail: `runtime handler ${handler}` };
    }
    return this.#excluded(request.image?.image ?? "");
  }

  #excluded(text: string): Delegation | undefined {
    const { include, exclude } = this.#options.config.registry;
    if (include.length === 0 && exclude.length === 0) return undefined;
    let host: string;
    try {
      host = parseReference(text).host;
    } catch {
      // The pull itself finds out what is wrong with the reference.
      return undefined;
    }
    const isOut = exclude.includes(host) || (include.length > 0 && !include.includes(host));
    return isOut
      ? { reason: "excluded", detail: `registry ${host} is excluded by configuration` }
      : undefined;
  }

  async #pull(reference: string, credentials: Credentials | undefined, signal: AbortSignal): Promise<Pulled> {
    const state = this.#site?.state;
    if (state?.kind === "open") {
      return await this.#worksFor(state.site.facts).puller.pull(reference, state.site, credentials, signal);
    }
    const failure = new PullError("unavailable", "containerd went away", { temporary: true });
    return { failure, [Symbol.asyncDispose]: async () => {} };
  }

  #worksFor(facts: ContainerdFacts): Works {
    const { config, metrics, log, version } = this.#options;
    const { download, fallback, registry: settings } = config;
    const paths = settings.config_path === "auto" ? facts.registryConfigPath : settings.config_path;
    const configPath = paths.join(":");
    if (this.#works?.configPath === configPath) return this.#works;
    const former = this.#works;
    const hosts = [...settings.host];
    const registry = createRegistry({
      configPath: paths,
      userAgent: `hawser/${version}`,
      chunkBytes: download.chunk_size,
      streams: download.max_concurrent_per_image,
      hostStreams: new Map(
        hosts.flatMap(([host, { streams }]) => (streams === undefined ? [] : [[host, streams]])),
      ),
      connectTimeoutMs: download.connect_timeout,
      progressTimeoutMs: download.progress_timeout,
      retries: download.retries,
      fallbackAfterMs: fallback.after,
      breaker: { failures: fallback.breaker_failures, resetMs: fallback.breaker_reset },
      events: {
        bytes: (count) => metrics.downloadedBytes.inc(count),
        retry: (reason) => metrics.retries.inc({ reason }),
        breaker: (host, open) => {
          metrics.breakerOpen.set({ host }, open ? 1 : 0);
          log.warn(
            { host },
            open
              ? "a registry host fails repeatedly and is not asked for now"
              : "a registry host answers again",
          );
        },
      },
    });
    this.#works = { configPath, registry, puller: this.#makePuller(registry) };
    // Pulls that are on their way still use the former connections; they are closed when those have ended.
    void former?.puller.settle().then(() => former.registry.close());
    return this.#works;
  }

  #makePuller(registry: Registry): Puller {
    const { config, metrics, log } = this.#options;
    const { download, unpack, content } = config;
    const engine = this.#engine;
    if (engine === undefined) throw new PullError("internal", "a pull was begun without an engine");
    const threads = threadsOf(config);
    const perHost = [...config.registry.host].flatMap(([host, { max_concurrent }]): [string, number][] =>
      max_concurrent === undefined ? [] : [[host, max_concurrent]],
    );
    return createPuller({
      containerd: this.#containerd,
      registry,
      engine,
      keepLayers: (facts) =>
        content.keep_layers === "auto" ? !facts.discardUnpackedLayers : content.keep_layers,
      limits: {
        downloadsMax: download.max_concurrent,
        downloadsPerImageMax: download.max_concurrent_per_image,
        downloadsPerHostMax: download.max_concurrent_per_host,
        hosts: new Map(perHost),
        unpacksMax: threads,
        unpacksPerImageMax:
          unpack.max_concurrent_per_image === "auto" ? threads : unpack.max_concurrent_per_image,
        layer: {
          entriesMax: unpack.max_entries,
          bytesMax: unpack.max_layer_size,
          ratioMax: unpack.max_ratio,
        },
      },
      events: {
        stage: (stage, seconds) => metrics.stageSeconds.observe({ stage }, seconds),
        unpacked: (bytes) => metrics.unpackedBytes.inc(bytes),
        inFlight: (what, count) => metrics.inFlight.set({ what }, count),
        warn: (error) =>
          log.warn({ code: error.code, detail: error.message }, "clearing up after a pull failed"),
      },
    });
  }

  #siteChanged(state: SiteState): void {
    const { log, metrics } = this.#options;
    metrics.passThrough.reset();
    if (state.kind === "open") {
      const { version, contentRoot, snapshotterRoot } = state.site.facts;
      log.info(
        { containerd: version, contentRoot, snapshotterRoot, engine: this.#engine?.name },
        "pulls are accelerated",
      );
      // The first pull need not wait for anything to be constructed.
      this.#worksFor(state.site.facts);
      return;
    }
    const { reason, detail } = state;
    metrics.passThrough.set({ reason }, 1);
    if (reason !== "stopping") log.warn({ reason, detail }, "every pull goes through to containerd");
  }

  #swept(outcome: number | PullError): void {
    const { log } = this.#options;
    if (typeof outcome === "number") log.info({ instances: outcome }, "removed what dead instances left");
    else log.warn({ detail: outcome.message }, "removing what dead instances left failed");
  }

  #count(change: number): void {
    this.#pulls += change;
    this.#options.metrics.inFlight.set({ what: "pulls" }, this.#pulls);
  }

  #report(outcome: PullOutcome): void {
    const { log, metrics } = this.#options;
    const { reference, path, result, seconds, delegation, error } = outcome;
    this.#count(-1);
    metrics.pulls.inc({ result, path });
    if (result === "ok") metrics.pullSeconds.observe({ path }, seconds);
    if (delegation) metrics.fallbacks.inc({ reason: delegation.reason });
    const fields = {
      image: reference,
      result,
      path,
      seconds: Number(seconds.toFixed(3)),
      ...(delegation && { reason: delegation.reason, detail: delegation.detail }),
      ...(error !== undefined && { error }),
    };
    if (result === "ok" || result === "cancelled") log.info(fields, "pull");
    else log.warn(fields, "pull");
  }
}

/** Names the runtime handler of a pull up to containerd 2.1 (reference 2.10). */
const runtimeHandlerAnnotation = "io.containerd.cri.runtime-handler";

function threadsOf({ unpack }: Config): number {
  return unpack.max_concurrent === "auto" ? availableCores() : unpack.max_concurrent;
}

function configurationProblem(problems: readonly Problem[]): Delegation {
  const detail = problems.map(({ path, message }) => (path ? `${path}: ${message}` : message)).join("; ");
  return { reason: "configuration", detail };
}

function makeEngine(config: Config): LayerEngine | Delegation {
  // A staging directory would keep its own label under a snapshot, which a confined container may not read.
  if (existsSync("/sys/fs/selinux/enforce")) {
    return { reason: "selinux", detail: "SELinux is on, and labelling of layers is not in this version yet" };
  }
  try {
    return createEngine({
      engine: config.unpack.engine === "portable" ? "portable" : "native",
      threads: threadsOf(config),
      workerFile: new URL("./layer/worker.js", import.meta.url),
    });
  } catch (error) {
    return { reason: "engine", detail: PullError.from(error).message };
  }
}
