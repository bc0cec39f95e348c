// The cluster's API for somebody who changes something step by step: short absences are waited for, and what has changed
// meanwhile is looked at again before it is changed.
//
// Every change names the version of the object that it was made for, so that one whose answer was lost is not made twice,
// and nobody else's is undone. Before each, the lock is made sure of.

import { setTimeout as sleep } from "node:timers/promises";
import type { Change, Cluster, KubernetesObject } from "../cluster/cluster.ts";
import { PullError, throwIfAborted } from "../errors.ts";
import { uidOf } from "./pod.ts";

const pauseMs = { first: 200, most: 5_000 } as const;
/** Others change an object as well, kubelet its status above all. */
const conflictsMax = 20;

export interface Patch {
  readonly kind: "merge" | "strategic";
  readonly patch: Readonly<Record<string, unknown>>;
}

export class Steady {
  readonly #cluster: Cluster;
  readonly #awayMs: number;
  readonly #unsure = new Set<string>();
  /** Called before each change; throws where nothing may be changed any more. */
  ensure: (signal: AbortSignal) => Promise<void> = async () => {};

  constructor(cluster: Cluster, awayMs: number) {
    this.#cluster = cluster;
    this.#awayMs = awayMs;
  }

  async get(path: string, signal: AbortSignal): Promise<KubernetesObject> {
    return await this.persist(async () => await this.#cluster.get(path, signal), signal);
  }

  /** As {@link Cluster.write}, without looking at the lock. */
  async write(change: Change, signal: AbortSignal): Promise<KubernetesObject> {
    // One that is under way is not broken off, so that it is known what came of it.
    const never = new AbortController().signal;
    return await this.persist(async () => await this.#cluster.write(change, never), signal);
  }

  async #change(change: Change, signal: AbortSignal): Promise<KubernetesObject> {
    const attempt = async (): Promise<KubernetesObject> => {
      // Each time, since the API may have been away for longer than the lock is good for.
      await this.ensure(signal);
      return await this.#cluster.write(change, new AbortController().signal);
    };
    return await this.persist(attempt, signal);
  }

  /** Objects of which it is not known whether they were changed, as they are now; those that are gone are left out. */
  async unsure(signal: AbortSignal): Promise<readonly KubernetesObject[]> {
    const found: KubernetesObject[] = [];
    for (const path of this.#unsure) {
      try {
        found.push(await this.get(path, signal));
      } catch (error) {
        if (PullError.from(error).code !== "not_found") throw error;
      }
    }
    this.#unsure.clear();
    return found;
  }

  /**
   * Changes what this patch says of the object as it is now; nothing where it says nothing. Throws `not_found` where the
   * object is gone, or another one has its name.
   */
  async amend(
    path: string,
    seen: KubernetesObject,
    patchFor: (object: KubernetesObject) => Patch | undefined,
    signal: AbortSignal,
    subresource = "",
  ): Promise<KubernetesObject> {
    let object = seen;
    for (let attempt = 0; ; attempt++) {
      const made = patchFor(object);
      if (made === undefined) return object;
      const { uid, resourceVersion } = object.metadata;
      const given = made.patch["metadata"] as object | undefined;
      const patch = { ...made.patch, metadata: { ...given, uid, resourceVersion } };
      try {
        return await this.#change({ kind: made.kind, path: `${path}${subresource}`, patch }, signal);
      } catch (error) {
        const { code } = PullError.from(error);
        if (code === "unavailable" || code === "cancelled") this.#unsure.add(path);
        if (code !== "conflict" || attempt >= conflictsMax) throw error;
      }
      // It may have been the lock that is another's by now.
      await this.ensure(signal);
      const fresh = await this.get(path, signal);
      if (uidOf(fresh) !== uidOf(seen))
        throw new PullError("not_found", `${seen.metadata.name} was replaced`);
      object = fresh;
    }
  }

  /** Tries what may succeed later again for as long as the API may be away. */
  async persist<Value>(attempt: () => Promise<Value>, signal: AbortSignal): Promise<Value> {
    let sinceMs: number | undefined;
    for (let times = 0; ; times++) {
      let askedMs = 0;
      throwIfAborted(signal);
      try {
        return await attempt();
      } catch (error) {
        throwIfAborted(signal);
        const failure = PullError.from(error, "unavailable");
        if (!failure.temporary) throw failure;
        askedMs = (failure.cause as { readonly retryAfterMs?: number } | undefined)?.retryAfterMs ?? 0;
        sinceMs ??= performance.now();
        const seconds = Math.round(this.#awayMs / 1000);
        if (performance.now() - sinceMs >= this.#awayMs)
          throw new PullError(
            "unavailable",
            `the cluster's API was lost for ${seconds} s: ${failure.message}`,
            {
              cause: error,
            },
          );
      }
      const pause = Math.min(pauseMs.most, pauseMs.first * 2 ** times) * (0.5 + 0.5 * Math.random());
      const longest = Math.max(pause, Math.min(askedMs, this.#awayMs));
      await sleep(longest, undefined, { signal }).catch(() => {});
    }
  }
}
