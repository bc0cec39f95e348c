// Pre-warming on this node: the engine, with the places that say what is wanted, and what an operator sees of it.
//
// The configuration, a directory and the command line name images here. None of them can do any harm: what is wrong with
// one is told in log and status, and pulls go on.

import { open } from "node:fs/promises";
import type { Cluster } from "../cluster/cluster.ts";
import type { Holds } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Log } from "../log.ts";
import type { Metrics } from "../metrics.ts";
import { parseReference } from "../oci/reference.ts";
import type { Ahead, Pulled } from "../pull/pull.ts";
import { type Volume, volumeOf } from "../pull/space.ts";
import type { Credentials } from "../registry/registry.ts";
import { Directory } from "./directory.ts";
import { Keyring } from "./keyring.ts";
import { Pods } from "./pods.ts";
import {
  type Fetched,
  nameOf,
  namesOf,
  Prewarm,
  type PrewarmEvents,
  type PrewarmLimits,
  type Wanted,
} from "./prewarm.ts";
import type { Entry } from "./queue.ts";
import { Wishes } from "./wishes.ts";

export interface PrewarmingOptions {
  readonly images: readonly string[];
  readonly directory: string | undefined;
  /** Where what "hawser prewarm add" asked for is kept. */
  readonly wishesFile: string;
  readonly limits: PrewarmLimits;
  readonly minFree: MinFree;
  readonly holds: Holds;
  /** What must not be filled; none while containerd is away. */
  readonly folders: () => readonly string[];
  readonly fetch: (
    name: string,
    credentials: Credentials | undefined,
    ahead: Ahead,
    signal: AbortSignal,
  ) => Promise<Pulled>;
  /** The cluster's API, and the node's name in it; undefined where it is not to be asked. */
  readonly cluster: (() => Promise<NodeCluster>) | undefined;
  /** Whether containerd has a record of this name. */
  readonly isListed: (name: string) => Promise<boolean>;
  /** A file of Docker's form; it need not be there. */
  readonly credentialsFile: string;
  readonly log: Log;
  readonly metrics: Metrics;
}

export interface NodeCluster {
  readonly cluster: Cluster;
  readonly nodeName: string;
}

/** What is to be left free of a file system. */
type MinFree =
  | { readonly kind: "share"; readonly share: number }
  | { readonly kind: "bytes"; readonly bytes: number };

export type PrewarmRequest =
  | { readonly kind: "list" }
  | { readonly kind: "add" | "remove"; readonly references: readonly string[] };

export interface PrewarmStatus {
  /** All is known that is wanted here, but for pods. */
  readonly ready: boolean;
  readonly images: readonly ImageStatus[];
  /** What is wrong with one of the places that name images. */
  readonly troubles: readonly string[];
}

export interface ImageStatus {
  readonly name: string;
  readonly state: "wanted" | "fetching" | "warm" | "failed";
  readonly sources: readonly string[];
  /** Since when it is wanted, and since when it has been warm: seconds. */
  readonly ageSeconds: number;
  readonly warmSeconds?: number;
  readonly bytes?: number;
  readonly target?: string;
  /** Of the latest attempt. */
  readonly error?: string;
  readonly attempts?: number;
  /** It may be had a little later without anybody changing anything. */
  readonly temporary?: boolean;
  /** When something is done about it next. */
  readonly nextSeconds?: number;
}

/** A pod that is to start comes first, and a person who waits before a list that is long. */
const wants = {
  pod: { priority: 0, isUrgent: true },
  command: { priority: 1, isUrgent: false },
  list: { priority: 2, isUrgent: false },
} as const;
const clusterAgainMs = 30_000;
const openAgainMs = 5_000;
const keyringBytesMax = 2 ** 20;

export class Prewarming {
  readonly #options: PrewarmingOptions;
  readonly #engine: Prewarm;
  readonly #troubles = new Map<string, string>();
  readonly #wishes: Promise<Wishes>;
  #directory: Directory | undefined;
  #pods: Pods | undefined;
  #opening: NodeJS.Timeout | undefined;
  #asking: NodeJS.Timeout | undefined;
  #isReady = false;
  #isClosed = false;
  #changes: Promise<void> = Promise.resolve();

  constructor(options: PrewarmingOptions) {
    this.#options = options;
    const spare = ({ sizeBytes }: Volume): number => spareOf(options.minFree, sizeBytes);
    this.#engine = new Prewarm({
      holds: options.holds,
      fetch: async (name, wanted, signal) => await this.#fetch(name, wanted, spare, signal),
      isListed: options.isListed,
      limits: options.limits,
      isFull: async () => {
        const volumes = await Promise.all(options.folders().map(volumeOf));
        return volumes.some((volume) => volume.freeBytes < spare(volume));
      },
      events: eventsFor(options.log, options.metrics),
    });
    this.#wishes = Wishes.open(options.wishesFile, (why) => this.#trouble(options.wishesFile, why));
  }

  /** Begins, once; called when containerd can be asked. */
  open(): void {
    if (this.#opening !== undefined) return;
    this.#opening = setTimeout(() => void this.#open(), 0).unref();
  }

  /** Throws `invalid` for what is no reference, with nothing changed. */
  async answer(request: PrewarmRequest): Promise<PrewarmStatus> {
    if (request.kind !== "list") {
      const change = this.#changes.then(async () => await this.#change(request));
      this.#changes = change.catch(() => {});
      await change;
    }
    const images = this.#engine.entries.map(statusOf);
    return { ready: this.#isReady, images, troubles: [...this.#troubles.values()] };
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#opening);
    clearTimeout(this.#asking);
    await this.#pods?.[Symbol.asyncDispose]();
    await this.#directory?.[Symbol.asyncDispose]();
    await this.#engine.close();
  }

  async #open(): Promise<void> {
    const { directory, images } = this.#options;
    try {
      // What is wanted comes first: a hold that nobody wants is on its way out.
      const { references } = await this.#wishes;
      this.#refuse("prewarm.images", this.#engine.replace("config", images, wants.list));
      this.#refuse(this.#options.wishesFile, this.#engine.replace("command", references, wants.command));
      await this.#engine.open();
    } catch (error) {
      this.#trouble("containerd", PullError.from(error).message);
      this.#opening = setTimeout(() => void this.#open(), openAgainMs).unref();
      return;
    }
    this.#trouble("containerd", undefined);
    void this.#followPods();
    this.#isReady = directory === undefined;
    if (directory === undefined) return;
    this.#directory ??= new Directory({
      path: directory,
      changed: (references) =>
        this.#refuse(directory, this.#engine.replace("directory", references, wants.list)),
      trouble: (why) => this.#trouble("prewarm.directory", why),
    });
    await this.#directory.ready;
    this.#isReady = true;
  }

  /** With each of the credentials that may be meant for it, until the registry does not mind. */
  async #fetch(
    name: string,
    { isKnown, sources }: Wanted,
    spare: Ahead["spare"],
    signal: AbortSignal,
  ): Promise<Fetched> {
    const { fetch, isListed } = this.#options;
    if (this.#pods?.areContent(sources, name) && (await isListed(name).catch(() => false)))
      return { failure: undefined, [Symbol.asyncDispose]: async () => {} };
    const own = await this.#pods?.keyrings(sources, signal);
    const keyrings = [...(own ?? []), await this.#readKeyring()];
    const [first, ...others] = keyrings.flatMap((keyring) => keyring.of(parseReference(name)));
    const ahead = { isKnown, spare };
    let pulled = await fetch(name, first, ahead, signal);
    for (const credentials of others) {
      const { failure } = pulled;
      if (failure?.code !== "refused" && failure?.code !== "not_found") break;
      await pulled[Symbol.asyncDispose]();
      pulled = await fetch(name, credentials, ahead, signal);
    }
    return pulled;
  }

  /** Read each time: whoever renews it need not tell. */
  async #readKeyring(): Promise<Keyring> {
    const { credentialsFile } = this.#options;
    try {
      await using file = await open(credentialsFile, "r");
      const { size } = await file.stat();
      if (size > keyringBytesMax) throw new PullError("invalid", "it is over 1 MiB long");
      const keyring = Keyring.parse(await file.readFile("utf8"));
      this.#trouble("prewarm.credentials", undefined);
      return keyring;
    } catch (error) {
      const isAbsent = error instanceof Error && "code" in error && error.code === "ENOENT";
      this.#trouble(
        "prewarm.credentials",
        isAbsent ? undefined : `${credentialsFile}: ${PullError.from(error).message}`,
      );
      return Keyring.empty;
    }
  }

  async #followPods(): Promise<void> {
    const { cluster: connect } = this.#options;
    if (connect === undefined || this.#pods) return;
    try {
      const { cluster, nodeName } = await connect();
      if (this.#isClosed) return;
      this.#trouble("prewarm.pods", undefined);
      this.#pods = new Pods({
        cluster,
        nodeName,
        want: (source, references) => {
          const bad = this.#engine.replace(source, references, wants.pod);
          this.#refuse(source, bad);
        },
        trouble: (place, why) => this.#trouble(place, why),
      });
    } catch (error) {
      if (this.#isClosed) return;
      this.#trouble("prewarm.pods", PullError.from(error).message);
      this.#asking = setTimeout(() => void this.#followPods(), clusterAgainMs).unref();
    }
  }

  /** All of them or none. */
  async #change({ kind, references }: Exclude<PrewarmRequest, { kind: "list" }>): Promise<void> {
    const wishes = await this.#wishes;
    const names = references.map((reference) => nameOf(reference));
    // Whatever else stands in the file is told of, and not carried on.
    const present = namesOf(wishes.references);
    const wished = new Set(present);
    if (kind === "add") {
      await wishes.set([...present, ...references]);
      for (const name of names) this.#engine.want(name, "command", wants.command);
      for (const name of names) this.#engine.hasten(name);
      return;
    }
    for (const name of names) if (!wished.has(name)) throw this.#notWished(name);
    const leaving = new Set(names);
    await wishes.set(present.filter((one) => !leaving.has(one)));
    for (const name of names) this.#engine.unwant(name, "command");
  }

  #notWished(name: string): PullError {
    const sources = this.#engine.entries.find((entry) => entry.name === name)?.sources.keys() ?? [];
    const others = [...sources].join(", ");
    const why = others ? `; what wants it is: ${others}` : "";
    return new PullError("invalid", `${name} was not asked for with "hawser prewarm add"${why}`);
  }

  #refuse(place: string, bad: readonly string[]): void {
    const named = bad.slice(0, 5).map((one) => JSON.stringify(one.slice(0, 100)));
    this.#trouble(place, bad.length === 0 ? undefined : `no image references: ${named.join(", ")}`);
  }

  #trouble(place: string, why: string | undefined): void {
    if (why === undefined) {
      this.#troubles.delete(place);
      return;
    }
    const text = `${place}: ${why}`;
    if (this.#troubles.get(place) !== text) this.#options.log.warn({ place, detail: why }, "prewarm");
    this.#troubles.set(place, text);
  }
}

function spareOf(minFree: MinFree, sizeBytes: number): number {
  return minFree.kind === "bytes" ? minFree.bytes : minFree.share * sizeBytes;
}

function statusOf(entry: Entry): ImageStatus {
  const { name, sources, addedMs, condition, busySinceMs, trouble } = entry;
  const now = Date.now();
  const secondsSince = (timeMs: number): number => Math.round((now - timeMs) / 1000);
  const failure = condition.kind === "failed" ? condition.failure : trouble;
  const isWarm = condition.kind === "warm";
  return {
    name,
    state: busySinceMs !== undefined && !isWarm ? "fetching" : condition.kind,
    sources: [...sources.keys()],
    ageSeconds: secondsSince(addedMs),
    ...(isWarm && {
      warmSeconds: secondsSince(condition.sinceMs),
      ...(condition.hold && { bytes: condition.hold.bytes, target: condition.hold.target }),
    }),
    ...(failure && { error: failure.message, attempts: failure.times, temporary: failure.isTemporary }),
    ...(busySinceMs === undefined && { nextSeconds: Math.max(0, -secondsSince(condition.dueMs)) }),
  };
}

function eventsFor(log: Log, metrics: Metrics): PrewarmEvents {
  return {
    done: (image, outcome) => {
      if ("code" in outcome) {
        metrics.prewarmFetches.inc({ result: "error" });
        log.warn({ image, code: outcome.code, error: outcome.message, attempts: outcome.times }, "prewarm");
        return;
      }
      metrics.prewarmFetches.inc({ result: outcome.isNew ? "fetched" : "unchanged" });
      const seconds = Number(outcome.seconds.toFixed(3));
      if (outcome.isNew) log.info({ image, seconds, result: "ok" }, "prewarm");
    },
    dropped: (image, why) => {
      log.info({ image, why }, "prewarm: an image is held no more");
    },
    changed: (entries) => {
      const states = { wanted: 0, fetching: 0, warm: 0, failed: 0 };
      for (const entry of entries) states[statusOf(entry).state] += 1;
      for (const [state, count] of Object.entries(states)) metrics.prewarmImages.set({ state }, count);
      const waiting = entries.filter(
        ({ condition, sources }) => sources.size > 0 && condition.kind !== "warm",
      );
      const oldestMs = waiting.reduce((least, { addedMs }) => Math.min(least, addedMs), Date.now());
      metrics.prewarmAge.set((Date.now() - oldestMs) / 1000);
    },
  };
}
