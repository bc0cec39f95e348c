// Connections to hosts: one pool for each set of TLS settings, kept alive between requests, through proxies where the
// environment names one.

import { readFile } from "node:fs/promises";
import { rootCertificates } from "node:tls";
import { Agent, type Dispatcher, EnvHttpProxyAgent } from "undici";
import { type Host, isLoopback } from "./hosts.ts";

/** Where distributions keep the certificates that an administrator trusts; Node itself looks elsewhere. */
const systemCertificates = "/etc/ssl/certs/ca-certificates.crt";

export class Connections {
  readonly #connectTimeoutMs: number;
  readonly #progressTimeoutMs: number;
  readonly #pools = new Map<string, Dispatcher>();
  #trusted: Promise<readonly string[]> | undefined;

  /** `progressTimeoutMs` bounds the wait for headers and for each further part of a body. */
  constructor(connectTimeoutMs: number, progressTimeoutMs: number) {
    this.#connectTimeoutMs = connectTimeoutMs;
    this.#progressTimeoutMs = progressTimeoutMs;
  }

  async to(host: Host): Promise<Dispatcher> {
    const isDirect = isLoopback(host.url.hostname);
    const key = JSON.stringify([host.tls, isDirect]);
    this.#trusted ??= readFile(systemCertificates, "utf8").then(
      (text) => [text],
      () => rootCertificates,
    );
    const trusted = await this.#trusted;
    const known = this.#pools.get(key);
    if (known) return known;
    const tls = { ca: [...trusted, ...host.tls.ca], rejectUnauthorized: !host.tls.skipVerify };
    const options: Agent.Options = {
      connect: { ...tls, timeout: this.#connectTimeoutMs },
      headersTimeout: this.#progressTimeoutMs,
      bodyTimeout: this.#progressTimeoutMs,
      // Permits bound the requests, and with them the connections; a pipeline would queue one blob behind another.
      pipelining: 1,
      connections: null,
    };
    // A proxy is never asked for what is on this machine, as with Go's rules for the same variables.
    const made = isDirect ? new Agent(options) : new EnvHttpProxyAgent({ ...options, requestTls: tls });
    this.#pools.set(key, made);
    return made;
  }

  async close(): Promise<void> {
    await Promise.all([...this.#pools.values()].map((pool) => pool.destroy()));
    this.#pools.clear();
  }
}
