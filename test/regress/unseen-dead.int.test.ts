// What an instance left that died beside a daemon to which no pull came stayed until the next pull.

import { mkdirSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { eventually } from "../harness/process.ts";
import { Rig } from "../pull/rig.ts";

beforeEach(() => void vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] }));
afterEach(() => void vi.useRealTimers());

test("a site looks for the dead every ten minutes, with no pull to ask for it", async () => {
  await using rig = await Rig.open();
  const spools = dirname(rig.site.instance.spool);
  mkdirSync(join(spools, "0123456789abcdef", "parked"), { recursive: true });
  vi.advanceTimersByTime(599_000);
  expect(readdirSync(spools)).toContain("0123456789abcdef");
  vi.advanceTimersByTime(1_000);
  await eventually(async () => expect(readdirSync(spools)).not.toContain("0123456789abcdef"), "a claim");
});
