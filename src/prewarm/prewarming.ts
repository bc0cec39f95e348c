// Pre-warming on this node: the engine, with the places that say what is wanted, and what an operator sees of it.
//
// The configuration, a directory, the command line and the cluster's pods name images here. None of them can do any harm:
// what is wrong with one is told in log and status, and pulls go on.

import { open } from "node:fs/promises";
import type { Cluster } from "../cluster/cluster.ts";
import type { Holds } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Log } from "../log.ts";
import type { Metrics } from "../metrics.ts";
import type { Digest } from "../oci/digest.ts";
import { parseReference } from "../oci/reference.ts";
import type { Ahead, Pulled, Spare } from "../pull/pull.ts";
import { volumeOf } from "../pull/space.ts";
import type { Credentials } from "../registry/registry.ts";
import { Directory } from "./directory.ts";
import { Keyring } from "./keyring.ts";
import { nameOf, namesOf } from "./names.ts";
import { Pods } from "./pods.ts";
import { type Fetched, Prewarm, type PrewarmLimits, type Refused, type Wanted } from "./prewarm.ts";
import { eventsFor, type ImageStatus, statusOf } from "./report.ts";
import { type Wish, Wishes } from "./wishes.ts";

export interface PrewarmingOptions {
  readonly images: readonly string[];
  readonly directory: string | undefined;
  /** What needs no credentials is listed. */
  readonly listsAnonymous: boolean;
  /** Where what "hawser prewarm add" asked for is kept. */
  readonly wishesFile: string;
  readonly limits: PrewarmLimits;
  /** What is to be left free of a file system. */
  readonly spare: Spare;
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
  /** What containerd's record of this name stands for; undefined where it has none. */
  readonly listed: (name: string) => Promise<Digest | undefined>;
  /** A file of Docker's form; it need not be there. */
  readonly credentialsFile: string;
  readonly log: Log;
  readonly metrics: Metrics;
}

export interface NodeCluster {
  readonly cluster: Cluster;
  readonly nodeName: string;
}

export type PrewarmRequest =
  | { readonly kind: "list" }
  /** Of no use any more after so long, if it says how long. */
  | { readonly kind: "add"; readonly references: readonly string[]; readonly withinMs?: number | undefined }
  | { readonly kind: "remove"; readonly references: readonly string[] };

export interface PrewarmStatus {
  /** All is known that is wanted here, but for pods. */
  readonly ready: boolean;
  readonly images: readonly ImageStatus[];
  /** What is wrong with one of the places that name images. */
  readonly troubles: readonly string[];
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
    const { spare } = options;
    const events = eventsFor(options.log, options.metrics);
    this.#engine = new Prewarm({
      holds: options.holds,
      fetch: async (name, wanted, signal) => await this.#fetch(name, wanted, signal),
      isListed: async (name) => (await options.listed(name)) !== undefined,
      limits: options.limits,
      isFull: async () => {
        const volumes = await Promise.all(options.folders().map(volumeOf));
        return volumes.some((volume) => volume.freeBytes < spare(volume));
      },
      events: {
        ...events,
        changed: (entries) => {
          events.changed(entries);
          this.#pods?.imagesChanged();
        },
      },
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
      const wishes = await this.#currentWishes();
      this.#refuse("prewarm.images", this.#engine.replace("config", images, wants.list));
      this.#refuse(this.#options.wishesFile, this.#wish(wishes));
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
  async #fetch(name: string, { isKnown, sources }: Wanted, signal: AbortSignal): Promise<Fetched> {
    const { fetch, listsAnonymous, spare } = this.#options;
    const present = this.#pods?.areContent(sources, name) ? await this.#listed(name) : undefined;
    if (present) return { failure: undefined, target: present, [Symbol.asyncDispose]: async () => {} };
    const own = await this.#pods?.keyrings(sources, signal);
    const keyrings = [...(own ?? []), await this.#readKeyring()];
    const [first, ...others] = keyrings.flatMap((keyring) => keyring.of(parseReference(name)));
    const attempt = async (credentials: Credentials | undefined): Promise<Pulled> => {
      // Whoever may have it without being asked for anything may have it from the node as well.
      const ahead = { isKnown, spare, isListed: listsAnonymous && credentials === undefined };
      return await fetch(name, credentials, ahead, signal);
    };
    let pulled = await attempt(first);
    for (const credentials of others) {
      const { failure } = pulled;
      if (failure?.code !== "refused" && failure?.code !== "not_found") break;
      await pulled[Symbol.asyncDispose]();
      pulled = await attempt(credentials);
    }
    const { failure, held, registered } = pulled;
    const target = failure === undefined && held === undefined ? await this.#listed(name) : undefined;
    const dispose = async (): Promise<void> => await pulled[Symbol.asyncDispose]();
    return { failure, held, registered, target, [Symbol.asyncDispose]: dispose };
  }

  /** Undefined as well where containerd does not say. */
  async #listed(name: string): Promise<Digest | undefined> {
    return await this.#options.listed(name).catch(() => undefined);
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
        images: this.#engine,
        want: (source, references) => {
          const refused = this.#engine.replace(source, references, wants.pod);
          this.#refuse(source, refused);
          return refused;
        },
        trouble: (place, why) => this.#trouble(place, why),
      });
    } catch (error) {
      if (this.#isClosed) return;
      this.#trouble("prewarm.pods", PullError.from(error).message);
      this.#asking = setTimeout(() => void this.#followPods(), clusterAgainMs).unref();
    }
  }

  /** What is long past its deadline is of no use to anybody, and forgotten. */
  async #currentWishes(): Promise<readonly Wish[]> {
    const wishes = await this.#wishes;
    const oldest = Date.now() - this.#options.limits.keepMs;
    const current = wishes.all.filter(({ deadlineMs = oldest }) => deadlineMs >= oldest);
    if (current.length < wishes.all.length) await wishes.set(current).catch(() => {});
    return current;
  }

  /** All of them or none. */
  async #change(request: Exclude<PrewarmRequest, { kind: "list" }>): Promise<void> {
    const wishes = await this.#wishes;
    const names = request.references.map((reference) => nameOf(reference));
    // Whatever else stands in the file is told of, and not carried on.
    const present = wishes.all.flatMap(({ reference, deadlineMs }) =>
      namesOf([reference]).map((name): Wish => ({ reference: name, deadlineMs })),
    );
    if (request.kind === "add") {
      const { withinMs } = request;
      const deadlineMs = withinMs === undefined ? undefined : Date.now() + withinMs;
      const added = names.map((reference): Wish => ({ reference, deadlineMs }));
      await wishes.set([...present, ...added]);
      for (const refused of this.#wish(added).values()) throw refused;
      for (const name of names) this.#engine.hasten(name);
      return;
    }
    const wished = new Set(present.map(({ reference }) => reference));
    for (const name of names) if (!wished.has(name)) throw this.#notWished(name);
    const leaving = new Set(names);
    await wishes.set(present.filter(({ reference }) => !leaving.has(reference)));
    for (const name of names) this.#engine.unwant(name, "command");
  }

  #wish(wishes: readonly Wish[]): Refused {
    const refused = new Map<string, PullError>();
    for (const { reference, deadlineMs } of wishes) {
      try {
        this.#engine.want(reference, "command", { ...wants.command, deadlineMs });
      } catch (error) {
        refused.set(reference, PullError.from(error));
      }
    }
    return refused;
  }

  #notWished(name: string): PullError {
    const sources = this.#engine.entries.find((entry) => entry.name === name)?.sources.keys() ?? [];
    const others = [...sources].join(", ");
    const why = others ? `; what wants it is: ${others}` : "";
    return new PullError("invalid", `${name} was not asked for with "hawser prewarm add"${why}`);
  }

  #refuse(place: string, refused: Refused): void {
    const named = [...refused].flatMap(([reference, { code }]) => (code === "invalid" ? [reference] : []));
    const quoted = named.slice(0, 5).map((one) => JSON.stringify(one.slice(0, 100)));
    const others = [...refused.values()].filter(({ code }) => code !== "invalid");
    const parts = [
      ...(named.length === 0 ? [] : [`no image references: ${quoted.join(", ")}`]),
      ...others.slice(0, 1).map(({ message }) => `${message}: ${others.length} of these are not`),
    ];
    this.#trouble(place, parts.length === 0 ? undefined : parts.join("; "));
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
