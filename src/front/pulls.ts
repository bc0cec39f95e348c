// The pulls of this node as an operator sees them: those that go on, in whatever process, and those that are kept.

import { PullError } from "../errors.ts";
import type { History } from "../history/history.ts";
import type { PullRecord } from "../history/record.ts";
import type { Store } from "../history/store.ts";
import type { PullSummary } from "../history/summary.ts";
import type { Pullers } from "./pullers.ts";

/** What GET /pulls says. */
export interface PullList {
  /** The oldest first. */
  readonly running: readonly PullSummary[];
  /** The one that ended last comes first. */
  readonly ended: readonly PullSummary[];
}

const idPattern = /^[0-9a-f]{1,16}$/;

export class Pulls {
  readonly #pullers: Pick<Pullers, "all">;
  /** Of pulls that this process itself has containerd make. */
  readonly #own: History;
  readonly #store: Store;
  /** The look at the processes that goes on, and the one behind it, which serves all who have asked meanwhile. */
  #look: Promise<unknown> = Promise.resolve();
  #nextLook: Promise<readonly PullSummary[]> | undefined;
  #kept: { readonly key: string; readonly pulls: Promise<readonly PullSummary[]> } | undefined;

  constructor(pullers: Pick<Pullers, "all">, own: History, store: Store) {
    this.#pullers = pullers;
    this.#own = own;
    this.#store = store;
  }

  async running(): Promise<readonly PullSummary[]> {
    return (await this.#present()).filter(({ state }) => state === "running");
  }

  async ended(count: number): Promise<readonly PullSummary[]> {
    const [present, kept] = await Promise.all([this.#present(), this.#latest(count)]);
    const ended = present.filter(({ state }) => state !== "running").toReversed();
    const seen = new Set<string>();
    // One that has ended just now may be there twice.
    return [...ended, ...kept].filter(({ id }) => !seen.has(id) && seen.add(id)).slice(0, count);
  }

  async list(count: number): Promise<PullList> {
    const [running, ended] = await Promise.all([this.running(), this.ended(count)]);
    return { running, ended };
  }

  /** By its id or the beginning of it; the one that began last for "latest". Throws `not_found` and `invalid`. */
  async find(id: string): Promise<PullRecord> {
    const ids = id === "latest" ? await this.#latestIds() : [await this.#idOf(id)];
    for (const one of ids) {
      const found = (await this.underway(one)) ?? (await this.#store.read(one));
      if (found) return found;
    }
    if (id === "latest") throw new PullError("not_found", "there has been no pull yet");
    throw gone(id);
  }

  /** One that goes on or has ended just now, by its id or its trace's. */
  async underway(id: string): Promise<PullRecord | undefined> {
    const own = this.#own.find(id);
    if (own) return own;
    const all = await Promise.all(this.#pullers.all.map(async (puller) => await puller.pull(id)));
    return all.find((record) => record !== undefined);
  }

  /** Has one end as if its caller had gone. Throws `not_found`, and `invalid` for one that has ended. */
  async cancel(id: string): Promise<PullRecord> {
    const pull = await this.find(id);
    const asked = this.#pullers.all.map(async (puller) => await puller.cancel(pull.id));
    const isCancelled = this.#own.cancel(pull.id) || (await Promise.all(asked)).includes(true);
    if (!isCancelled) throw new PullError("invalid", `pull ${pull.id} of ${pull.image} has ended already`);
    return pull;
  }

  /** The one that began last comes first; the next one is for when it has died with its process. */
  async #latestIds(): Promise<readonly string[]> {
    const all = [...(await this.#present()), ...(await this.#latest(1))].sort(byBeginning);
    return all.toReversed().map(({ id }) => id);
  }

  async #idOf(prefix: string): Promise<string> {
    if (!idPattern.test(prefix))
      throw new PullError(
        "invalid",
        `${JSON.stringify(prefix)} is no id of a pull; "hawser pulls" lists them`,
      );
    const present = (await this.#present()).map(({ id }) => id).filter((id) => id.startsWith(prefix));
    const found = new Set([...present, ...(await this.#store.find(prefix))]);
    const [first, second] = found;
    if (first === undefined) throw gone(prefix);
    if (second !== undefined)
      throw new PullError(
        "invalid",
        `${found.size} pulls begin with ${prefix}, ${first} and ${second} among them`,
      );
    return first;
  }

  /** Of all processes, those that go on or have ended just now, the oldest first. */
  async #present(): Promise<readonly PullSummary[]> {
    this.#nextLook ??= this.#look.then(async () => {
      this.#nextLook = undefined;
      const look = this.#ask();
      this.#look = look.catch(() => {});
      return await look;
    });
    return await this.#nextLook;
  }

  async #ask(): Promise<readonly PullSummary[]> {
    const all = await Promise.all(this.#pullers.all.map(async (puller) => await puller.pulls()));
    return [...all.flat(), ...this.#own.present()].sort(byBeginning);
  }

  /** Of the store; read again when there is another one. */
  async #latest(count: number): Promise<readonly PullSummary[]> {
    const key = `${count} ${await this.#store.version()}`;
    if (this.#kept?.key !== key) this.#kept = { key, pulls: this.#store.latest(count) };
    return await this.#kept.pulls;
  }
}

function byBeginning(one: PullSummary, other: PullSummary): number {
  return one.startedAt.localeCompare(other.startedAt);
}

function gone(id: string): PullError {
  return new PullError(
    "not_found",
    `there is no pull ${id} any more; "hawser pulls" lists those that are kept`,
  );
}
