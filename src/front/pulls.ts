// The pulls of this node as an operator sees them: those that go on, in whatever process, and those that are kept.

import { PullError } from "../errors.ts";
import { type PullRecord, progressOf, remainingSeconds } from "../history/record.ts";
import type { Store } from "../history/store.ts";
import type { Pullers } from "./pullers.ts";

/** A pull without its details, for lists. */
export interface PullSummary
  extends Pick<PullRecord, "id" | "image" | "startedAt" | "seconds" | "state" | "outcome" | "isAhead"> {
  /** Of its layers that were not there, as they are in the registry. */
  readonly bytes: number;
  readonly doneBytes: number;
  readonly layers: number;
  readonly presentLayers: number;
  /** Of one that goes on; until all bytes are there, where that can be told. */
  readonly bytesPerSecond?: number;
  readonly remainingSeconds?: number;
  readonly verdict?: Pick<NonNullable<PullRecord["verdict"]>, "cause" | "key" | "share" | "sentence">;
}

/** What GET /pulls says. */
export interface PullList {
  /** The oldest first. */
  readonly running: readonly PullSummary[];
  /** The newest first. */
  readonly ended: readonly PullSummary[];
}

const idPattern = /^[0-9a-f]{1,16}$/;

export class Pulls {
  readonly #pullers: Pick<Pullers, "all">;
  readonly #store: Store;

  constructor(pullers: Pick<Pullers, "all">, store: Store) {
    this.#pullers = pullers;
    this.#store = store;
  }

  /** Pulls that go on, whole, the oldest first. */
  async running(): Promise<readonly PullRecord[]> {
    return (await this.#present()).filter(({ state }) => state === "running");
  }

  async list(count: number): Promise<PullList> {
    const [running, ended] = await Promise.all([this.running(), this.ended(count)]);
    return { running: running.map(summaryOf), ended: ended.map(summaryOf) };
  }

  /** Whole, the newest first. */
  async ended(count: number): Promise<readonly PullRecord[]> {
    const [present, stored] = await Promise.all([this.#present(), this.#store.latest(count)]);
    const ended = present.filter(({ state }) => state !== "running").toReversed();
    return unique([...ended, ...stored]).slice(0, count);
  }

  /** Something that changes whenever another pull is kept. */
  async version(): Promise<string> {
    return await this.#store.version();
  }

  /** By its id or the beginning of it; the latest for "latest". Throws `not_found` and `invalid`. */
  async find(id: string): Promise<PullRecord> {
    if (id === "latest") return await this.#latest();
    if (!idPattern.test(id))
      throw new PullError("invalid", `${JSON.stringify(id)} is no id of a pull; "hawser pulls" lists them`);
    const present = (await this.#present()).filter((pull) => pull.id.startsWith(id));
    const found = unique([...present, ...(await this.#store.find(id))]);
    const [first, second] = found;
    if (first === undefined)
      throw new PullError(
        "not_found",
        `there is no pull ${id} any more; "hawser pulls" lists those that are kept`,
      );
    if (second !== undefined)
      throw new PullError(
        "invalid",
        `several pulls begin with ${id}: ${found.map((pull) => pull.id).join(", ")}`,
      );
    return first;
  }

  /** Has one end as if its caller had gone. Throws `not_found`, and `invalid` for one that has ended. */
  async cancel(id: string): Promise<PullSummary> {
    const pull = await this.find(id);
    const asked = this.#pullers.all.map(async (puller) => await puller.cancel(pull.id));
    const isCancelled = (await Promise.all(asked)).includes(true);
    if (!isCancelled) throw new PullError("invalid", `pull ${pull.id} of ${pull.image} has ended already`);
    return summaryOf(pull);
  }

  /** The one that began last. */
  async #latest(): Promise<PullRecord> {
    const all = [...(await this.#present()), ...(await this.#store.latest(1))].sort(byBeginning);
    const latest = all.at(-1);
    if (latest === undefined) throw new PullError("not_found", "there has been no pull yet");
    return latest;
  }

  /** Of all processes, those that go on or have ended just now, the oldest first. */
  async #present(): Promise<readonly PullRecord[]> {
    const all = await Promise.all(this.#pullers.all.map(async (puller) => await puller.pulls()));
    return all.flat().sort(byBeginning);
  }
}

function byBeginning(one: PullRecord, other: PullRecord): number {
  return one.startedAt.localeCompare(other.startedAt);
}

/** One that has ended just now may be there twice: the process that pulls knows it, and it is kept. */
function unique(pulls: readonly PullRecord[]): readonly PullRecord[] {
  const seen = new Set<string>();
  return pulls.filter(({ id }) => !seen.has(id) && seen.add(id));
}

function summaryOf(record: PullRecord): PullSummary {
  const { id, image, startedAt, seconds, state, outcome, isAhead, layers, presentLayers, verdict } = record;
  const { bytes, doneBytes, bytesPerSecond } = progressOf(record);
  const remaining = remainingSeconds({ bytes, doneBytes, bytesPerSecond });
  return {
    id,
    image,
    startedAt,
    seconds,
    state,
    ...(outcome && { outcome }),
    isAhead,
    bytes,
    doneBytes,
    layers: layers.length,
    presentLayers,
    ...(state === "running" && { bytesPerSecond }),
    ...(state === "running" && remaining !== undefined && { remainingSeconds: remaining }),
    ...(verdict && {
      verdict: {
        cause: verdict.cause,
        ...(verdict.key !== undefined && { key: verdict.key }),
        share: verdict.share,
        sentence: verdict.sentence,
      },
    }),
  };
}
