// What is noted of a pull while it goes on: when each of its steps began and ended, and what was waited for meanwhile.
//
// Images, layers and blobs are shared, so each has notes of its own, which all pulls that share it refer to; they may have
// begun before a pull did. Whoever does the work writes into them, and the history room reads them. Nothing here judges,
// keeps anything longer than the pull does, or knows what a registry or a layer is.

import type { ThreadUsage } from "./usage.ts";

/** Of `performance.now()` in this process, in milliseconds. */
export interface Span {
  readonly name: string;
  readonly startMs: number;
  /** Undefined while it goes on. */
  endMs: number | undefined;
}

export class Spans {
  readonly all: Span[] = [];

  /** One that goes on until it is disposed of. */
  begin(name: string): Disposable {
    const span: Span = { name, startMs: performance.now(), endMs: undefined };
    this.all.push(span);
    return {
      [Symbol.dispose]: () => {
        span.endMs ??= performance.now();
      },
    };
  }

  async of<T>(name: string, work: () => Promise<T>): Promise<T> {
    using _span = this.begin(name);
    return await work();
  }
}

/** Milliseconds that were waited, by what for; of work that is done side by side they add up. */
export class Waits {
  readonly byWhat = new Map<string, number>();
  readonly #whole: Waits | undefined;

  /** With `whole`, of a part of it: what is added here is added there too. */
  constructor(whole?: Waits) {
    this.#whole = whole;
  }

  add(what: string, ms: number): void {
    if (ms > 0) this.byWhat.set(what, (this.byWhat.get(what) ?? 0) + ms);
    this.#whole?.add(what, ms);
  }
}

/** What is waited for where it is no limit that somebody set. */
export const waitedFor = {
  /** As many requests as this host was found to take are open. */
  host: "host",
  /** As many layers as there are cores are being unpacked. */
  cores: "cores",
  /** Pulls that somebody waits for go first. */
  others: "others",
} as const;

const rateMs = 2_000;

/** Bytes a second over the last few seconds; what is longer ago counts less and less. */
class Rate {
  readonly #sinceMs = performance.now();
  #atMs = this.#sinceMs;
  #weighed = 0;

  add(bytes: number): void {
    this.#decay();
    this.#weighed += bytes;
  }

  get bytesPerSecond(): number {
    this.#decay();
    // What a short life has had no time for is made up for.
    const seen = 1 - Math.exp(-(this.#atMs - this.#sinceMs) / rateMs);
    return seen > 0 ? (this.#weighed * 1000) / (rateMs * seen) : 0;
  }

  #decay(): void {
    const now = performance.now();
    this.#weighed *= Math.exp((this.#atMs - now) / rateMs);
    this.#atMs = now;
  }
}

/** One host's part in a blob. */
export class HostTrace {
  requests = 0;
  bytes = 0;
  /** Until the heads of its answers came, in all. */
  answeredMs = 0;
  /** How long nothing was asked after a failure, in all. */
  pausedMs = 0;
  readonly failures = new Map<string, number>();
  #closedMs = 0;
  /** When requests that are open began. */
  readonly #open = new Set<{ readonly sinceMs: number }>();

  /** For how long requests have been open until now, in all. */
  get openMs(): number {
    const now = performance.now();
    return [...this.#open].reduce((sum, { sinceMs }) => sum + now - sinceMs, this.#closedMs);
  }

  open(request: { readonly sinceMs: number }): void {
    this.requests += 1;
    this.#open.add(request);
  }

  close(request: { readonly sinceMs: number }): void {
    if (this.#open.delete(request)) this.#closedMs += performance.now() - request.sinceMs;
  }

  failed(code: string): void {
    this.failures.set(code, (this.failures.get(code) ?? 0) + 1);
  }

  /** Another host is who answers it. */
  leave(request: { readonly sinceMs: number }): void {
    if (this.#open.delete(request)) this.requests -= 1;
  }
}

/** References and redirects name hosts, and what is fetched has few of them. */
const hostsMax = 8;

export class Hosts {
  readonly byName = new Map<string, HostTrace>();

  of(name: string): HostTrace {
    const known = this.byName.get(name);
    if (known) return known;
    const host = new HostTrace();
    if (this.byName.size < hostsMax) this.byName.set(name, host);
    return host;
  }
}

/** Requests of one blob, each in turn and several at once. */
export class BlobTrace {
  readonly digest: string;
  readonly sizeBytes: number;
  /** What a former attempt had left of it. */
  presentBytes = 0;
  receivedBytes = 0;
  /** Most requests that were open at once. */
  openMost = 0;
  /** "open": until it had a spool, within which "room" where it had to wait for that. "download": until its last byte. */
  readonly spans = new Spans();
  readonly waits = new Waits();
  readonly rate = new Rate();
  readonly hosts = new Hosts();
  #open = 0;

  constructor(digest: string, sizeBytes: number) {
    this.digest = digest;
    this.sizeBytes = sizeBytes;
  }

  /** A request to a host, until it is disposed of. */
  request(host: string): RequestTrace {
    this.#open += 1;
    this.openMost = Math.max(this.openMost, this.#open);
    return new RequestTrace(this, host, () => {
      this.#open -= 1;
    });
  }

  received(bytes: number): void {
    this.receivedBytes += bytes;
    this.rate.add(bytes);
  }
}

/** Counted for the host that answers it, which may be another than was asked. */
export class RequestTrace implements Disposable {
  readonly #blob: BlobTrace;
  readonly #closed: () => void;
  readonly sinceMs = performance.now();
  #host: HostTrace;
  #isAnswered = false;

  constructor(blob: BlobTrace, host: string, closed: () => void) {
    this.#blob = blob;
    this.#closed = closed;
    this.#host = blob.hosts.of(host);
    this.#host.open(this);
  }

  /** Of so many milliseconds, the first so many went by until the host that was asked had named another. */
  answered(ms: number, from: string, redirectedMs: number): void {
    this.#isAnswered = true;
    this.#host.answeredMs += redirectedMs;
    if (redirectedMs > 0) this.#host.requests += 1;
    this.#host.leave(this);
    this.#host = this.#blob.hosts.of(from);
    this.#host.open(this);
    this.#host.answeredMs += ms - redirectedMs;
  }

  received(bytes: number): void {
    this.#host.bytes += bytes;
    this.#blob.received(bytes);
  }

  failed(code: string): void {
    this.#host.failed(code);
    // Whatever did not answer is what was waited for.
    if (!this.#isAnswered) this.#host.answeredMs += performance.now() - this.sinceMs;
  }

  [Symbol.dispose](): void {
    this.#closed();
    this.#host.close(this);
  }
}

/** What a layer's unpacking came to. */
export interface UnpackTrace {
  readonly bytes: number;
  readonly entries: number;
  /** For the next bytes of the download; and until it had to for the last time, since it began. */
  readonly waitedMs: number;
  readonly caughtUpMs: number;
  /** For layers that somebody waits for. */
  readonly pausedMs: number;
  /** Of the busier of its threads; undefined where that is not known. */
  readonly usage: ThreadUsage | undefined;
}

export class LayerTrace {
  readonly chainID: string;
  readonly index: number;
  /** "worker", "unpack", "parent" (until that is committed), "settle" (until it is on disk) within "commit". */
  readonly spans = new Spans();
  readonly waits = new Waits();
  /** The one that its bytes came from at last. */
  blob: BlobTrace;
  unpacked: UnpackTrace | undefined;

  constructor(chainID: string, index: number, blob: BlobTrace) {
    this.chainID = chainID;
    this.index = index;
    this.blob = blob;
  }
}

/** What the machine had done by some moment, in milliseconds since whenever. */
export interface Vitals {
  readonly atMs: number;
  /** That this process's main thread was not idle, and what it had of the cores meanwhile. */
  readonly loopMs: number;
  readonly mainUsage: ThreadUsage | undefined;
  /** Of all cores together, and of those the part in which they had nothing to do. */
  readonly coresMs: number;
  readonly idleMs: number;
}

export class ImageTrace {
  /** "resolve", "plan", "layers", "blobs", "register", one behind another; and within these "registry", when it was asked. */
  readonly spans = new Spans();
  /** That were asked for what is no layer: their failures, and how long they were left alone behind them. */
  readonly hosts = new Hosts();
  /** Those that were not there. */
  layers: readonly LayerTrace[] = [];
  /** How many were. */
  presentLayers = 0;
  /** At the beginning and the end of "layers". */
  before: Vitals | undefined;
  after: Vitals | undefined;

  /** A host has failed that was asked for what is no layer, and was left alone for so long. */
  failed(host: string, code: string, pausedMs: number): void {
    const noted = this.hosts.of(host);
    noted.failed(code);
    noted.pausedMs += pausedMs;
  }
}

export interface PullTraceOptions {
  /** When its call came in, where that was before now. */
  readonly startMs?: number;
  /** 16 hexadecimal digits. */
  readonly id: string;
  /** What it is part of (W3C Trace Context): 32 hexadecimal digits, and the 16 of the caller's span, if there is one. */
  readonly traceID: string;
  readonly parentID?: string | undefined;
  readonly isAhead: boolean;
  /** False where the caller wants nothing collected of it. */
  readonly isSampled: boolean;
}

export class PullTrace {
  readonly id: string;
  readonly traceID: string;
  readonly parentID: string | undefined;
  readonly isAhead: boolean;
  readonly isSampled: boolean;
  readonly startedAt: Date;
  readonly startMs: number;
  /**
   * "containerd": its own PullImage, which registers what we brought, or does all of it. "lost": until a process was gone
   * that had begun it.
   */
  readonly spans = new Spans();
  /** Aborted when an operator has cancelled it. */
  readonly cancelled = new AbortController();
  reference = "";
  image: ImageTrace | undefined;
  /** Another pull of the same image was on its way, and this one joined it. */
  isJoined = false;
  /** Why it has been left to containerd. */
  delegation: { readonly reason: string; readonly detail: string } | undefined;
  /** When its answer was known. */
  endMs: number | undefined;

  constructor(options: PullTraceOptions) {
    const { id, traceID, parentID, isAhead, isSampled, startMs = performance.now() } = options;
    this.startMs = startMs;
    this.startedAt = new Date(Date.now() - (performance.now() - startMs));
    this.id = id;
    this.traceID = traceID;
    this.parentID = parentID;
    this.isAhead = isAhead;
    this.isSampled = isSampled;
  }
}
