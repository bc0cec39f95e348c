// The ports of a front: metrics for Prometheus, and the status page where it is asked for.
//
// A port that cannot be had is asked for again until it can: a predecessor may still have it, and the node's pulls matter
// more than whoever looks at them.

import { setTimeout as sleep } from "node:timers/promises";
import type { Config } from "../config.ts";
import { PullError } from "../errors.ts";
import { expose } from "../exposition.ts";
import type { Log } from "../log.ts";
import type { Port } from "../port.ts";
import type { Views } from "./viewing.ts";
import { openWindow } from "./window.ts";

export interface PortsOptions {
  readonly config: Config;
  readonly log: Log;
  /** The text of /metrics. */
  readonly metrics: () => Promise<string>;
  readonly views: Views;
}

export class Ports {
  readonly #options: PortsOptions;
  readonly #patience: Patience;
  readonly #open = new Set<Port>();

  constructor(options: PortsOptions, patience: Patience) {
    this.#options = options;
    this.#patience = patience;
  }

  /** Returns at once. */
  open(): void {
    const { config, metrics, views } = this.#options;
    this.#listen("metrics", config.metrics.listen, (...address) => expose({ read: metrics }, ...address));
    this.#listen("status page", config.admin.page, (...address) => openWindow(views, ...address));
  }

  async close(): Promise<void> {
    await Promise.all([...this.#open].map(async (port) => await port.close()));
  }

  #listen(
    what: string,
    address: Config["metrics"]["listen"],
    listen: (host: string, port: number) => Promise<Port>,
  ): void {
    if (address === "off") return;
    const { host, port } = address;
    void untilDone(this.#patience, async () => {
      const opened = await listen(host, port);
      if (this.#patience.signal.aborted) {
        await opened.close();
        return;
      }
      this.#open.add(opened);
      this.#options.log.info(`${what} on ${host}:${opened.port}`);
    });
  }
}

export interface Patience {
  /** Aborted when nothing is wanted any more. */
  readonly signal: AbortSignal;
  readonly log: Log;
  /** Attempts until whoever has it should have left it; what cannot be had then is reported. */
  readonly attempts: number;
}

const againMs = 1_000;

/** Tries until it is done, or nothing is wanted any more: a predecessor may still have what is asked for. */
export async function untilDone(
  { signal, log, attempts }: Patience,
  attempt: () => Promise<void>,
): Promise<void> {
  for (let failed = 0; !signal.aborted; failed++) {
    try {
      await attempt();
      return;
    } catch (error) {
      // The node's pulls matter more than this: it is reported once, and nothing else.
      if (failed === attempts) log.error(PullError.from(error).message);
      await sleep(againMs, undefined, { signal, ref: false }).catch(() => {});
    }
  }
}
