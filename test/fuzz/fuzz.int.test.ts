// A short run of the fuzzer; `npm run fuzz` is the long one.

import { randomInt } from "node:crypto";
import { expect, test } from "vitest";
import { fuzz } from "./fuzz.ts";
import { fuzzSanitized } from "./sanitized.ts";

test("ten seconds of any bytes: no crash, and nothing outside of a root changes", async () => {
  const { executions, crashes } = await fuzz({ seconds: 10, seed: randomInt(2 ** 31) });
  expect(crashes).toEqual([]);
  for (const [name, count] of executions) expect(count, name).toBeGreaterThan(10);
});

test("five seconds of native code under sanitizers: no report", () => {
  const { executions, crash } = fuzzSanitized(5, randomInt(2 ** 31));
  expect(crash).toBeUndefined();
  expect(executions).toBeGreaterThan(100);
});
