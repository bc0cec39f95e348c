// What was found out of hosts a moment ago, and is asked again later: for so long, and of so many of them, since references
// name hosts and anybody may make those up.

const namesMax = 256;

export class Lately {
  readonly #forMs: number;
  /** When each is forgotten, the one added last at the end. */
  readonly #until = new Map<string, number>();

  constructor(forMs: number) {
    this.#forMs = forMs;
  }

  has(name: string): boolean {
    return (this.#until.get(name) ?? Number.NEGATIVE_INFINITY) > performance.now();
  }

  add(name: string): void {
    this.#until.delete(name);
    this.#until.set(name, performance.now() + this.#forMs);
    const oldest = this.#until.keys().next();
    if (this.#until.size > namesMax && !oldest.done) this.#until.delete(oldest.value);
  }
}
