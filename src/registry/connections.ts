// Connections to hosts: one pool for each set of TLS settings, kept alive between requests, through proxies where the
// environment names one.

import { readFile } from "node:fs/promises";
import { rootCertificates } from "node:tls";
import { Agent, type Dispatcher, EnvHttpProxyAgent } from "undici";
import { type Host, isLoopback } from "./hosts.ts";

/** Values as in HTTP_PROXY, HTTPS_PROXY and NO_PROXY. */
export interface ProxySettings {
  readonly http: string;
  readonly https: string;
  readonly no: string;
}

export interface ConnectionOptions {
  readonly connectTimeoutMs: number;
  /** Bounds the wait for headers and for each further part of a body. */
  readonly progressTimeoutMs: number;
  /** Absent: what the process's environment says. */
  readonly proxy?: ProxySettings;
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
  readonly #pools = new Map<string, Dispatcher>();
  #trusted: Promise<readonly string[]> | undefined;

  constructor(options: ConnectionOptions) {
    this.#options = options;
  }

  async to(host: Host): Promise<Dispatcher> {
    this.#trusted ??= readTrusted();
    const ca = [...(await this.#trusted), ...host.tls.ca];
    const isDirect = isLoopback(host.url.hostname);
    const key = JSON.stringify([host.tls, isDirect]);
    const known = this.#pools.get(key);
    if (known) return known;
    const made = this.#make({ ca, rejectUnauthorized: !host.tls.skipVerify }, isDirect);
    this.#pools.set(key, made);
    return made;
  }

  async close(): Promise<void> {
    await Promise.all([...this.#pools.values()].map((pool) => pool.destroy()));
    this.#pools.clear();
  }

  #make(tls: { readonly ca: string[]; readonly rejectUnauthorized: boolean }, isDirect: boolean): Dispatcher {
    const { connectTimeoutMs, progressTimeoutMs, proxy } = this.#options;
    const options: Agent.Options = {
      connect: { ...tls, timeout: connectTimeoutMs },
      headersTimeout: progressTimeoutMs,
      bodyTimeout: progressTimeoutMs,
      keepAliveTimeout: keepAliveMs,
      // Permits bound the requests, and with them the connections; a pipeline would queue one blob behind another.
      pipelining: 1,
      connections: null,
    };
    // A proxy is never asked for what is on this machine, as with Go's rules for the same variables.
    if (isDirect) return new Agent(options);
    return new EnvHttpProxyAgent({
      ...options,
      requestTls: tls,
      ...(proxy && { httpProxy: proxy.http, httpsProxy: proxy.https, noProxy: proxy.no }),
    });
  }
}

async function readTrusted(): Promise<readonly string[]> {
  for (const file of systemCertificates) {
    const text = await readFile(file, "utf8").catch(() => "");
    if (text !== "") return [text];
  }
  return rootCertificates;
}
