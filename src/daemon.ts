// The wiring of the process that pulls: constructs every long-lived thing, in order, and takes them down in reverse.
//
// Nothing here decides anything about a pull: cri/ decides what is delegated, pull/ does the work, and the site says
// whether work may be done at all. No bad configuration and no missing part keeps it from serving: then every call
// goes through to containerd, and log and metrics say why.

import { Account } from "./account.ts";
import { findKubeconfig, nodeNameOf } from "./cluster/identity.ts";
import type { Config, Problem } from "./config.ts";
import { createContainerd } from "./containerd/client.ts";
import type { Containerd } from "./containerd/containerd.ts";
import { markAnswers } from "./cri/failover.ts";
import { createPullHandler, type Delegation } from "./cri/images.ts";
import { type CriServer, createCriServer } from "./cri/server.ts";
import { PullError } from "./errors.ts";
import type { PullRecord } from "./history/record.ts";
import type { PullSummary } from "./history/summary.ts";
import type { LayerEngine } from "./layer/layer.ts";
import { spareOf } from "./limits.ts";
import type { Log } from "./log.ts";
import type { Metrics } from "./metrics.ts";
import { parseReference } from "./oci/reference.ts";
import {
  type NodeCluster,
  Prewarming,
  type PrewarmRequest,
  type PrewarmStatus,
} from "./prewarm/prewarming.ts";
import type { PullImageRequest } from "./proto/gen/cri_pb.js";
import type { Ahead, Observed, Pulled } from "./pull/pull.ts";
import { SiteKeeper, type SiteState } from "./pull/site.ts";
import type { ProxySettings } from "./registry/proxy.ts";
import type { Credentials } from "./registry/registry.ts";
import { wordingOf } from "./registry/wording.ts";
import { Selinux } from "./selinux.ts";
import { engineOf, Works } from "./works.ts";

export interface DaemonOptions {
  readonly config: Config;
  /** Path of the socket to serve on. */
  readonly socket: string;
  /** What is wrong with the configuration; with any problem, the daemon only passes calls through. */
  readonly problems: readonly Problem[];
  readonly log: Log;
  readonly metrics: Metrics;
  readonly version: string;
  /** Told whether pulls are accelerated, on each change: why not, or undefined. */
  readonly siteChanged: (closed: Delegation | undefined) => void;
  readonly proxy: ProxySettings;
}

export interface Daemon {
  /** Of {@link Prewarming}; throws `unavailable` where nothing is accelerated. */
  prewarm(request: PrewarmRequest): Promise<PrewarmStatus>;
  /** Pulls that go on, or have ended just now. */
  pulls(): readonly PullSummary[];
  /** One of these, whole, by its id or its trace's. */
  pull(id: string): PullRecord | undefined;
  /** False where none of this id goes on. */
  cancel(id: string): boolean;
  /** Stops accepting calls, lets running ones end for this long, cancels the rest and removes what is ours. */
  drain(timeoutMs: number): Promise<void>;
}

/** Resolves once the CRI socket answers; containerd need not be there. Rejects when the socket cannot be had. */
export async function startDaemon(options: DaemonOptions): Promise<Daemon> {
  const daemon = new NodeDaemon(options);
  await daemon.start();
  return daemon;
}

class NodeDaemon implements Daemon {
  readonly #options: DaemonOptions;
  readonly #containerd: Containerd;
  readonly #server: CriServer;
  readonly #engine: LayerEngine | undefined;
  /** Why no pull is accelerated for as long as this process runs. */
  readonly #hindrance: Delegation | undefined;
  readonly #works: Works | undefined;
  readonly #prewarming: Prewarming | undefined;
  readonly #account: Account;
  #site: SiteKeeper | undefined;

  constructor(options: DaemonOptions) {
    this.#options = options;
    const { config, problems } = options;
    this.#account = new Account(options);
    const { snapshotter } = config.containerd;
    this.#containerd = createContainerd({
      address: config.containerd.address,
      namespace: config.containerd.namespace,
      configFile: config.containerd.config_file,
      snapshotter: snapshotter === "auto" ? undefined : snapshotter,
    });
    const engine = problems.length > 0 ? configurationProblem(problems) : engineOf(config);
    if ("reason" in engine) {
      this.#hindrance = engine;
    } else {
      this.#engine = engine;
      this.#works = new Works({ ...options, containerd: this.#containerd, engine });
      this.#prewarming = this.#makePrewarming();
    }
    const forward = this.#containerd.forward.bind(this.#containerd);
    this.#server = createCriServer({
      socket: options.socket,
      messageBytesMax: config.cri.max_message_size,
      forward,
      pull: markAnswers(
        createPullHandler({
          forward,
          fallback: config.fallback.enabled,
          ineligible: (request) => this.#ineligible(request),
          pull: async (...wanted) => await this.#pull(...wanted),
          delegating: () => this.#works?.present?.puller.giveWay() ?? { [Symbol.dispose]: () => {} },
          unresolved: (name) => (this.#works?.present?.wording ?? wordingOf("")).unresolved(name),
          begin: (metadata) => this.#account.begin(metadata),
          done: (outcome, trace) => this.#account.report(outcome, trace),
          registered: (seconds) => options.metrics.stageSeconds.observe({ stage: "register" }, seconds),
        }),
      ),
    });
  }

  async start(): Promise<void> {
    const { config, log, metrics } = this.#options;
    await this.#server.listen();
    if (this.#engine) metrics.engine.set({ engine: this.#engine.name }, 1);
    if (this.#hindrance) {
      const { reason, detail } = this.#hindrance;
      metrics.passThrough.set({ reason }, 1);
      log.error({ reason, detail }, "every pull goes through to containerd");
      this.#options.siteChanged(this.#hindrance);
      return;
    }
    this.#site = new SiteKeeper({
      containerd: this.#containerd,
      selinux: new Selinux(),
      selfTest: ({ instance, selinux }, signal) =>
        this.#containerd.selfTest(instance.staging, selinux, signal),
      changed: (state) => this.#siteChanged(state),
      swept: (outcome) => this.#swept(outcome),
      adopted: (digest, failure) => this.#adopted(digest, failure),
      spools: {
        limits: { bytesMax: config.content.spool_max_size, ageMaxMs: config.content.spool_max_age },
        changed: ({ live, parked }) => {
          metrics.spoolBytes.set({ state: "live" }, live);
          metrics.spoolBytes.set({ state: "parked" }, parked);
          // What is parked gives way.
          metrics.limitsUsed.set({ key: spoolKey }, live);
        },
        queue: {
          waited: (seconds) => metrics.queueWaits.observe({ key: spoolKey }, seconds),
          queued: (count) => metrics.queueLength.set({ key: spoolKey }, count),
        },
      },
    });
  }

  async prewarm(request: PrewarmRequest): Promise<PrewarmStatus> {
    if (this.#prewarming) return await this.#prewarming.answer(request);
    throw new PullError("unavailable", `nothing is fetched ahead: ${this.#hindrance?.detail}`);
  }

  pulls(): readonly PullSummary[] {
    return this.#account.present();
  }

  pull(id: string): PullRecord | undefined {
    return this.#account.find(id);
  }

  cancel(id: string): boolean {
    return this.#account.cancel(id);
  }

  async drain(timeoutMs: number): Promise<void> {
    this.#account.leave();
    await Promise.all([this.#server.drain(timeoutMs), this.#prewarming?.close()]);
    // What a containerd that hangs keeps us from clearing up is swept by the next instance.
    const patience = setTimeout(() => this.#containerd.close(), clearUpMs);
    await this.#works?.settle();
    await this.#account.close();
    await this.#site?.[Symbol.asyncDispose]();
    await this.#works?.close();
    await this.#engine?.close();
    clearTimeout(patience);
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

  async #pull(
    reference: string,
    credentials: Credentials | undefined,
    observed: Observed,
    signal: AbortSignal,
  ): Promise<Pulled> {
    const state = this.#site?.state;
    if (state?.kind !== "open" || !this.#works) return failed(away());
    const { puller } = this.#works.of(state.site.facts);
    return await puller.pull(reference, state.site, credentials, signal, observed);
  }

  async #fetchAhead(
    name: string,
    credentials: Credentials | undefined,
    ahead: Ahead,
    signal: AbortSignal,
  ): Promise<Pulled> {
    const state = this.#site?.state;
    if (state?.kind !== "open" || !this.#works) return failed(away());
    const excluded = this.#excluded(name);
    if (excluded) return failed(new PullError("unsupported", excluded.detail));
    const { puller } = this.#works.of(state.site.facts);
    return await this.#account.ahead(
      name,
      signal,
      async (trace, either) => await puller.pullAhead(name, state.site, credentials, ahead, either, trace),
    );
  }

  #makePrewarming(): Prewarming {
    const { config, log, metrics } = this.#options;
    const { prewarm, admin } = config;
    return new Prewarming({
      images: prewarm.images,
      directory: prewarm.directory === "off" ? undefined : prewarm.directory,
      listsAnonymous: prewarm.list_anonymous,
      wishesFile: `${admin.state_dir}/prewarm`,
      limits: {
        concurrentMax: prewarm.max_concurrent,
        refreshMs: prewarm.refresh,
        keepMs: prewarm.keep,
      },
      spare: spareOf(config),
      holds: this.#containerd.holds,
      folders: () => {
        const state = this.#site?.state;
        if (state?.kind !== "open") return [];
        return [state.site.facts.contentRoot, state.site.facts.snapshotterRoot];
      },
      listed: async (name) => (await this.#containerd.records.image(name))?.target.digest,
      cluster: prewarm.pods ? async () => await connect(prewarm) : undefined,
      credentialsFile: prewarm.credentials,
      fetch: async (name, credentials, ahead, signal) =>
        await this.#fetchAhead(name, credentials, ahead, signal),
      log,
      metrics,
    });
  }

  #siteChanged(state: SiteState): void {
    const { log, metrics, siteChanged } = this.#options;
    metrics.passThrough.reset();
    siteChanged(state.kind === "open" ? undefined : state);
    if (state.kind === "open") {
      const { version, contentRoot, snapshotterRoot } = state.site.facts;
      log.info(
        { containerd: version, contentRoot, snapshotterRoot, engine: this.#engine?.name },
        "pulls are accelerated",
      );
      // The first pull need not wait for anything to be constructed.
      this.#works?.of(state.site.facts);
      this.#prewarming?.open();
      return;
    }
    const { reason, detail } = state;
    metrics.passThrough.set({ reason }, 1);
    if (reason === "stopping") return;
    const { address } = this.#options.config.containerd;
    log.warn({ reason, detail, address }, "every pull goes through to containerd");
  }

  #swept(outcome: number | PullError): void {
    const { log } = this.#options;
    if (typeof outcome === "number") log.info({ instances: outcome }, "removed what dead instances left");
    else log.warn({ detail: outcome.message }, "removing what dead instances left failed");
  }

  #adopted(digest: string, failure: PullError | undefined): void {
    const { log } = this.#options;
    if (failure) log.warn({ digest, detail: failure.message }, "a blob of a dead instance could not be kept");
    else log.info({ digest }, "a blob that a dead instance was to keep has been kept");
  }
}

/** The API's client, with a parser for YAML, is loaded by those who use it alone. */
async function connect({ kubeconfig, node_name: given }: Config["prewarm"]): Promise<NodeCluster> {
  const { createCluster } = await import("./cluster/client.ts");
  const cluster = createCluster({ files: [kubeconfig === "auto" ? await findKubeconfig() : kubeconfig] });
  const nodeName = given === "auto" ? await nodeNameOf(cluster, AbortSignal.timeout(apiMs)) : given;
  return { cluster, nodeName };
}

const apiMs = 60_000;
const spoolKey = "content.spool_max_size";

function away(): PullError {
  return new PullError("unavailable", "containerd went away", { temporary: true });
}

function failed(failure: PullError): Pulled {
  return { failure, [Symbol.asyncDispose]: async () => {} };
}

/** How long containerd's answers are waited for when everything else has ended. */
const clearUpMs = 5_000;

/** Names the runtime handler of a pull up to containerd 2.1 (reference 2.10). */
const runtimeHandlerAnnotation = "io.containerd.cri.runtime-handler";

function configurationProblem(problems: readonly Problem[]): Delegation {
  const detail = problems.map(({ path, message }) => (path ? `${path}: ${message}` : message)).join("; ");
  return { reason: "configuration", detail };
}
