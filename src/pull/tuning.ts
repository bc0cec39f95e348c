// How many requests may be open at once to a host, found out from how it answers: more for as long as more come faster,
// fewer once it says or shows that it has enough. What worked is remembered for the next pull.
//
// It is told what happens and asks nobody; there are no timers. An epoch counts only when the limit was what held requests
// back, since nothing can be learned of a limit that nobody meets.

/** Requests at once: what a new host begins with, and what no host gets more than. */
export const hostRequests = { first: 6, most: 32 } as const;

const epochMs = 250;
/** Bytes a second must grow by a tenth for a step up to have been worth it. */
const worthIt = 1.1;
const step = 1.4;
/** After a step that was not worth it, and after trouble, no other step is tried for so long. */
const holdMs = { idle: 5_000, trouble: 15_000 } as const;
/** Refusals come in bunches; one bunch halves the limit once. */
const bunchMs = 1_000;
/** Answers that take so much longer than lately, and no more bytes for it: a queue at the other end. */
const slowAnswer = { times: 3, moreMs: 100, epochs: 20 } as const;

type State =
  /** A step was taken; it stays if the rate shows that it was worth it. */
  | {
      readonly kind: "growing";
      readonly from: number;
      readonly bytesPerSecond: number;
      /** In the first epoch its connections are made, and TCP finds its pace. */
      isSettled: boolean;
    }
  | { readonly kind: "holding"; readonly untilMs: number };

interface Epoch {
  readonly sinceMs: number;
  bytes: number;
  answers: number;
  answeredMs: number;
  /** Somebody waited, for this limit alone. */
  isBound: boolean;
}

export class Tuning {
  readonly #now: () => number;
  /** Whether anybody waits for this host and for nothing else. */
  readonly #isWanted: () => boolean;
  #limit: number = hostRequests.first;
  #state: State = { kind: "growing", from: hostRequests.first, bytesPerSecond: 0, isSettled: true };
  #troubledAtMs = Number.NEGATIVE_INFINITY;
  /** Mean time to an answer in the latest epochs that had some. */
  readonly #answersMs: number[] = [];
  #epoch: Epoch;

  constructor(isWanted: () => boolean, now: () => number = () => performance.now()) {
    this.#isWanted = isWanted;
    this.#now = now;
    this.#epoch = this.#begin();
  }

  /** Requests that may be open at once. */
  get limit(): number {
    return this.#limit;
  }

  /** A request's head came, so long after it was sent. */
  answered(timeMs: number): void {
    this.#epoch.answers += 1;
    this.#epoch.answeredMs += timeMs;
  }

  /** True when the limit has changed. */
  received(bytes: number): boolean {
    const epoch = this.#epoch;
    epoch.bytes += bytes;
    epoch.isBound ||= this.#isWanted();
    const elapsedMs = this.#now() - epoch.sinceMs;
    if (elapsedMs < epochMs) return false;
    const before = this.#limit;
    // A pause between two pulls is no epoch.
    if (epoch.isBound && elapsedMs < 3 * epochMs) this.#judge((epoch.bytes * 1000) / elapsedMs);
    this.#epoch = this.#begin();
    return this.#limit !== before;
  }

  /** It has refused a request for now (429, 503), or broken a connection off. */
  troubled(): void {
    const now = this.#now();
    if (now - this.#troubledAtMs < bunchMs) return;
    this.#troubledAtMs = now;
    this.#limit = Math.max(1, Math.floor(this.#limit / 2));
    this.#state = { kind: "holding", untilMs: now + holdMs.trouble };
    this.#epoch = this.#begin();
  }

  #begin(): Epoch {
    return { sinceMs: this.#now(), bytes: 0, answers: 0, answeredMs: 0, isBound: false };
  }

  #judge(bytesPerSecond: number): void {
    const now = this.#now();
    const state = this.#state;
    const isQueued = this.#isQueued();
    if (state.kind === "holding") {
      if (now >= state.untilMs) this.#grow(bytesPerSecond);
      return;
    }
    if (!state.isSettled) {
      state.isSettled = true;
      return;
    }
    const isWorthIt = bytesPerSecond >= state.bytesPerSecond * worthIt;
    if (isWorthIt && this.#limit < hostRequests.most) {
      this.#grow(bytesPerSecond);
      return;
    }
    if (!isWorthIt) this.#limit = isQueued ? Math.max(1, Math.floor(state.from / step)) : state.from;
    this.#state = { kind: "holding", untilMs: now + holdMs.idle };
  }

  #grow(bytesPerSecond: number): void {
    this.#state = { kind: "growing", from: this.#limit, bytesPerSecond, isSettled: false };
    this.#limit = Math.min(hostRequests.most, Math.ceil(this.#limit * step));
  }

  #isQueued(): boolean {
    const { answers, answeredMs } = this.#epoch;
    if (answers === 0) return false;
    const meanMs = answeredMs / answers;
    this.#answersMs.push(meanMs);
    if (this.#answersMs.length > slowAnswer.epochs) this.#answersMs.shift();
    return meanMs > slowAnswer.times * Math.min(...this.#answersMs) + slowAnswer.moreMs;
  }
}
