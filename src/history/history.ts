// The face of the history room: the pulls of this process, those that go on and, in the store, those that have ended.
//
// A pull is begun here when its call comes in and ended when its answer is known; in between, others write into its trace.
// What is shown of it is a record with a verdict, made anew whenever somebody looks. Nothing here slows a pull down: what
// becomes of its record is dealt with behind its answer.

import { randomBytes } from "node:crypto";
import { PullTrace } from "../trace.ts";
import { type Outcome, type PullRecord, recordOf } from "./record.ts";
import type { Store } from "./store.ts";
import { verdictOf } from "./verdict.ts";

export interface HistoryOptions {
  readonly store: Store;
  /** Is given every pull that has ended. */
  readonly exported: (record: PullRecord) => void;
  /** Told when a pull's record could not be kept. */
  readonly failed: (error: unknown) => void;
}

export class History {
  readonly #options: HistoryOptions;
  readonly #live = new Map<string, PullTrace>();
  /** Those that have ended and are not in the store yet. */
  readonly #keeping = new Map<PullRecord, Promise<void>>();

  constructor(options: HistoryOptions) {
    this.#options = options;
  }

  /** `traceparent`: what a caller's header of that name says (W3C Trace Context), if there is one. */
  begin(isAhead: boolean, traceparent?: string): PullTrace {
    const { traceID, parentID, isSampled } = parseTraceparent(traceparent);
    const trace = new PullTrace({
      id: randomBytes(8).toString("hex"),
      traceID: traceID ?? randomBytes(16).toString("hex"),
      parentID,
      isAhead,
      isSampled,
    });
    this.#live.set(trace.id, trace);
    return trace;
  }

  end(trace: PullTrace, outcome: Outcome): PullRecord {
    this.#live.delete(trace.id);
    const record = judged(recordOf(trace, outcome));
    if (trace.isSampled) this.#options.exported(record);
    this.#keeping.set(
      record,
      this.#keep(record).finally(() => this.#keeping.delete(record)),
    );
    return record;
  }

  /** Pulls that go on, and those that have ended and are not in the store yet. */
  present(): readonly PullRecord[] {
    const running = Array.from(this.#live.values(), (trace) => judged(recordOf(trace, undefined)));
    return [...running, ...this.#keeping.keys()];
  }

  /** Ends a pull that goes on, as if its caller had; false where there is none of this id. */
  cancel(id: string): boolean {
    const trace = this.#live.get(id);
    trace?.cancelled.abort();
    return trace !== undefined;
  }

  /** Waits until all that has ended is kept. */
  async settle(): Promise<void> {
    await Promise.all(this.#keeping.values());
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
export function parseTraceparent(traceparent: string | undefined): Parent {
  const [, traceID = "", parentID = "", flags = ""] =
    /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?$/.exec(traceparent ?? "") ?? [];
  if (!/[1-9a-f]/.test(traceID) || !/[1-9a-f]/.test(parentID)) return { isSampled: true };
  return { traceID, parentID, isSampled: (Number.parseInt(flags, 16) & 1) === 1 };
}
