// One pull as it is shown, kept and sent on: what was noted of it, in plain values, with times counted from its beginning.
//
// A record is made of a pull that goes on as well as of one that has ended. It holds names, digests, hosts and numbers; no
// credential, no header and no URL's query ever come into it.

import type { BlobTrace, Hosts, HostTrace, ImageTrace, LayerTrace, PullTrace, Span } from "../trace.ts";
import { usageBetween } from "../usage.ts";
import type { Verdict } from "./verdict.ts";

export interface SpanRecord {
  readonly name: string;
  /** From the pull's beginning; negative for what an earlier pull had begun, which this one shares. */
  readonly startSeconds: number;
  /** Absent while it goes on. */
  readonly endSeconds?: number;
}

export interface HostRecord {
  /** host:port. */
  readonly host: string;
  readonly requests: number;
  readonly bytes: number;
  /** Of all its requests together: until the answers' heads came, and for as long as they were open. */
  readonly answeredSeconds: number;
  readonly openSeconds: number;
  /** Nothing was asked of it for so long, after a failure. */
  readonly pausedSeconds: number;
  /** How often it failed, by the status that it answered or the code of the failure. */
  readonly failures: Readonly<Record<string, number>>;
}

export interface LayerRecord {
  readonly digest: string;
  /** 0 is the bottom layer. */
  readonly index: number;
  readonly bytes: number;
  /** Of these, what an earlier attempt had left, and what came since. */
  readonly presentBytes: number;
  readonly receivedBytes: number;
  readonly bytesPerSecond: number;
  /** Most requests that were open at once. */
  readonly requestsMost: number;
  /** open, and room within it where that was waited for; download; worker, unpack, parent, commit, and settle within commit. What was tried again is there again. */
  readonly spans: readonly SpanRecord[];
  /** Of its requests together, and of its unpacking: how long it waited for what; a configuration key or a word. */
  readonly downloadWaits: Readonly<Record<string, number>>;
  readonly unpackWaits: Readonly<Record<string, number>>;
  readonly hosts: readonly HostRecord[];
  readonly unpacked?: {
    readonly bytes: number;
    readonly entries: number;
    /** For bytes to come. */
    readonly waitedSeconds: number;
    /** Until it had to for the last time, since it began. */
    readonly caughtUpSeconds: number;
    /** While layers that somebody waits for went first. */
    readonly pausedSeconds: number;
    /** The busier of its threads: on a core, and able to be while others were; absent where that is not known. */
    readonly onCoreSeconds?: number;
    readonly queuedSeconds?: number;
  };
}

/** What the machine did while the layers were made, as parts of the time. */
export interface MachineRecord {
  /** Of all cores. */
  readonly coresBusy: number;
  /** Of the main thread, which receives: that it was at something; and within that, on a core, or kept from one by others. */
  readonly mainBusy: number;
  readonly mainOnCore?: number;
  readonly mainQueued?: number;
}

type PullState = "running" | "ok" | "refused" | "cancelled" | "error";

/** What is known of it once it has ended. */
export interface Outcome {
  readonly state: Exclude<PullState, "running">;
  /** Who did the work. */
  readonly path: "accelerated" | "delegated";
  /** Whose image records it ended with. */
  readonly records?: string;
  readonly error?: string;
}

export interface PullRecord {
  readonly id: string;
  readonly traceId: string;
  readonly parentId?: string;
  readonly image: string;
  /** RFC 3339. */
  readonly startedAt: string;
  readonly seconds: number;
  readonly state: PullState;
  readonly outcome?: Outcome;
  /** Why it has been left to containerd: a word, and a sentence where there is more to say. */
  readonly delegation?: { readonly reason: string; readonly detail: string };
  /** Fetched ahead of need. */
  readonly isAhead: boolean;
  /** It joined another pull of the same image. */
  readonly isJoined: boolean;
  /** Layers that were there already. */
  readonly presentLayers: number;
  /** resolve, plan, layers, blobs, register, and within these registry, when it was asked; lost; containerd. */
  readonly stages: readonly SpanRecord[];
  readonly layers: readonly LayerRecord[];
  /** Whose failures kept the pull from what is no layer: what its name stands for, manifest and config. */
  readonly hosts: readonly HostRecord[];
  readonly machine?: MachineRecord;
  /** Of one that goes on: so far. */
  readonly verdict?: Verdict;
}

/** As it is now, or was when it ended. */
export function recordOf(trace: PullTrace, outcome: Outcome | undefined): PullRecord {
  const { image, startMs, parentID, endMs = performance.now(), delegation } = trace;
  const since = (ms: number): number => seconds(ms - startMs);
  const stages = [...(image?.spans.all ?? []), ...trace.spans.all];
  const machine = image && machineOf(image);
  return {
    id: trace.id,
    traceId: trace.traceID,
    ...(parentID !== undefined && { parentId: parentID }),
    image: trace.reference,
    startedAt: trace.startedAt.toISOString(),
    seconds: since(endMs),
    state: outcome?.state ?? "running",
    ...(outcome && { outcome }),
    ...(delegation && { delegation }),
    isAhead: trace.isAhead,
    isJoined: trace.isJoined,
    presentLayers: image?.presentLayers ?? 0,
    stages: stages.map((span) => spanOf(span, since)),
    layers: (image?.layers ?? []).map((layer) => layerOf(layer, since)),
    hosts: image ? hostsOf(image.hosts) : [],
    ...(machine && { machine }),
  };
}

/** What is to be fetched and what is there of it, in bytes, and bytes a second. */
export function progressOf({ layers }: PullRecord): {
  readonly bytes: number;
  readonly doneBytes: number;
  readonly bytesPerSecond: number;
} {
  const blobs = blobsOf(layers);
  const sum = (of: (layer: LayerRecord) => number): number =>
    blobs.reduce((total, layer) => total + of(layer), 0);
  return {
    bytes: sum(({ bytes }) => bytes),
    doneBytes: sum(({ bytes, presentBytes, receivedBytes }) => Math.min(bytes, presentBytes + receivedBytes)),
    bytesPerSecond: sum(({ bytesPerSecond }) => bytesPerSecond),
  };
}

/** Bytes that came from registries while it went on. */
export function fetchedBytesOf({ layers }: PullRecord): number {
  return blobsOf(layers).reduce((total, { receivedBytes }) => total + receivedBytes, 0);
}

/** Layers of one blob are fetched once. */
function blobsOf(layers: readonly LayerRecord[]): readonly LayerRecord[] {
  return [...new Map(layers.map((layer) => [layer.digest, layer])).values()];
}

/** Until all bytes have come, at the rate of now; undefined where nothing comes or nothing is missing. */
export function remainingSeconds(progress: ReturnType<typeof progressOf>): number | undefined {
  const missing = progress.bytes - progress.doneBytes;
  return missing > 0 && progress.bytesPerSecond > 1 ? missing / progress.bytesPerSecond : undefined;
}

function layerOf(layer: LayerTrace, since: (ms: number) => number): LayerRecord {
  const { blob, unpacked } = layer;
  const spans = [...blob.spans.all, ...layer.spans.all];
  return {
    digest: blob.digest,
    index: layer.index,
    bytes: blob.sizeBytes,
    presentBytes: blob.presentBytes,
    receivedBytes: blob.receivedBytes,
    bytesPerSecond: isOver(blob) ? 0 : Math.round(blob.rate.bytesPerSecond),
    requestsMost: blob.openMost,
    spans: spans.map((span) => spanOf(span, since)),
    downloadWaits: secondsBy(blob.waits.byWhat),
    unpackWaits: secondsBy(layer.waits.byWhat),
    // One that sends on all who come has no part in the bytes.
    hosts: hostsOf(blob.hosts).filter(({ requests, pausedSeconds }) => requests > 0 || pausedSeconds > 0),
    ...(unpacked && {
      unpacked: {
        bytes: unpacked.bytes,
        entries: unpacked.entries,
        waitedSeconds: seconds(unpacked.waitedMs),
        caughtUpSeconds: seconds(unpacked.caughtUpMs),
        pausedSeconds: seconds(unpacked.pausedMs),
        ...(unpacked.usage && {
          onCoreSeconds: seconds(unpacked.usage.onCoreMs),
          queuedSeconds: seconds(unpacked.usage.queuedMs),
        }),
      },
    }),
  };
}

function isOver(blob: BlobTrace): boolean {
  return blob.spans.all.at(-1)?.endMs !== undefined;
}

function hostsOf({ byName }: Hosts): readonly HostRecord[] {
  return Array.from(byName, ([name, host]) => hostOf(name, host));
}

function hostOf(host: string, trace: HostTrace): HostRecord {
  const { requests, bytes, answeredMs, openMs, pausedMs, failures } = trace;
  return {
    host,
    requests,
    bytes,
    answeredSeconds: seconds(answeredMs),
    openSeconds: seconds(openMs),
    pausedSeconds: seconds(pausedMs),
    failures: Object.fromEntries(failures),
  };
}

function machineOf({ before, after }: ImageTrace): MachineRecord | undefined {
  if (!before || !after || after.atMs <= before.atMs) return undefined;
  const elapsedMs = after.atMs - before.atMs;
  const coresMs = after.coresMs - before.coresMs;
  const main = before.mainUsage && after.mainUsage && usageBetween(before.mainUsage, after.mainUsage);
  return {
    coresBusy: coresMs > 0 ? part(1 - (after.idleMs - before.idleMs) / coresMs) : 0,
    mainBusy: part((after.loopMs - before.loopMs) / elapsedMs),
    ...(main && { mainOnCore: part(main.onCoreMs / elapsedMs), mainQueued: part(main.queuedMs / elapsedMs) }),
  };
}

function spanOf({ name, startMs, endMs }: Span, since: (ms: number) => number): SpanRecord {
  return { name, startSeconds: since(startMs), ...(endMs !== undefined && { endSeconds: since(endMs) }) };
}

function secondsBy(waits: ReadonlyMap<string, number>): Record<string, number> {
  return Object.fromEntries(Array.from(waits, ([what, ms]) => [what, seconds(ms)]));
}

/** To the millisecond. */
function seconds(ms: number): number {
  return Math.round(ms) / 1000;
}

/** From 0 to 1. */
function part(value: number): number {
  return Math.round(1000 * Math.min(1, Math.max(0, value))) / 1000;
}
