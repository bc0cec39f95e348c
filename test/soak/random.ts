// Chance that a seed decides: the same seed gives the same sequence.

export interface Randomness {
  /** From 0 up to, not including, the bound. */
  integer(bound: number): number;
  chance(probability: number): boolean;
  bytes(count: number): Buffer;
  /** One to `max` different ones, in random order. */
  some<Item>(items: readonly Item[], max: number): Item[];
}

/** Mulberry32, a generator of 32 bits of state that is good enough for choices. */
export function randomness(seed: number): Randomness {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const integer = (bound: number): number => Math.floor(next() * bound);
  return {
    integer,
    chance: (probability) => next() < probability,
    bytes: (count) => Buffer.from(Array.from({ length: count }, () => integer(256))),
    some: (items, max) => {
      const rest = [...items];
      const count = Math.min(rest.length, integer(max) + 1);
      return Array.from({ length: count }, () => rest.splice(integer(rest.length), 1)).flat();
    },
  };
}
