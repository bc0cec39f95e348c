// Connections to hosts: one set of pools for each way of connecting, kept alive between requests, through proxies where
// the environment names one.

import { readFile } from "node:fs/promises";
import { rootCertificates } from "node:tls";
import { Agent, Dispatcher, Pool, ProxyAgent } from "undici";
import { connectorOf, openerTo, type TlsOptions } from "./connector.ts";
import { type Host, isLoopback } from "./hosts.ts";
import { type LineAnswer, Lines } from "./lines.ts";
import { ProxyRules, type ProxySettings } from "./proxy.ts";

export interface ConnectionOptions {
  readonly connectTimeoutMs: number;
  /** Bounds the wait for headers and for each further part of a body. */
  readonly progressTimeoutMs: number;
  /** Absent: what the process's environment says. */
  readonly proxy: ProxySettings;
}

/** Where distributions keep the certificates that an administrator trusts; Node itself looks elsewhere. */
const systemCertificates = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/ssl/cert.pem",
];
/** containerd's idle timeout. */
const keepAliveMs = 30_000;

export class Connections {
  readonly #options: ConnectionOptions;
  readonly #routes = new Map<string, Route>();
  #trusted: Promise<readonly string[]> | undefined;

  constructor(options: ConnectionOptions) {
    this.#options = options;
  }

  /** What a connection to this host trusts and shows of itself. */
  async tls(host: Host): Promise<TlsOptions> {
    this.#trusted ??= readTrusted();
    const ca = [...(await this.#trusted), ...host.tls.ca];
    return { ca, rejectUnauthorized: !host.tls.skipVerify, ...host.tls.client };
  }

  async to(host: Host): Promise<Route> {
    const tls = await this.tls(host);
    // References may name any port of this machine; they share one set, so that there are not as many.
    const offered = isLoopback(host.url.hostname) ? "this machine" : host.url.host;
    const key = JSON.stringify([host.tls, host.dialTimeoutMs, host.offerTls && offered]);
    const known = this.#routes.get(key);
    if (known) return known;
    const made = new Route(host, tls, this.#options);
    this.#routes.set(key, made);
    return made;
  }

  async close(): Promise<void> {
    await Promise.all([...this.#routes.values()].map((route) => route.destroy()));
    this.#routes.clear();
  }
}

/** How requests get to one host and to where it redirects: directly, to a proxy that fetches what is http, or through one that tunnels TLS. */
export class Route extends Dispatcher {
  readonly #options: Agent.Options;
  readonly #timeoutMs: number;
  readonly #tls: TlsOptions;
  readonly #rules: ProxyRules;
  readonly #direct: Agent;
  readonly #lines: Lines;
  readonly #fetching = new Map<string, Pool>();
  readonly #tunnels = new Map<string, ProxyAgent>();

  constructor(
    host: Host,
    tls: TlsOptions,
    { connectTimeoutMs, progressTimeoutMs, proxy }: ConnectionOptions,
  ) {
    super();
    this.#tls = tls;
    this.#timeoutMs = connectTimeoutMs;
    this.#rules = new ProxyRules(proxy);
    const open = openerTo({ host, tls, timeoutMs: connectTimeoutMs });
    this.#lines = new Lines(open, progressTimeoutMs);
    this.#options = {
      connect: connectorOf(open),
      headersTimeout: progressTimeoutMs,
      bodyTimeout: progressTimeoutMs,
      keepAliveTimeout: keepAliveMs,
      // Permits bound the requests, and with them the connections; a pipeline would queue one blob behind another.
      pipelining: 1,
      connections: null,
    };
    this.#direct = new Agent(this.#options);
  }

  override dispatch(options: Dispatcher.DispatchOptions, handler: Dispatcher.DispatchHandler): boolean {
    const origin = new URL(String(options.origin));
    const proxy = this.#rules.proxyFor(origin);
    if (proxy === undefined) return this.#direct.dispatch(options, handler);
    if (origin.protocol === "https:") return this.#tunnelThrough(proxy).dispatch(options, handler);
    const headers = { ...(options.headers as Record<string, string>), host: origin.host, ...login(proxy) };
    const forwarded = { ...options, origin: proxy.origin, path: `${origin.origin}${options.path}`, headers };
    return this.#fetchThrough(proxy).dispatch(forwarded, handler);
  }

  /** For what may be large; undefined when it is to be dispatched like anything else. */
  async get(
    url: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<LineAnswer | undefined> {
    return this.#rules.proxyFor(url) ? undefined : await this.#lines.get(url, headers, signal);
  }

  override async destroy(): Promise<void> {
    this.#lines.close();
    const all = [this.#direct, ...this.#fetching.values(), ...this.#tunnels.values()];
    await Promise.all(all.map((dispatcher) => dispatcher.destroy()));
  }

  #fetchThrough(proxy: URL): Pool {
    const known = this.#fetching.get(proxy.href);
    const pool = known ?? new Pool(proxy.origin, this.#options);
    this.#fetching.set(proxy.href, pool);
    return pool;
  }

  #tunnelThrough(proxy: URL): ProxyAgent {
    const known = this.#tunnels.get(proxy.href);
    const tunnel =
      known ??
      new ProxyAgent({
        ...this.#options,
        uri: proxy.origin,
        ...(proxy.username !== "" && { token: login(proxy)["proxy-authorization"] ?? "" }),
        requestTls: { ...this.#tls, timeout: this.#timeoutMs },
        clientFactory: (origin) => new Pool(origin, this.#options),
      });
    this.#tunnels.set(proxy.href, tunnel);
    return tunnel;
  }
}

/** What a proxy whose URL names a user is shown. */
function login({ username, password }: URL): { readonly "proxy-authorization"?: string } {
  if (username === "") return {};
  const pair = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`;
  return { "proxy-authorization": `Basic ${Buffer.from(pair).toString("base64")}` };
}

async function readTrusted(): Promise<readonly string[]> {
  for (const file of systemCertificates) {
    const text = await readFile(file, "utf8").catch(() => "");
    if (text !== "") return [text];
  }
  return rootCertificates;
}
