// Requests at once, found out beside servers that are simulated in virtual time.

import { expect, test } from "vitest";
import { hostRequests, Tuning } from "../../src/pull/tuning.ts";

interface Server {
  /** Bytes a second that so many connections get together. */
  readonly rate: (connections: number) => number;
  readonly answerMs?: (connections: number) => number;
  readonly refusesAbove?: number;
}

/** Virtual time in which as many requests as allowed are open all the time. */
class World {
  nowMs = 0;
  isWanted = true;
  readonly seen: number[] = [];
  readonly tuning = new Tuning(
    () => this.isWanted,
    () => this.nowMs,
  );

  run(seconds: number, { rate, answerMs = () => 20, refusesAbove = Number.POSITIVE_INFINITY }: Server): void {
    for (const endMs = this.nowMs + seconds * 1000; this.nowMs < endMs; this.nowMs += 50) {
      const { limit } = this.tuning;
      this.seen.push(limit);
      this.tuning.answered(answerMs(limit));
      if (limit > refusesAbove) this.tuning.troubled();
      this.tuning.received(rate(limit) / 20);
    }
  }
}

const perConnection = (each: number, all: number) => (connections: number) =>
  Math.min(each * connections, all);

test("grows to the most while every connection brings more", () => {
  const world = new World();
  world.run(10, { rate: perConnection(5e6, 1e9) });
  expect(world.tuning.limit).toBe(hostRequests.most);
});

test("stays near what is enough: a gigabit by connections of 30 MB/s needs no more than it began with", () => {
  const world = new World();
  world.run(60, { rate: perConnection(30e6, 125e6) });
  expect(Math.max(...world.seen)).toBeLessThanOrEqual(Math.ceil(hostRequests.first * 1.4 * 1.4));
  expect(world.tuning.limit).toBeGreaterThanOrEqual(5);
});

test("finds more when there is more later on", () => {
  const world = new World();
  world.run(20, { rate: perConnection(30e6, 125e6) });
  world.run(60, { rate: perConnection(10e6, 1e9) });
  expect(world.tuning.limit).toBeGreaterThan(20);
});

test("halves once for a bunch of refusals, keeps below what is refused for most of the time, and never gets to 0", () => {
  const world = new World();
  world.run(5, { rate: perConnection(5e6, 1e9) });
  const before = world.tuning.limit;
  for (let count = 0; count < 10; count++) world.tuning.troubled();
  expect(world.tuning.limit).toBe(Math.floor(before / 2));
  const from = world.seen.length;
  world.run(120, { rate: perConnection(5e6, 1e9), refusesAbove: 8 });
  const later = world.seen.slice(from + 200);
  expect(later.filter((limit) => limit > 8).length).toBeLessThan(later.length / 10);
  world.run(120, { rate: perConnection(5e6, 1e9), refusesAbove: 0 });
  expect(world.tuning.limit).toBe(1);
});

test("shrinks where more requests are only queued", () => {
  const world = new World();
  world.run(2, { rate: perConnection(20e6, 60e6), answerMs: () => 10 });
  world.run(60, { rate: () => 60e6, answerMs: (connections) => connections * 200 });
  expect(world.tuning.limit).toBeLessThan(hostRequests.first);
});

test("learns nothing from a limit that nobody meets, nor from pauses", () => {
  const world = new World();
  world.isWanted = false;
  world.run(30, { rate: perConnection(5e6, 1e9) });
  expect(world.tuning.limit).toBe(hostRequests.first);
  world.isWanted = true;
  for (let count = 0; count < 20; count++) {
    world.nowMs += 60_000;
    world.tuning.received(1000 * 1000 ** (count % 2));
  }
  expect(world.tuning.limit).toBe(hostRequests.first);
});

test("answers that were quick once, from a mirror's cache, do not make all later ones a queue", () => {
  const world = new World();
  world.run(1, { rate: perConnection(5e6, 1e9), answerMs: () => 5 });
  world.run(60, { rate: perConnection(5e6, 1e9), answerMs: () => 300 });
  expect(world.seen.slice(-400).every((limit) => limit === hostRequests.most)).toBe(true);
});
