// Which hosts are worth asking: a breaker per host that opens after repeated failures and is probed in the background.
//
// While a host's breaker is open it is passed over at once, so that a black hole costs one pull its patience and not
// every pull. Hosts come from references, which anybody may make up, so only so many are remembered.

export interface BreakerOptions {
  /** Failures in a row that open the breaker. */
  readonly failures: number;
  /** How long it stays open before the host is probed, and between two probes. */
  readonly resetMs: number;
  /** Told on each change. */
  readonly changed: (host: string, open: boolean) => void;
}

/** Settles when the host answers, and rejects when it does not. */
export type Probe = () => Promise<void>;

type State =
  | { readonly kind: "closed"; readonly failures: number }
  | { readonly kind: "open"; readonly timer: NodeJS.Timeout };

/** Hosts with failures that are remembered; the one that failed first is forgotten for a new one. */
const hostsMax = 256;

export class Health {
  readonly #options: BreakerOptions;
  /** Hosts without failures have no entry. */
  readonly #states = new Map<string, State>();

  constructor(options: BreakerOptions) {
    this.#options = options;
  }

  isOpen(host: string): boolean {
    return this.#states.get(host)?.kind === "open";
  }

  succeeded(host: string): void {
    const state = this.#states.get(host);
    if (state === undefined) return;
    this.#states.delete(host);
    if (state.kind !== "open") return;
    clearTimeout(state.timer);
    this.#options.changed(host, false);
  }

  failed(host: string, probe: Probe): void {
    const state = this.#states.get(host) ?? { kind: "closed", failures: 0 };
    if (state.kind === "open") return;
    const failures = state.failures + 1;
    if (failures < this.#options.failures) {
      this.#states.set(host, { kind: "closed", failures });
    } else {
      this.#states.set(host, { kind: "open", timer: this.#schedule(host, probe) });
      this.#options.changed(host, true);
    }
    const oldest = this.#states.keys().next();
    if (this.#states.size > hostsMax && !oldest.done) this.succeeded(oldest.value);
  }

  close(): void {
    for (const state of this.#states.values()) if (state.kind === "open") clearTimeout(state.timer);
    this.#states.clear();
  }

  #schedule(host: string, probe: Probe): NodeJS.Timeout {
    const timer = setTimeout(() => {
      probe().then(
        () => {
          if (this.#isStillOpen(host, timer)) this.succeeded(host);
        },
        () => {
          if (this.#isStillOpen(host, timer)) {
            this.#states.set(host, { kind: "open", timer: this.#schedule(host, probe) });
          }
        },
      );
    }, this.#options.resetMs);
    return timer.unref();
  }

  /** Whether the breaker is open as it was when this timer was set, so that a late probe judges nothing newer. */
  #isStillOpen(host: string, timer: NodeJS.Timeout): boolean {
    const state = this.#states.get(host);
    return state?.kind === "open" && state.timer === timer;
  }
}
