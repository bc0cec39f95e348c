// The account that the daemon gives of its pulls: each is counted, logged in a line, and kept with its trace.
//
// Nothing here decides anything about a pull, or can fail one.

import type { Metadata } from "@grpc/grpc-js";
import type { Config } from "./config.ts";
import type { PullOutcome } from "./cri/images.ts";
import { PullError } from "./errors.ts";
import { makeExporter } from "./exporting.ts";
import { causes } from "./history/critical.ts";
import type { Exporter } from "./history/exporter.ts";
import { History } from "./history/history.ts";
import { fetchedBytesOf, type Outcome, type PullRecord } from "./history/record.ts";
import { Store } from "./history/store.ts";
import type { PullSummary } from "./history/summary.ts";
import { nameOf } from "./history/verdict.ts";
import type { Log } from "./log.ts";
import type { Metrics } from "./metrics.ts";
import type { Pulled } from "./pull/pull.ts";
import type { PullTrace } from "./trace.ts";

export interface AccountOptions {
  readonly config: Config;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly version: string;
}

export class Account {
  readonly #options: AccountOptions;
  readonly #history: History;
  /** Where pulls are sent on. */
  readonly #exporter: Promise<Exporter> | undefined;
  /** Calls that are not answered yet. */
  #calls = 0;
  #isLeaving = false;

  constructor(options: AccountOptions) {
    const { config, log, metrics } = options;
    this.#options = options;
    const { otlp_endpoint: endpoint } = config.trace;
    this.#exporter = endpoint === "off" ? undefined : makeExporter({ ...options, endpoint });
    this.#history = new History({
      store: new Store(`${config.admin.state_dir}/pulls`, config.trace.keep),
      exported: (record) => void this.#exporter?.then((exporter) => exporter.add(record)).catch(() => {}),
      failed: (error) => {
        metrics.tracesLost.inc();
        log.warn({ detail: PullError.from(error).message }, "a pull's trace could not be kept");
      },
    });
    for (const cause of causes) {
      metrics.bottlenecks.inc({ cause }, 0);
      metrics.causeSeconds.inc({ cause }, 0);
    }
  }

  /** A call has come in. */
  begin(metadata: Metadata): PullTrace {
    this.#count(1);
    const [traceparent] = metadata.get("traceparent");
    return this.#history.begin({ isAhead: false, traceparent: traceparent?.toString() });
  }

  /** It is answered. */
  report(outcome: PullOutcome, trace: PullTrace): void {
    const { log, metrics } = this.#options;
    const { reference, path, result, seconds, delegation, records, error } = outcome;
    this.#count(-1);
    metrics.pulls.inc({ result, path });
    if (result === "ok") metrics.pullSeconds.observe({ path }, seconds);
    if (records) metrics.registrations.inc({ by: records });
    if (delegation) metrics.fallbacks.inc({ reason: delegation.reason });
    const told = { ...(records && { records }), ...(error !== undefined && { error }) };
    const record = this.#history.end(trace, this.#outcomeOf({ state: result, path, ...told }));
    if (record && result === "ok") this.#measure(record);
    const fields = {
      image: reference,
      result,
      path,
      seconds: Number(seconds.toFixed(3)),
      ...(delegation && { reason: delegation.reason, detail: delegation.detail }),
      ...told,
      ...(record?.verdict && { bottleneck: nameOf(record.verdict) }),
      id: trace.id,
    };
    if (result === "ok" || result === "cancelled") log.info(fields, "pull");
    else log.warn(fields, "pull");
  }

  /** From now on pulls are broken off that another process goes on with. */
  leave(): void {
    this.#isLeaving = true;
  }

  /** One ahead of need, which its signal or an operator may end. */
  async ahead(
    reference: string,
    signal: AbortSignal,
    pull: (trace: PullTrace, signal: AbortSignal) => Promise<Pulled>,
  ): Promise<Pulled> {
    const trace = this.#history.begin({ isAhead: true });
    trace.reference = reference;
    const pulled = await pull(trace, AbortSignal.any([signal, trace.cancelled.signal]));
    this.#history.end(trace, this.#outcomeOf(outcomeOf(pulled.failure)));
    return pulled;
  }

  /** Pulls that go on, or have ended just now. */
  present(): readonly PullSummary[] {
    return this.#history.present();
  }

  /** One of these, whole, by its id or its trace's. */
  find(id: string): PullRecord | undefined {
    return this.#history.find(id);
  }

  /** False where none of this id goes on. */
  cancel(id: string): boolean {
    return this.#history.cancel(id);
  }

  /** Waits until all that has ended is kept, and a moment for what is sent on. */
  async close(): Promise<void> {
    await this.#history.settle();
    await (await this.#exporter)?.close();
  }

  #outcomeOf(outcome: Outcome): Outcome {
    const isHandedOver = this.#isLeaving && outcome.state === "cancelled";
    return isHandedOver ? { ...outcome, error: "broken off, for another process to go on with" } : outcome;
  }

  #measure(record: PullRecord): void {
    const { bottlenecks, causeSeconds, pulledBytes, throughput } = this.#options.metrics;
    const { verdict, outcome, isJoined, seconds } = record;
    if (verdict) bottlenecks.inc({ cause: verdict.cause });
    for (const { cause, seconds: took } of verdict?.parts ?? []) causeSeconds.inc({ cause }, took);
    const bytes = fetchedBytesOf(record);
    // Whoever joins another pull at its end would seem to be as fast as it likes.
    if (outcome?.path !== "accelerated" || isJoined || bytes === 0 || seconds === 0) return;
    pulledBytes.observe(bytes);
    throughput.observe(bytes / 2 ** 20 / seconds);
  }

  #count(change: number): void {
    this.#calls += change;
    this.#options.metrics.inFlight.set({ what: "pulls" }, this.#calls);
  }
}

function outcomeOf(failure: PullError | undefined): Outcome {
  const path = "accelerated";
  if (failure === undefined) return { state: "ok", path };
  const state = failure.code === "refused" || failure.code === "cancelled" ? failure.code : "error";
  return { state, path, error: failure.message };
}
