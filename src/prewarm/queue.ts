// The queue of images that are wanted on this node: who wants each, what it is at, and what is to be done next.
//
// It is told what happens and asked what is due; it fetches nothing, keeps nothing on disk, and has no timers. An image is
// wanted for as long as one of its sources wants it; one that is warm outlasts that by a while.

import type { Hold } from "../containerd/containerd.ts";
import type { Digest } from "../oci/digest.ts";

/** A place that names images, such as the configuration, or a pod. */
export type Source = string;

export interface Want {
  /** Smaller comes first. */
  readonly priority: number;
  /** Somebody is about to ask for it, so that whatever fails is tried again soon: they may mend it meanwhile. */
  readonly isUrgent: boolean;
  /** Of no use any more if it is not here by then. */
  readonly deadlineMs?: number | undefined;
}

export type Condition =
  /** To be fetched, not before this time. */
  | { readonly kind: "wanted"; readonly dueMs: number }
  /** Not to be had so far; tried again at this time, which is infinite where it was given up. */
  | { readonly kind: "failed"; readonly dueMs: number; readonly failure: Failure }
  /** Everything of it is here, and held unless a record does that already; looked at again at this time. */
  | {
      readonly kind: "warm";
      readonly dueMs: number;
      readonly sinceMs: number;
      readonly hold: Hold | undefined;
      /** Where nothing is held: what its record stands for, if that is known. */
      readonly listed?: Digest | undefined;
    };

export interface Failure {
  readonly code: string;
  readonly message: string;
  /** It may be had a little later without anybody changing anything. */
  readonly isTemporary: boolean;
  /** In a row. */
  readonly times: number;
}

export interface Entry {
  readonly name: string;
  readonly sources: ReadonlyMap<Source, Want>;
  readonly addedMs: number;
  readonly condition: Condition;
  /** Since when it is being fetched, or looked at again. */
  readonly busySinceMs: number | undefined;
  /** Of the latest look at a warm image, if that failed. */
  readonly trouble: Failure | undefined;
  /** The latest attempt that has come to an end, and the latest that has not failed, by {@link Queue.attempts}. */
  readonly endedAttempt: number;
  readonly goodAttempt: number;
  /** Since when nobody wants it. */
  readonly unwantedMs: number | undefined;
  /** For one of its sources. */
  readonly isUrgent: boolean;
  /** When it is of use to none of its sources any more; infinite where one of them does not say. */
  readonly deadlineMs: number;
}

class Held implements Entry {
  readonly name: string;
  readonly addedMs: number;
  readonly sources = new Map<Source, Want>();
  condition: Condition;
  busySinceMs: number | undefined;
  trouble: Failure | undefined;
  endedAttempt = 0;
  goodAttempt = 0;
  /** The one that goes on, or did so last. */
  attempt = 0;
  /** When it was said that it is to be tried once more than it is right now. */
  onceMoreMs: number | undefined;
  unwantedMs: number | undefined;

  constructor(name: string, condition: Condition, addedMs: number) {
    this.name = name;
    this.condition = condition;
    this.addedMs = addedMs;
  }

  get isUrgent(): boolean {
    return [...this.sources.values()].some((want) => want.isUrgent);
  }

  get deadlineMs(): number {
    const deadlines = Array.from(
      this.sources.values(),
      (want) => want.deadlineMs ?? Number.POSITIVE_INFINITY,
    );
    return deadlines.length === 0 ? Number.POSITIVE_INFINITY : Math.max(...deadlines);
  }
}

/** Names come from people, files and pods: more than this is a mistake. */
const entriesMax = 5_000;

export class Queue {
  readonly #entries = new Map<string, Held>();
  #attempts = 0;

  /** How many have been begun so far, of all images; each is known by its number. */
  get attempts(): number {
    return this.#attempts;
  }

  get entries(): readonly Entry[] {
    return [...this.#entries.values()];
  }

  get(name: string): Entry | undefined {
    return this.#entries.get(name);
  }

  /** False when there are too many. */
  want(name: string, source: Source, want: Want, nowMs: number): boolean {
    const entry = this.#entries.get(name) ?? this.#add(name, { kind: "wanted", dueMs: nowMs }, nowMs);
    if (entry === undefined) return false;
    const isNews = !entry.sources.has(source) && (want.isUrgent || entry.condition.kind === "failed");
    entry.sources.set(source, want);
    entry.unwantedMs = undefined;
    if (isNews) this.hasten(name, nowMs);
    return true;
  }

  /** What is held already, from an earlier time; nobody wants it until somebody says so. */
  found(hold: Hold, dueMs: number, nowMs: number): boolean {
    if (this.#entries.has(hold.name)) return false;
    const entry = this.#add(hold.name, { kind: "warm", dueMs, sinceMs: nowMs, hold }, nowMs);
    if (entry) entry.unwantedMs = nowMs;
    return entry !== undefined;
  }

  /** The source wants it no more. One that was never fetched is then forgotten, unless that goes on right now. */
  unwant(name: string, source: Source, nowMs: number): void {
    const entry = this.#entries.get(name);
    if (!entry?.sources.delete(source) || entry.sources.size > 0) return;
    entry.unwantedMs = nowMs;
    if (entry.condition.kind !== "warm" && entry.busySinceMs === undefined) this.#entries.delete(name);
  }

  /** To be tried at once, however long it was to wait. */
  hasten(name: string, nowMs: number): void {
    const entry = this.#entries.get(name);
    if (entry) entry.condition = { ...entry.condition, dueMs: Math.min(entry.condition.dueMs, nowMs) };
  }

  /** To be tried at once, and by an attempt that begins after this even where one goes on. */
  renew(name: string, nowMs: number): void {
    this.hasten(name, nowMs);
    const entry = this.#entries.get(name);
    if (entry?.busySinceMs !== undefined) entry.onceMoreMs = nowMs;
  }

  /** What is due, the most urgent first, then what is needed soonest, and then what has waited longest. */
  due(nowMs: number): readonly Entry[] {
    return [...this.#entries.values()]
      .filter(
        ({ sources, condition, busySinceMs }) =>
          sources.size > 0 && busySinceMs === undefined && condition.dueMs <= nowMs,
      )
      .sort(
        (one, other) =>
          priorityOf(one) - priorityOf(other) ||
          compare(one.deadlineMs, other.deadlineMs) ||
          one.condition.dueMs - other.condition.dueMs,
      );
  }

  /** What is not here by its deadline, and was not given up yet. */
  late(nowMs: number): readonly Entry[] {
    return [...this.#entries.values()].filter((entry) => isOpen(entry) && entry.deadlineMs <= nowMs);
  }

  /** Warm images that nobody has wanted for so long. */
  stale(keepMs: number, nowMs: number): readonly Entry[] {
    return [...this.#entries.values()].filter(
      ({ unwantedMs, busySinceMs }) =>
        busySinceMs === undefined && unwantedMs !== undefined && unwantedMs + keepMs <= nowMs,
    );
  }

  /** Given up, and of no use to anybody for so long. */
  past(keepMs: number, nowMs: number): readonly Entry[] {
    return [...this.#entries.values()].filter(
      (entry) => isGivenUp(entry) && entry.deadlineMs + keepMs <= nowMs,
    );
  }

  /** When more will be due, stale, late or past than is by now; undefined when nothing will. */
  nextMs(keepMs: number, nowMs: number): number | undefined {
    let next = Number.POSITIVE_INFINITY;
    for (const entry of this.#entries.values())
      for (const time of timesOf(entry, keepMs)) if (time > nowMs) next = Math.min(next, time);
    return next === Number.POSITIVE_INFINITY ? undefined : next;
  }

  begin(name: string, nowMs: number): void {
    const entry = this.#entries.get(name);
    if (entry === undefined) return;
    this.#attempts += 1;
    entry.attempt = this.#attempts;
    entry.busySinceMs = nowMs;
  }

  /** What it is by now, while it is being fetched or looked at. */
  update(name: string, condition: Condition): void {
    const entry = this.#entries.get(name);
    if (entry) entry.condition = condition;
  }

  /** What has come of it. Whatever is neither wanted nor warm is forgotten. */
  end(name: string, condition: Condition, trouble?: Failure): void {
    const entry = this.#entries.get(name);
    if (entry === undefined) return;
    entry.endedAttempt = entry.attempt;
    if (condition.kind === "warm" && !trouble) entry.goodAttempt = entry.attempt;
    this.#settle(entry, condition, trouble);
  }

  /** Nothing has come of it: it was broken off. */
  breakOff(name: string): void {
    const entry = this.#entries.get(name);
    if (entry) this.#settle(entry, entry.condition, undefined);
  }

  #settle(entry: Held, condition: Condition, trouble: Failure | undefined): void {
    const { name, onceMoreMs = Number.POSITIVE_INFINITY } = entry;
    entry.condition = { ...condition, dueMs: Math.min(condition.dueMs, onceMoreMs) };
    entry.trouble = trouble;
    entry.busySinceMs = undefined;
    entry.onceMoreMs = undefined;
    if (entry.sources.size === 0 && condition.kind !== "warm") this.#entries.delete(name);
  }

  forget(name: string): void {
    this.#entries.delete(name);
  }

  #add(name: string, condition: Condition, addedMs: number): Held | undefined {
    if (this.#entries.size >= entriesMax) return undefined;
    const entry = new Held(name, condition, addedMs);
    this.#entries.set(name, entry);
    return entry;
  }
}

/** Still to be fetched. */
function isOpen({ condition }: Entry): boolean {
  return condition.kind !== "warm" && condition.dueMs !== Number.POSITIVE_INFINITY;
}

/** When something is to be done about it. */
function timesOf(entry: Entry, keepMs: number): readonly number[] {
  const { sources, condition, busySinceMs, unwantedMs, deadlineMs } = entry;
  if (isGivenUp(entry)) return [deadlineMs + keepMs];
  const times = isOpen(entry) ? [deadlineMs] : [];
  if (busySinceMs !== undefined) return times;
  if (sources.size > 0) times.push(condition.dueMs);
  else if (unwantedMs !== undefined) times.push(unwantedMs + keepMs);
  return times;
}

function isGivenUp({ condition, busySinceMs }: Entry): boolean {
  return (
    condition.kind === "failed" && condition.dueMs === Number.POSITIVE_INFINITY && busySinceMs === undefined
  );
}

/** Unlike a difference, also of what is infinite. */
function compare(one: number, other: number): number {
  return one === other ? 0 : one < other ? -1 : 1;
}

function priorityOf({ sources }: Entry): number {
  return Math.min(...Array.from(sources.values(), ({ priority }) => priority));
}
