// How much one request asks for: a little at first, and then what keeps a connection busy without keeping a reader waiting.

import { expect, test } from "vitest";
import { RangeSize } from "../../src/registry/ranges.ts";

const mib = 1024 * 1024;

test("the first request is small, and a blob that is not much larger is asked for whole", () => {
  const size = new RangeSize(8 * mib);
  expect(size.of(100 * mib)).toBe(2 * mib);
  expect(size.of(4 * mib)).toBe(4 * mib);
  expect(size.of(10)).toBe(10);
});

test("a setting below that bounds every request", () => {
  const size = new RangeSize(64 * 1024);
  expect(size.bytesMin).toBe(64 * 1024);
  expect(size.of(100_000)).toBe(64 * 1024);
  size.took(1, 1, mib);
  expect(size.of(mib)).toBe(64 * 1024);
});

test("quick connections come to the most, in a few requests", () => {
  const size = new RangeSize(8 * mib);
  for (let request = 0; request < 5; request++) size.took(1, 5, size.of(100 * mib));
  expect(size.of(100 * mib)).toBe(8 * mib);
});

test("slow connections are asked for 200 ms of bytes, distant ones for five times what a head takes", () => {
  const slow = new RangeSize(64 * mib);
  const distant = new RangeSize(64 * mib);
  for (let request = 0; request < 20; request++) {
    // 20 MiB a second.
    for (const [size, headMs] of [
      [slow, 10],
      [distant, 100],
    ] as const) {
      const bytes = size.of(1000 * mib);
      size.took(headMs, (bytes / mib) * 50, bytes);
    }
  }
  expect(slow.of(1000 * mib) / mib).toBeCloseTo(4, 2);
  expect(distant.of(1000 * mib) / mib).toBeCloseTo(10, 2);
});

test("a connection that stumbles is asked for less, and never for less than at first", () => {
  const size = new RangeSize(8 * mib);
  for (let request = 0; request < 5; request++) size.took(1, 5, 8 * mib);
  for (let request = 0; request < 20; request++) size.took(1, 60_000, 8 * mib);
  expect(size.of(100 * mib)).toBe(2 * mib);
  // The end of a blob is no measure.
  size.took(1, 0.001, 100);
  expect(size.of(100 * mib)).toBe(2 * mib);
});
