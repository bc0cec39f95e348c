// How fast one request goes. One that gets next to nothing goes on for as long as it may, but what it holds of limits that
// it shares with other registries is better used by those.

const tickMs = 1_000;
/** Less than this in each of so many ticks in a row is slow. */
const slow = { bytes: 64 * 1024, ticks: 2 } as const;

export class Pace implements Disposable {
  readonly #timer: NodeJS.Timeout;
  #bytes = 0;
  #slowTicks = 0;

  /** `tell` is called once, if ever. */
  constructor(tell: () => void) {
    this.#timer = setInterval(() => {
      this.#slowTicks = this.#bytes < slow.bytes ? this.#slowTicks + 1 : 0;
      this.#bytes = 0;
      if (this.#slowTicks < slow.ticks) return;
      clearInterval(this.#timer);
      tell();
    }, tickMs);
  }

  received(bytes: number): void {
    this.#bytes += bytes;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}
