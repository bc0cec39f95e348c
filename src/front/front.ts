// The front: the process that kubelet speaks to. It holds the connections and does none of the work.
//
// Every call goes through as bytes: PullImage to the puller, a process of its own, everything else to containerd. So
// whatever becomes of a pull, of a registry's bytes or of an archive's, no call of kubelet's fails for it: a puller that
// dies is started again, and what it left unanswered goes to containerd. The front reads no archive, speaks to no
// registry, and keeps no state but the operator's switch.

import { status } from "@grpc/grpc-js";
import type { Config, Problem } from "../config.ts";
import { Channel } from "../containerd/channel.ts";
import { type Bypassed, createFailover, type Route } from "../cri/failover.ts";
import type { Forward } from "../cri/forward.ts";
import { type CriServer, createCriServer } from "../cri/server.ts";
import { PullError } from "../errors.ts";
import { Store } from "../history/store.ts";
import type { Log } from "../log.ts";
import { type Metrics, mergeMetrics } from "../metrics.ts";
import { type Admin, type Status, serveAdmin } from "./admin.ts";
import { Bypass } from "./bypass.ts";
import { Events } from "./events.ts";
import { changedFixedKeys } from "./fixed.ts";
import { createNotifier, type Notifier } from "./notify.ts";
import { type Patience, Ports, untilDone } from "./ports.ts";
import type { Closed, Puller } from "./puller.ts";
import { Pullers } from "./pullers.ts";
import { Pulls } from "./pulls.ts";
import { pullerSocket, sweepPullerSockets } from "./sockets.ts";
import { startSuccessor } from "./succession.ts";
import { PassThroughSwitch } from "./switch.ts";
import type { Views } from "./viewing.ts";

export interface FrontOptions {
  readonly config: Config;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly version: string;
  readonly environment: NodeJS.ProcessEnv;
  /** A descriptor that listens on cri.listen already. */
  readonly inherited: number | undefined;
  /** Another front runs, and ends once this one serves. */
  readonly isSuccessor: boolean;
  /** Command lines of the puller, without its socket, and of a successor of this process. */
  readonly commands: { readonly puller: readonly string[]; readonly successor: readonly string[] };
  /** Reads the configuration once more. */
  readonly load: () => Promise<{ readonly config: Config; readonly problems: readonly Problem[] }>;
}

/** How long the pulls of a puller that is replaced may go on. */
const drainMs = { upgrade: 10_000, reload: 600_000 } as const;
/** Attempts until a predecessor should have left its sockets. */
const leaveAttempts = 5;
const graceMs = 1_000;
const settleMsMax = 5_000;

export class Front {
  readonly #options: FrontOptions;
  readonly #server: CriServer;
  readonly #notifier: Notifier;
  readonly #channel: Channel;
  readonly #pullers: Pullers;
  readonly #switch: PassThroughSwitch;
  readonly #store: Store;
  readonly #bypass: Bypass;
  readonly #views: Views;
  readonly #ports: Ports;
  /** Aborted when this process stops, or leaves its place to another. */
  readonly #leaving = new AbortController();
  #isSucceeding = false;
  readonly #over = withResolvers();
  #successor: { readonly forward: Forward; readonly close: () => void } | undefined;
  #admin: Admin | undefined;

  private constructor(options: FrontOptions, state: PassThroughSwitch) {
    this.#options = options;
    this.#switch = state;
    const { config, environment, commands } = options;
    this.#notifier = createNotifier(environment);
    this.#channel = new Channel({ address: config.containerd.address, namespace: "" });
    const containerd = this.#channel.raw.bind(this.#channel);
    this.#pullers = new Pullers({
      start: (number) => ({
        command: commands.puller,
        environment: withoutService(environment),
        socket: pullerSocket(config.cri.listen, number),
      }),
      changed: (puller) => this.#pullerChanged(puller),
    });
    this.#store = new Store(`${config.admin.state_dir}/pulls`, config.trace.keep);
    this.#bypass = new Bypass({ ...options, store: this.#store });
    const pulls = new Pulls(this.#pullers, this.#bypass.history, this.#store);
    this.#views = { pulls, events: new Events() };
    this.#ports = new Ports(
      { config, log: options.log, metrics: async () => await this.#metrics(), views: this.#views },
      this.#patience,
    );
    this.#server = createCriServer({
      socket: config.cri.listen,
      inherited: options.inherited,
      messageBytesMax: config.cri.max_message_size,
      forward: containerd,
      pull: createFailover({
        route: async (lost) => await this.#route(lost),
        containerd,
        fallback: config.fallback.enabled,
        bypass: (call) => this.#bypassed(call),
      }),
    });
  }

  /** Resolves once the CRI socket answers, and the puller does or takes too long; containerd need not be there. */
  static async start(options: FrontOptions): Promise<Front> {
    const front = new Front(
      options,
      await PassThroughSwitch.open(`${options.config.admin.state_dir}/passthrough`),
    );
    await front.#server.listen();
    await sweepPullerSockets(options.config.cri.listen);
    front.#pullers.start();
    front.#tellSite();
    front.#ports.open();
    void untilDone(front.#patience, () => front.#administer());
    // Calls are answered already; whoever waits for the word that all is ready means pulls as well.
    await front.#pullers.settled(settleMsMax);
    return front;
  }

  /** Says to the service manager that this is the main process, and ready. */
  announce(): void {
    this.#notifier.send("READY=1", `MAINPID=${process.pid}`);
    this.#tellSite();
  }

  /**
   * Has another process take the socket over, and returns once that serves; what is running here ends behind it, see
   * {@link over}. Throws `unavailable`, with everything as before, when there is no such process.
   */
  async succeed(): Promise<void> {
    const { commands, environment, config, log } = this.#options;
    if (this.#isSucceeding) throw new PullError("unavailable", "another process is taking over already");
    this.#isSucceeding = true;
    this.#notifier.send("STATUS=starting a successor");
    let pid: number;
    try {
      pid = await startSuccessor({ command: commands.successor, environment, listenFd: this.#server.fd });
    } catch (error) {
      this.#isSucceeding = false;
      throw error;
    } finally {
      this.#tellSite();
    }
    log.info({ pid }, "a successor serves; what is still running here ends within ten seconds or goes there");
    const channel = new Channel({ address: config.cri.listen, namespace: "" });
    this.#successor = { forward: channel.raw.bind(channel), close: () => channel.close() };
    this.#server.yield();
    this.#admin?.yield();
    // Whoever follows asks again, and finds the successor.
    this.#views.events.close();
    this.#leaving.abort();
    this.#leave().then(this.#over.resolve, this.#over.reject);
  }

  /** Settles once a successor has everything. */
  get over(): Promise<void> {
    return this.#over.promise;
  }

  async #leave(): Promise<void> {
    await this.#ports.close();
    await this.#pullers.drain(drainMs.upgrade);
    // Calls that went to the successor are as long as pulls are.
    await this.#server.drain(drainMs.reload);
    // A connection that is kept would keep this process.
    await this.#admin?.close();
    await this.#bypass.close();
    this.#close();
  }

  /** Reads the configuration once more; returns a sentence for each thing that there is to say. */
  async reload(): Promise<readonly string[]> {
    const { config: present, load, log } = this.#options;
    const { config, problems } = await load();
    if (problems.length > 0) {
      const text = problems.map(({ path, message }) => (path ? `${path}: ${message}` : message)).join("; ");
      throw new PullError("invalid", `the configuration stays as it was: ${text}`);
    }
    if (!(await this.#pullers.replace(drainMs.reload)))
      throw new PullError("unavailable", "the configuration stays as it was: no new puller came to serve");
    log.level = config.log.level;
    this.#store.keep = config.trace.keep;
    const left = changedFixedKeys(present, config).map((path) => `${path} changes with a restart only`);
    return ["new pulls follow the configuration", ...left];
  }

  /** Takes no new call, lets running ones end for this long, cancels the rest, and leaves nothing. */
  async stop(timeoutMs: number): Promise<void> {
    this.#notifier.send("STOPPING=1");
    this.#leaving.abort();
    // The calls are cancelled here first, so that none of them goes on to containerd.
    await Promise.all([this.#server.drain(timeoutMs), this.#pullers.drain(timeoutMs + graceMs)]);
    await this.#admin?.close();
    await this.#ports.close();
    await this.#bypass.close();
    this.#close();
  }

  /** Whom this process succeeds leaves what it has once it is told that this one serves. */
  get #patience(): Patience {
    const { log, isSuccessor } = this.#options;
    return { signal: this.#leaving.signal, log, attempts: isSuccessor ? leaveAttempts : 0 };
  }

  #close(): void {
    this.#views.events.close();
    this.#successor?.close();
    this.#channel.close();
    this.#notifier[Symbol.dispose]();
  }

  async #route(lost: Forward | undefined): Promise<Route> {
    if (lost) await this.#pullers.letGo(lost);
    if (this.#switch.state.kind === "on") return { kind: "containerd", reason: "switch" };
    const forward = this.#successor?.forward ?? this.#pullers.serving?.forward;
    if (forward && forward !== lost) return { kind: "puller", forward };
    return { kind: "containerd", reason: "puller" };
  }

  /** A call that the puller does not answer. */
  #bypassed(call: Bypassed): ReturnType<Bypass["begin"]> {
    const { log, metrics } = this.#options;
    const { signal, end } = this.#bypass.begin(call);
    return {
      signal,
      end: (error) => {
        end(error);
        const seconds = (performance.now() - call.beganMs) / 1000;
        const { reason } = call;
        const result = error === undefined ? "ok" : error.code === status.CANCELLED ? "cancelled" : "error";
        metrics.pulls.inc({ result, path: "delegated" });
        metrics.fallbacks.inc({ reason });
        if (result === "ok") metrics.pullSeconds.observe({ path: "delegated" }, seconds);
        const fields = { result, path: "delegated", seconds: Number(seconds.toFixed(3)), reason };
        log.info({ ...fields, ...(error && { error: error.details }) }, "pull");
      },
    };
  }

  #pullerChanged(puller: Puller): void {
    const { state, pid } = puller;
    const { log, metrics } = this.#options;
    if (state.kind === "ended" && !this.#leaving.signal.aborted && !puller.isLeaving) {
      metrics.pullerEnds.inc();
      log.warn({ pid, how: state.how }, "the process that pulls ended; containerd pulls until it is back");
    }
    this.#tellSite();
  }

  /** Why pulls go through to containerd now, if they do. */
  #closed(): Closed | undefined {
    if (this.#switch.state.kind === "on")
      return { reason: "switch", detail: 'switched by an operator ("hawser passthrough off" ends it)' };
    const state = this.#pullers.serving?.state;
    if (state?.kind !== "serving") return { reason: "puller", detail: "the process that pulls is not there" };
    return state.closed;
  }

  #tellSite(): void {
    const closed = this.#closed();
    const { passThrough } = this.#options.metrics;
    passThrough.reset();
    // Its own reasons are counted by the puller.
    if (closed && (closed.reason === "switch" || closed.reason === "puller"))
      passThrough.set({ reason: closed.reason }, 1);
    const text = closed ? `every pull goes through to containerd: ${closed.detail}` : "pulls are accelerated";
    this.#notifier.send(`STATUS=${text.replaceAll(/\s+/g, " ")}`);
  }

  #status(): Status {
    const closed = this.#closed();
    return {
      version: this.#options.version,
      pid: process.pid,
      accelerating: closed === undefined,
      ...closed,
      switch: this.#switch.state,
      pullers: this.#pullers.all.map(({ pid, state, isLeaving }) => ({
        pid,
        state: isLeaving ? "leaving" : state.kind,
      })),
    };
  }

  /** Of all processes together. */
  async #metrics(): Promise<string> {
    const { registry } = this.#options.metrics;
    return await mergeMetrics([await registry.getMetricsAsJSON(), ...(await this.#pullers.metrics())]);
  }

  async #administer(): Promise<void> {
    const { config } = this.#options;
    if (config.admin.listen === "off") return;
    this.#admin = await serveAdmin({
      socket: config.admin.listen,
      status: () => this.#status(),
      metrics: async () => await this.#metrics(),
      setSwitch: async (state) => {
        await this.#switch.set(state);
        this.#tellSite();
      },
      reload: async () => await this.reload(),
      views: this.#views,
      prewarm: async (request) => {
        const puller = this.#pullers.serving;
        if (puller) return await puller.prewarm(request);
        throw new PullError("unavailable", "the process that pulls is not there; try again in a moment");
      },
      succeed: async () => await this.succeed(),
    });
  }
}

/** Promise.withResolvers(), which Node 20 has not got. */
function withResolvers(): {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
} {
  let [resolve, reject] = [(): void => {}, (_error: unknown): void => {}];
  const promise = new Promise<void>((...both) => {
    [resolve, reject] = both;
  });
  return { promise, resolve, reject };
}

/** A puller is no service of its own, and inherits no socket. */
function withoutService(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const own = new Set([
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
  ]);
  return Object.fromEntries(Object.entries(environment).filter(([name]) => !own.has(name)));
}
