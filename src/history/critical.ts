// What a pull's time went by with: its critical path, walked back from the end, each part with what it is laid to.
//
// The last layer to be committed waited for its parent, or for its own unpacking; that for bytes, for a core, for the disk,
// or before it began for another layer that had its worker; and so on until the beginning. What went on beside that path
// made nothing slower. The parts add up to the pull's whole time.

import { waitedFor } from "../trace.ts";
import type { LayerRecord, MachineRecord, PullRecord, SpanRecord } from "./record.ts";

export const causes = [
  /** Its answers: resolving, first bytes, failures. */
  "registry",
  /** Bytes on their way. */
  "network",
  "cpu",
  "disk",
  "containerd",
  /** A limit of ours, that somebody has set. */
  "limit",
  /** Pulls that somebody waits for, behind which this one came. */
  "others",
  /** What is left. */
  "hawser",
] as const;

export type Cause = (typeof causes)[number];

export interface Part {
  readonly cause: Cause;
  /** Of a limit: the configuration's key. */
  readonly key?: string;
  readonly seconds: number;
}

/** With more of the cores busy than this, more at once would not be faster. */
const busyCores = 0.85;
/** With more of its time spent than this, the main thread is what receives no faster. */
const busyMain = 0.85;
/** Waits shorter than this are none. */
const instantSeconds = 0.005;

/** A stretch of the path that exists only because somebody else had to be waited for. */
interface Queue {
  readonly sinceSeconds: number;
  readonly key: string;
}

export function partsOf(record: PullRecord): readonly Part[] {
  const parts: Part[] = [];
  let at = 0;
  const asked = record.stages.filter(({ name }) => name === "registry");
  for (const { name, startSeconds, endSeconds = record.seconds } of record.stages) {
    const start = Math.max(startSeconds, at);
    if (endSeconds <= start) continue;
    if (start > at) parts.push({ cause: "hawser", seconds: start - at });
    if (name === "layers") parts.push(...new Path(record, start, endSeconds).walk());
    else if (name === "resolve" || name === "plan") parts.push(...askedParts(asked, start, endSeconds));
    else if (name === "blobs" || name === "lost")
      parts.push({ cause: "hawser", seconds: endSeconds - start });
    else parts.push({ cause: "containerd", seconds: endSeconds - start });
    at = endSeconds;
  }
  if (record.seconds > at) parts.push({ cause: "hawser", seconds: record.seconds - at });
  return sumUp(parts);
}

/** Between its questions to the registry, which come one behind another, a pull asks containerd. */
function askedParts(asked: readonly SpanRecord[], start: number, end: number): readonly Part[] {
  const registry = sum(asked, ({ startSeconds, endSeconds = end }) =>
    Math.max(0, Math.min(end, endSeconds) - Math.max(start, startSeconds)),
  );
  return [
    { cause: "registry", seconds: registry },
    { cause: "containerd", seconds: Math.max(0, end - start - registry) },
  ];
}

/** One for each cause and key, the longest first. */
function sumUp(parts: readonly Part[]): readonly Part[] {
  const sums = new Map<string, Part>();
  for (const { cause, key, seconds } of parts) {
    const name = `${cause} ${key ?? ""}`;
    const all = (sums.get(name)?.seconds ?? 0) + seconds;
    sums.set(name, { cause, ...(key !== undefined && { key }), seconds: all });
  }
  return Array.from(sums.values(), ({ cause, key, seconds }) => ({
    cause,
    ...(key !== undefined && { key }),
    seconds: Math.round(1000 * seconds) / 1000,
  }))
    .filter(({ seconds }) => seconds > 0)
    .sort((one, other) => other.seconds - one.seconds);
}

class Path {
  readonly #layers: readonly LayerRecord[];
  readonly #machine: MachineRecord | undefined;
  readonly #parts: Part[] = [];
  readonly #start: number;
  /** How far the walk has come. */
  #at: number;
  #queue: Queue | undefined;

  constructor({ layers, machine }: PullRecord, start: number, end: number) {
    this.#layers = layers;
    this.#machine = machine;
    this.#start = start;
    this.#at = end;
  }

  walk(): readonly Part[] {
    let layer = lastBy(this.#layers, endOf);
    // Before the first layer and behind the last one containerd is asked what it has, and given the metadata.
    if (layer) this.#stepTo(endOf(layer), [{ cause: "containerd", seconds: 1 }]);
    // Each step goes back in time, or to another layer that is not gone back to.
    for (let steps = 2 * this.#layers.length; layer && steps > 0 && this.#at > this.#start; steps--) {
      layer = this.#commit(layer) ?? this.#unpack(layer);
    }
    this.#stepTo(this.#start, [{ cause: "containerd", seconds: 1 }]);
    return this.#parts;
  }

  /** Says the parent where that was waited for. */
  #commit(layer: LayerRecord): LayerRecord | undefined {
    const commit = last(layer, "commit");
    // One whose worker somebody else waited for was committed after that.
    if (!commit || commit.startSeconds >= this.#at) return undefined;
    const settle = durationOf(last(layer, "settle"));
    const whole = (commit.endSeconds ?? this.#at) - commit.startSeconds;
    this.#stepTo(commit.startSeconds, [
      { cause: "disk", seconds: settle },
      { cause: "containerd", seconds: Math.max(0, whole - settle) },
    ]);
    const parent = this.#layers.find(({ index }) => index === layer.index - 1);
    const isWaited = durationOf(last(layer, "parent")) > instantSeconds;
    if (!parent || !isWaited) return undefined;
    this.#stepTo(endOf(parent), [{ cause: "hawser", seconds: 1 }]);
    return parent;
  }

  /** Says whose worker was waited for, if there was anybody. */
  #unpack(layer: LayerRecord): LayerRecord | undefined {
    const unpack = last(layer, "unpack");
    if (unpack && unpack.startSeconds < this.#at) {
      this.#stepTo(unpack.endSeconds ?? this.#at, [{ cause: "hawser", seconds: 1 }]);
      this.#stepTo(caughtUpOf(layer, unpack) ?? this.#at, workParts(layer, durationOf(unpack)));
      this.#stepTo(unpack.startSeconds, this.#downloadParts(layer));
    }
    const worker = last(layer, "worker");
    if (worker && durationOf(worker) > instantSeconds) {
      const key = longest(layer.unpackWaits) ?? waitedFor.cores;
      const holder = key === waitedFor.others ? undefined : this.#holderOf(layer, worker);
      if (holder) {
        this.#queue = { sinceSeconds: worker.startSeconds, key };
        return holder;
      }
      this.#stepTo(worker.startSeconds, waitParts({ [key]: 1 }));
    }
    this.#begin(layer);
    return undefined;
  }

  /** Until a layer's first request: room in the spool, its file, and a turn. */
  #begin(layer: LayerRecord): void {
    const [open, room] = [last(layer, "open"), last(layer, "room")];
    if (!open) return;
    const spool = { cause: "limit", key: "content.spool_max_size", seconds: 1 } as const;
    // A turn is waited for side by side with whatever the network does meanwhile, where no limit of ours counts.
    this.#stepTo(open.endSeconds ?? this.#at, this.#downloadParts(layer));
    if (room) {
      this.#stepTo(room.endSeconds ?? this.#at, [{ cause: "disk", seconds: 1 }]);
      this.#stepTo(room.startSeconds, [spool]);
    }
    this.#stepTo(open.startSeconds, [{ cause: "disk", seconds: 1 }]);
  }

  /** Whose unpacking ended when this layer was given a worker, or last before that. */
  #holderOf(
    layer: LayerRecord,
    { startSeconds, endSeconds = this.#at }: SpanRecord,
  ): LayerRecord | undefined {
    const farOf = (other: LayerRecord): number => {
      const unpack = last(other, "unpack");
      const isThen = unpack && unpack.startSeconds < endSeconds && (unpack.endSeconds ?? 0) > startSeconds;
      return isThen ? Math.abs((unpack.endSeconds ?? 0) - endSeconds) : Number.POSITIVE_INFINITY;
    };
    const nearest = lastBy(
      this.#layers.filter((other) => other !== layer),
      (other) => -farOf(other),
    );
    return nearest && Number.isFinite(farOf(nearest)) ? nearest : undefined;
  }

  /** What the time of a layer's requests went by with; of the whole image's, where its own say nothing. */
  #downloadParts(layer: LayerRecord): readonly Part[] {
    const own = this.#requestParts([layer]);
    return own.length > 0 ? own : this.#requestParts(this.#layers);
  }

  #requestParts(layers: readonly LayerRecord[]): readonly Part[] {
    const waits = layers.flatMap(({ downloadWaits }) => waitParts(downloadWaits, false));
    const throttled = sum(layers, ({ downloadWaits }) =>
      sum(Object.entries(downloadWaits), ([key, seconds]) => (key.endsWith("bandwidth_limit") ? seconds : 0)),
    );
    const hosts = layers.flatMap((layer) => layer.hosts);
    const answered = sum(hosts, ({ answeredSeconds }) => answeredSeconds);
    const open = sum(hosts, ({ openSeconds }) => openSeconds);
    return [
      ...waits,
      { cause: "registry", seconds: answered + sum(hosts, ({ pausedSeconds }) => pausedSeconds) } as const,
      { cause: this.#receiving(), seconds: Math.max(0, open - answered - throttled) },
    ].filter(({ seconds }) => seconds > 0);
  }

  /** What keeps bytes from coming faster: usually that there are none. */
  #receiving(): Cause {
    if (!this.#machine || this.#machine.mainBusy < busyMain) return "network";
    const { mainBusy, mainOnCore = mainBusy, mainQueued = 0 } = this.#machine;
    return mainOnCore + mainQueued > mainBusy / 2 ? "cpu" : "disk";
  }

  /** Goes back to this moment; what lies between is laid to the parts, in their proportion. */
  #stepTo(moment: number, parts: readonly Part[]): void {
    const to = Math.max(this.#start, moment);
    const seconds = this.#at - to;
    if (seconds <= 0) return;
    const queued = this.#queue ? Math.max(0, this.#at - Math.max(to, this.#queue.sinceSeconds)) : 0;
    const all = sum(parts, (part) => part.seconds) > 0 ? parts : [{ cause: "hawser" as const, seconds: 1 }];
    for (const part of scaled(all, seconds)) {
      const share = queued / seconds;
      this.#parts.push(
        { ...part, seconds: part.seconds * (1 - share) },
        { ...this.#inQueue(part), seconds: part.seconds * share },
      );
    }
    this.#at = to;
    if (this.#queue && this.#at <= this.#queue.sinceSeconds) this.#queue = undefined;
  }

  /** More at once would have helped while cores were idle. */
  #inQueue(part: Part): Part {
    const { key = "" } = this.#queue ?? {};
    const isOurs = key !== waitedFor.cores && (this.#machine?.coresBusy ?? 0) <= busyCores;
    return part.cause === "cpu" && isOurs ? { cause: "limit", key, seconds: part.seconds } : part;
  }
}

/**
 * When a layer last had to wait for bytes. All that was done by then had no part in when it ended: with more cores, or a
 * faster disk, it would have waited for the same bytes. Undefined of what has not ended, which is likely to wait for some.
 */
function caughtUpOf(layer: LayerRecord, { startSeconds }: SpanRecord): number | undefined {
  if (!layer.unpacked) return undefined;
  // A thread that does not get a core when there are bytes at last waits for that, and for none of them any more.
  const arrived = last(layer, "download")?.endSeconds ?? Number.POSITIVE_INFINITY;
  return Math.max(startSeconds, Math.min(startSeconds + layer.unpacked.caughtUpSeconds, arrived));
}

/** What the time of an unpacking went by with that did not wait for bytes. */
function workParts({ unpacked }: LayerRecord, elapsed: number): readonly Part[] {
  const { waitedSeconds = 0, pausedSeconds = 0, onCoreSeconds = elapsed, queuedSeconds = 0 } = unpacked ?? {};
  const notWaited = Math.max(0, elapsed - waitedSeconds);
  const paused = Math.min(notWaited, pausedSeconds);
  const worked = notWaited - paused;
  const cpu = Math.min(worked, onCoreSeconds + queuedSeconds);
  return [
    { cause: "others", seconds: paused },
    { cause: "cpu", seconds: cpu },
    { cause: "disk", seconds: worked - cpu },
  ];
}

/** Waits for a host that takes no more, or for cores, are none of their own: something else goes on meanwhile. */
function waitParts(waits: Readonly<Record<string, number>>, withCores = true): readonly Part[] {
  return Object.entries(waits).flatMap(([key, seconds]): Part[] => {
    if (key === waitedFor.host) return [];
    if (key === waitedFor.others) return [{ cause: "others", seconds }];
    if (key === waitedFor.cores) return withCores ? [{ cause: "cpu", seconds }] : [];
    return [{ cause: "limit", key, seconds }];
  });
}

/** In the same proportion, but so much in all. */
function scaled(parts: readonly Part[], seconds: number): readonly Part[] {
  const all = sum(parts, (part) => part.seconds);
  return all > 0 ? parts.map((part) => ({ ...part, seconds: (part.seconds / all) * seconds })) : [];
}

function last({ spans }: LayerRecord, name: string): SpanRecord | undefined {
  return spans.findLast((span) => span.name === name);
}

function durationOf(span: SpanRecord | undefined): number {
  return span?.endSeconds === undefined ? 0 : Math.max(0, span.endSeconds - span.startSeconds);
}

/** Of one that was not finished: when it was last at something. */
function endOf(layer: LayerRecord): number {
  const ends = layer.spans.map(({ startSeconds, endSeconds = Number.POSITIVE_INFINITY }) =>
    Math.max(startSeconds, endSeconds),
  );
  return last(layer, "commit")?.endSeconds ?? Math.max(...ends);
}

function longest(waits: Readonly<Record<string, number>>): string | undefined {
  return lastBy(Object.entries(waits), ([, seconds]) => seconds)?.[0];
}

function lastBy<T>(all: readonly T[], valueOf: (one: T) => number): T | undefined {
  return all.reduce<T | undefined>(
    (best, one) => (best === undefined || valueOf(one) > valueOf(best) ? one : best),
    undefined,
  );
}

function sum<T>(all: readonly T[], of: (one: T) => number): number {
  return all.reduce((total, one) => total + of(one), 0);
}
