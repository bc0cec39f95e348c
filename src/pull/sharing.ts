// Work that several pulls share by key: one run for all who ask while it runs, and its result kept for as long as
// anybody holds a share of it. The last share to be disposed of aborts an unfinished run, or disposes of its result.

/** One caller's share. Disposing gives it back; the caller must not use the result afterwards. */
export interface Share<Value> extends AsyncDisposable {
  readonly result: Promise<Value>;
  /** Whether somebody else holds a share as well. */
  isShared(): boolean;
  /** Whoever comes from now on gets a new run instead of this one. */
  retire(): void;
}

interface Run<Value> {
  result: Promise<Value>;
  readonly abort: AbortController;
  shares: number;
}

export class Sharing<Value extends AsyncDisposable> {
  readonly #runs = new Map<string, Run<Value>>();

  /** Runs that somebody holds a share of. */
  get size(): number {
    return this.#runs.size;
  }

  /** Whether a caller of this key would join somebody else. */
  has(key: string): boolean {
    return this.#runs.has(key);
  }

  /**
   * Joins the run of this key, or starts one. The signal that `start` is given is aborted when nobody is left, never
   * because one of several callers went away. A failed run is forgotten at once, so that the next caller starts anew.
   */
  join(key: string, start: (signal: AbortSignal) => Promise<Value>): Share<Value> {
    const run = this.#runs.get(key) ?? this.#start(key, start);
    run.shares += 1;
    let held = true;
    return {
      result: run.result,
      isShared: () => run.shares > 1,
      retire: () => this.#forget(key, run),
      [Symbol.asyncDispose]: async () => {
        if (!held) return;
        held = false;
        await this.#release(key, run);
      },
    };
  }

  /** Whoever comes from now on gets a new run instead of this one. */
  retire(key: string): void {
    this.#runs.delete(key);
  }

  #start(key: string, start: (signal: AbortSignal) => Promise<Value>): Run<Value> {
    const abort = new AbortController();
    // It is there before it begins, so that it can be retired by what it does at once.
    const run: Run<Value> = { result: new Promise(() => {}), abort, shares: 0 };
    this.#runs.set(key, run);
    run.result = start(abort.signal);
    run.result.catch(() => this.#forget(key, run));
    return run;
  }

  async #release(key: string, run: Run<Value>): Promise<void> {
    run.shares -= 1;
    if (run.shares > 0) return;
    this.#forget(key, run);
    run.abort.abort();
    const value = await run.result.catch(() => undefined);
    await value?.[Symbol.asyncDispose]();
  }

  #forget(key: string, run: Run<Value>): void {
    if (this.#runs.get(key) === run) this.#runs.delete(key);
  }
}

/**
 * A share of what others have begun under conditions of their own, such as other credentials: if that fails it is joined
 * or begun anew, once.
 */
export function orAnew<Value>(join: () => Share<Value>): Share<Value> {
  const first = join();
  let share = first;
  let isHeld = true;
  const again = async (error: unknown): Promise<Value> => {
    if (!isHeld) throw error;
    share = join();
    return await share.result;
  };
  const result = first.result.catch(again);
  // Whoever has let go of it does not look.
  result.catch(() => {});
  return {
    result,
    isShared: () => share.isShared(),
    retire: () => share.retire(),
    [Symbol.asyncDispose]: async () => {
      isHeld = false;
      await first[Symbol.asyncDispose]();
      if (share !== first) await share[Symbol.asyncDispose]();
    },
  };
}
