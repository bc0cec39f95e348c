// The face of the history room: the pulls of this process, those that go on and, in the store, those that have ended.
//
// A pull is begun here when its call comes in and ended when its answer is known; in between, others write into its trace.
// What is shown of it is a record with a verdict, made anew whenever somebody looks. Nothing here can fail a pull, and its
// record is written and sent behind its answer.

import { randomBytes } from "node:crypto";
import { PullTrace } from "../trace.ts";
import { type Outcome, type PullRecord, recordOf } from "./record.ts";
import type { Store } from "./store.ts";
import { type PullSummary, summaryOf } from "./summary.ts";
import { verdictOf } from "./verdict.ts";

export interface HistoryOptions {
  readonly store: Store;
  /** Is given every pull that has ended and that its caller wants collected. */
  readonly exported: (record: PullRecord) => void;
  /** Told when a pull's record could not be made or kept. */
  readonly failed: (error: unknown) => void;
}

export interface Beginning {
  readonly isAhead: boolean;
  /** What a caller's header of that name says (W3C Trace Context), if there is one. */
  readonly traceparent?: string | undefined;
  /** When its call came in, where that was before now (performance.now()). */
  readonly startMs?: number;
}

export class History {
  readonly #options: HistoryOptions;
  readonly #running = new Map<string, PullTrace>();
  /** Those that have ended and are not in the store yet. */
  readonly #ending = new Map<PullRecord, Promise<void>>();

  constructor(options: HistoryOptions) {
    this.#options = options;
  }

  begin({ isAhead, traceparent, startMs = performance.now() }: Beginning): PullTrace {
    const { traceID, parentID, isSampled } = parseTraceparent(traceparent);
    const trace = new PullTrace({
      id: randomBytes(8).toString("hex"),
      traceID: traceID ?? randomBytes(16).toString("hex"),
      parentID,
      isAhead,
      isSampled,
      startMs,
    });
    this.#running.set(trace.id, trace);
    return trace;
  }

  /** Undefined where no record can be made of it, which is no fault of the pull's. */
  end(trace: PullTrace, outcome: Outcome): PullRecord | undefined {
    trace.endMs = performance.now();
    this.#running.delete(trace.id);
    try {
      const record = judged(recordOf(trace, outcome));
      if (trace.isSampled) this.#options.exported(record);
      const keeping = this.#keep(record).finally(() => this.#ending.delete(record));
      this.#ending.set(record, keeping);
      return record;
    } catch (error) {
      this.#options.failed(error);
      return undefined;
    }
  }

  /** Pulls that go on, and those that have ended and are not in the store yet. */
  present(): readonly PullSummary[] {
    const running = Array.from(this.#running.values(), (trace) => judged(recordOf(trace, undefined)));
    return [...running, ...this.#ending.keys()].map(summaryOf);
  }

  /** One of these, by its id or its trace's. */
  find(id: string): PullRecord | undefined {
    const trace = [...this.#running.values()].find((one) => one.id === id || one.traceID === id);
    if (trace) return judged(recordOf(trace, undefined));
    return [...this.#ending.keys()].find((one) => one.id === id || one.traceId === id);
  }

  /** Ends a pull that goes on, as if its caller had; false where there is none of this id. */
  cancel(id: string): boolean {
    const trace = this.#running.get(id);
    trace?.cancelled.abort();
    return trace !== undefined;
  }

  /** Waits until all that has ended is kept. */
  async settle(): Promise<void> {
    await Promise.all(this.#ending.values());
  }

  async #keep(record: PullRecord): Promise<void> {
    try {
      await this.#options.store.add(record);
    } catch (error) {
      this.#options.failed(error);
    }
  }
}

function judged(record: PullRecord): PullRecord {
  const verdict = verdictOf(record);
  return verdict ? { ...record, verdict } : record;
}

interface Parent {
  readonly traceID?: string;
  readonly parentID?: string;
  readonly isSampled: boolean;
}

/** None where the header is none, or of zeros alone, which stand for nothing. */
function parseTraceparent(traceparent: string | undefined): Parent {
  const [, traceID = "", parentID = "", flags = ""] =
    /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?$/.exec(traceparent ?? "") ?? [];
  if (!/[1-9a-f]/.test(traceID) || !/[1-9a-f]/.test(parentID)) return { isSampled: true };
  return { traceID, parentID, isSampled: (Number.parseInt(flags, 16) & 1) === 1 };
}
