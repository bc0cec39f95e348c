// The registry room put together: one set of connections, tokens and breakers for the node, and a Repository for each
// pull.

import type { Reference } from "../oci/reference.ts";
import { TokenCache } from "./auth.ts";
import type { Bandwidth } from "./bandwidth.ts";
import { Connections } from "./connections.ts";
import { Health } from "./health.ts";
import { hostsOf } from "./hosts.ts";
import { realTiming, type Timing } from "./patience.ts";
import type { ProxySettings } from "./proxy.ts";
import type { AskingFailed, Credentials, HostEvents, Registry, Repository } from "./registry.ts";
import { HttpRepository } from "./repository.ts";
import { Requester } from "./request.ts";
import type { Wording } from "./wording.ts";

export interface RegistryOptions {
  /** Directories with a folder for each registry (certs.d). */
  readonly configPath: readonly string[];
  readonly userAgent: string;
  readonly chunkBytes: number;
  /** Connections for one blob, unless overridden for a host (host:port). */
  readonly streams: number;
  readonly hostStreams: ReadonlyMap<string, number>;
  readonly connectTimeoutMs: number;
  readonly progressTimeoutMs: number;
  /** Further attempts of a request that fails for a reason that may pass. */
  readonly retries: number;
  /** Resolving gives up when no host has answered by then. */
  readonly fallbackAfterMs: number;
  readonly breaker: { readonly failures: number; readonly resetMs: number };
  readonly events: RegistryEvents;
  /** In which words refusals are given. */
  readonly wording: Wording;
  readonly proxy: ProxySettings;
  /** What all blobs together may take, shared with whatever other client there is; absent: all that there is. */
  readonly bandwidth?: Bandwidth | undefined;
  /** Absent: the clock and true randomness. */
  readonly timing?: Timing;
}

interface RegistryEvents extends Partial<HostEvents> {
  /** Bytes of blobs came in, from this host (host:port). */
  bytes(count: number, host: string): void;
  /** A request is about to be tried again, after this error code. */
  retry(reason: string): void;
  /** A host is not asked any more, or is asked again. */
  breaker(host: string, open: boolean): void;
}

export function createRegistry(options: RegistryOptions): Registry {
  return new HttpRegistry(options);
}

class HttpRegistry implements Registry {
  readonly #options: RegistryOptions;
  readonly #timing: Timing;
  readonly #tokens: TokenCache;
  readonly #health: Health;
  readonly #connections: Connections;
  readonly #hostEvents: HostEvents;

  constructor(options: RegistryOptions) {
    this.#options = options;
    this.#timing = options.timing ?? realTiming;
    this.#tokens = new TokenCache(() => this.#timing.now());
    this.#connections = new Connections(options);
    const { events } = options;
    this.#hostEvents = {
      answered: (host, status, seconds) => events.answered?.(host, status, seconds),
      failed: (host, code) => events.failed?.(host, code),
    };
    this.#health = new Health({
      ...options.breaker,
      changed: (host, open) => options.events.breaker(host, open),
    });
  }

  repository(reference: Reference, credentials: Credentials | undefined, failed?: AskingFailed): Repository {
    return new HttpRepository({
      ...this.#options,
      failed,
      timing: this.#timing,
      reference,
      health: this.#health,
      requesters: () => this.#requesters(reference, credentials),
    });
  }

  async close(): Promise<void> {
    this.#health.close();
    await this.#connections.close();
  }

  async #requesters(reference: Reference, credentials: Credentials | undefined): Promise<Requester[]> {
    const { host: registryHost, repository } = reference;
    const hosts = await hostsOf(registryHost, this.#options.configPath);
    const making = hosts.map(async (host) => {
      const route = await this.#connections.to(host);
      const { userAgent, connectTimeoutMs, progressTimeoutMs } = this.#options;
      return new Requester({
        host,
        registryHost,
        repository,
        credentials,
        route,
        tokens: this.#tokens,
        userAgent,
        answerTimeoutMs: (host.dialTimeoutMs ?? connectTimeoutMs) + progressTimeoutMs,
        progressTimeoutMs,
        timing: this.#timing,
        wording: this.#options.wording,
        events: this.#hostEvents,
      });
    });
    return await Promise.all(making);
  }
}
