// Sends pulls that have ended to a collector (OTLP over HTTP): several at once, one request after another, and never at a
// pull's expense. What the collector does not take in time is dropped, and told; nothing waits for it but a bounded queue.

import { setTimeout as sleep } from "node:timers/promises";
import { request } from "undici";
import { exportOf } from "./otlp.ts";
import type { PullRecord } from "./record.ts";

export interface ExporterOptions {
  /** The collector's base, below which `v1/traces` is. */
  readonly endpoint: URL;
  readonly version: string;
  readonly nodeName: string;
  /** Told of pulls that were not taken, and why. */
  readonly dropped: (count: number, why: string) => void;
}

const queueMax = 256;
const batchMax = 32;
const answerMsMax = 10_000;
/** Pauses before what failed is tried again; the collector may say so itself, or be starting. */
const againMs = [1_000, 4_000, 15_000] as const;
/** How long the end waits for what is queued. */
const closeMsMax = 3_000;

/** Statuses after which the same may be sent again (OTLP specification, "Retryable response codes"). */
const temporary = new Set([429, 502, 503, 504]);

export class Exporter {
  readonly #options: ExporterOptions;
  readonly #url: URL;
  readonly #closing = new AbortController();
  #queue: PullRecord[] = [];
  #sending: Promise<void> | undefined;

  constructor(options: ExporterOptions) {
    this.#options = options;
    const { href } = options.endpoint;
    this.#url = new URL("v1/traces", href.endsWith("/") ? href : `${href}/`);
  }

  /** Returns at once. */
  add(record: PullRecord): void {
    if (this.#queue.length >= queueMax) {
      this.#options.dropped(1, "the collector is too slow");
      return;
    }
    this.#queue.push(record);
    this.#sending ??= this.#send();
  }

  /** Waits for what is queued, for a moment. */
  async close(): Promise<void> {
    const patience = setTimeout(() => this.#closing.abort(), closeMsMax);
    await this.#sending;
    clearTimeout(patience);
  }

  async #send(): Promise<void> {
    while (this.#queue.length > 0) {
      const batch = this.#queue.slice(0, batchMax);
      this.#queue = this.#queue.slice(batchMax);
      const failure = await this.#deliver(batch);
      if (failure !== undefined) this.#options.dropped(batch.length, failure);
    }
    this.#sending = undefined;
  }

  /** Why not, in the end. */
  async #deliver(batch: readonly PullRecord[]): Promise<string | undefined> {
    const { version, nodeName } = this.#options;
    const body = JSON.stringify(exportOf(batch, version, nodeName));
    for (const pauseMs of [...againMs, 0]) {
      const { why, isTemporary } = await this.#post(body);
      if (why === undefined) return undefined;
      if (!isTemporary || pauseMs === 0 || this.#closing.signal.aborted) return why;
      await sleep(pauseMs, undefined, { signal: this.#closing.signal, ref: false }).catch(() => {});
    }
    return undefined;
  }

  async #post(body: string): Promise<{ readonly why?: string; readonly isTemporary?: boolean }> {
    try {
      const signal = AbortSignal.any([this.#closing.signal, AbortSignal.timeout(answerMsMax)]);
      const headers = { "content-type": "application/json" };
      const answer = await request(this.#url, { method: "POST", headers, body, signal });
      await answer.body.dump();
      const { statusCode } = answer;
      if (statusCode >= 200 && statusCode < 300) return {};
      return { why: `it answers ${statusCode}`, isTemporary: temporary.has(statusCode) };
    } catch (error) {
      return { why: error instanceof Error ? error.message : String(error), isTemporary: true };
    }
  }
}
