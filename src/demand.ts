// Whether somebody waits for a piece of work, or it is done ahead of the need for it.
//
// Work is shared: what one pull has begun ahead of need, another may come to wait for. From then on it is awaited, and
// stays so until it is over, even if whoever waited goes away: what changed its mind once would gain little by changing
// it again.

export class Demand {
  #isAwaited: boolean;
  readonly #followers = new Set<() => void>();

  constructor(isAwaited: boolean) {
    this.#isAwaited = isAwaited;
  }

  get isAwaited(): boolean {
    return this.#isAwaited;
  }

  /** Somebody waits for it now. */
  raise(): void {
    if (this.#isAwaited) return;
    this.#isAwaited = true;
    const followers = [...this.#followers];
    this.#followers.clear();
    for (const follower of followers) follower();
  }

  /** Calls back when it is awaited, which may be at once; until then disposing keeps that from coming. */
  follow(listener: () => void): Disposable {
    if (this.#isAwaited) listener();
    else this.#followers.add(listener);
    return { [Symbol.dispose]: () => void this.#followers.delete(listener) };
  }
}
