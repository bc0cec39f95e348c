// A short crash soak; `npm run soak` is the long one.

import { randomInt } from "node:crypto";
import { expect, test } from "vitest";
import { soak } from "./soak.ts";

test("twenty seconds of kill -9 at random moments: nothing wrong, nothing left", async () => {
  const seed = randomInt(2 ** 31);
  const result = await soak({ seconds: 20, killsMin: 4, seed, log: () => {} });
  expect(result.wrong, `seed ${seed}`).toEqual([]);
  expect(result.leftovers, `seed ${seed}`).toEqual([]);
  expect(result.kills, `seed ${seed}`).toBeGreaterThan(3);
  expect(result.checks).toBeGreaterThan(0);
});
