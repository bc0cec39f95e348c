// Objects as the API tells of them, a workload's pods or the workload itself, and waiting for what they come to.
//
// They are followed, so that a wait ends with the event that it is for. An API that is away for too long ends every wait.

import type { Cluster, Collection, Follower, KubernetesObject } from "../cluster/cluster.ts";
import { abortError, PullError } from "../errors.ts";
import { uidOf } from "./pod.ts";

export interface Wait {
  /** What is waited for, in words: "web-0 did not become ready". */
  readonly otherwise: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

export class Watched implements AsyncDisposable {
  readonly #cluster: Cluster;
  readonly #collection: Collection;
  readonly #isOwn: (object: KubernetesObject) => boolean;
  readonly #awayMs: number;
  readonly #objects = new Map<string, KubernetesObject>();
  readonly #listeners = new Set<() => void>();
  #following: { readonly abort: AbortController; readonly over: Promise<void> };
  #isKnown = false;
  #away: { readonly timer: NodeJS.Timeout; readonly why: string } | undefined;
  #lost: PullError | undefined;

  constructor(
    cluster: Cluster,
    collection: Collection,
    isOwn: (object: KubernetesObject) => boolean,
    awayMs: number,
  ) {
    this.#cluster = cluster;
    this.#collection = collection;
    this.#isOwn = isOwn;
    this.#awayMs = awayMs;
    this.#following = this.#follow();
  }

  get all(): readonly KubernetesObject[] {
    return [...this.#objects.values()];
  }

  /** Undefined once it is gone. */
  get(uid: string): KubernetesObject | undefined {
    return this.#objects.get(uid);
  }

  /** Why it is not known any more how they are; undefined as long as the API is not away for too long. */
  get lost(): PullError | undefined {
    return this.#lost;
  }

  /** Has those who wait look again, since something else has changed. */
  poke(): void {
    this.#tell();
  }

  /** Called after each change. */
  onChange: () => void = () => {};

  /** What a change of ours was answered with, which may be newer than what has been heard. */
  saw(object: KubernetesObject): void {
    const known = this.#objects.get(uidOf(object));
    if (known && isNewer(object, known)) this.#keep(object);
  }

  /**
   * The first value that comes of the objects as they are. Throws what `find` throws, `slow` when it takes too long,
   * `unavailable` once the API has been away for too long.
   */
  async until<Value>(find: () => Value | undefined, { otherwise, timeoutMs, signal }: Wait): Promise<Value> {
    return await new Promise<Value>((resolve, reject) => {
      const end = (settle: () => void): void => {
        this.#listeners.delete(look);
        signal.removeEventListener("abort", aborted);
        clearTimeout(timer);
        settle();
      };
      const aborted = (): void => end(() => reject(abortError(signal)));
      const look = (): void => {
        try {
          if (this.#lost) throw this.#lost;
          const value = this.#isKnown ? find() : undefined;
          if (value !== undefined) end(() => resolve(value));
        } catch (error) {
          end(() => reject(PullError.from(error)));
        }
      };
      const timer = setTimeout(() => {
        const seconds = Math.round(timeoutMs / 1000);
        end(() => reject(new PullError("slow", `${otherwise} within ${seconds} s`)));
      }, timeoutMs);
      this.#listeners.add(look);
      signal.addEventListener("abort", aborted, { once: true });
      if (signal.aborted) aborted();
      else look();
    });
  }

  /** Gives an API that is away as long again, and asks it at once. */
  forgive(): void {
    if (this.#away === undefined) return;
    this.#trouble(undefined);
    this.#following.abort.abort();
    this.#following = this.#follow();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { abort, over } = this.#following;
    abort.abort();
    clearTimeout(this.#away?.timer);
    await over;
  }

  #follow(): { readonly abort: AbortController; readonly over: Promise<void> } {
    const abort = new AbortController();
    const follower: Follower = {
      replaced: (objects) => {
        this.#objects.clear();
        for (const object of objects) this.#keep(object);
        this.#isKnown = true;
        this.#tell();
      },
      changed: (object) => {
        this.#keep(object);
        this.#tell();
      },
      deleted: (object) => {
        this.#objects.delete(uidOf(object));
        this.#tell();
      },
      trouble: (why) => this.#trouble(why),
    };
    return { abort, over: this.#cluster.follow(this.#collection, follower, abort.signal) };
  }

  #keep(object: KubernetesObject): void {
    const known = this.#objects.get(uidOf(object));
    if (!this.#isOwn(object)) this.#objects.delete(uidOf(object));
    // What a change was answered with comes by the watch as well, and later.
    else if (known === undefined || !isNewer(known, object)) this.#objects.set(uidOf(object), object);
  }

  #trouble(why: string | undefined): void {
    if (why === undefined) {
      clearTimeout(this.#away?.timer);
      this.#away = undefined;
      this.#lost = undefined;
      return;
    }
    if (this.#away) return;
    const timer = setTimeout(() => {
      const seconds = Math.round(this.#awayMs / 1000);
      this.#lost = new PullError("unavailable", `the cluster's API was lost for ${seconds} s: ${why}`);
      this.#tell();
    }, this.#awayMs);
    this.#away = { timer, why };
  }

  #tell(): void {
    // One that ends takes itself out, and one that comes has looked by itself.
    for (const listener of Array.from(this.#listeners)) listener();
    this.onChange();
  }
}

/** Versions of one object grow (KEP-5504 says so, and every API server does); where they are no numbers, none is. */
function isNewer(one: KubernetesObject, other: KubernetesObject): boolean {
  return Number(one.metadata.resourceVersion) > Number(other.metadata.resourceVersion);
}
