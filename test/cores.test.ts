// Cores: what control groups of either kind allow, wherever the limit stands.

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { availableCores } from "../src/cores.ts";

let root: string;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "cores-"));
});

afterEach(() => {
  rmSync(root, { recursive: true });
});

function put(file: string, text: string): void {
  mkdirSync(dirname(join(root, file)), { recursive: true });
  writeFileSync(join(root, file), text);
}

const unlimited = availableParallelism();

test("without control groups, or without a limit, affinity counts", () => {
  expect(availableCores(root)).toBe(unlimited);
  put("proc/self/cgroup", "0::/system.slice/hawser.service\n");
  expect(availableCores(root)).toBe(unlimited);
  put("sys/fs/cgroup/system.slice/hawser.service/cpu.max", "max 100000\n");
  expect(availableCores(root)).toBe(unlimited);
  put("sys/fs/cgroup/system.slice/cpu.max", `${unlimited + 8}00000 100000\n`);
  expect(availableCores(root)).toBe(unlimited);
});

test.each([
  ["its own", "system.slice/hawser.service"],
  ["one above", "system.slice"],
  ["a container's, seen as the root", "."],
])("version 2: the limit is %s", (_, group) => {
  put("proc/self/cgroup", "0::/system.slice/hawser.service\n");
  put(`sys/fs/cgroup/${group}/cpu.max`, "50000 100000\n");
  expect(availableCores(root)).toBe(1);
});

test("version 1: a quota of -1 is none", () => {
  put("proc/self/cgroup", "9:memory:/x\n4:cpu,cpuacct:/x\n0::/x\n");
  put("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n");
  put("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "-1\n");
  expect(availableCores(root)).toBe(unlimited);
  put("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "20000\n");
  expect(availableCores(root)).toBe(1);
});

test("another process: its own group and its own affinity", () => {
  put("proc/self/cgroup", "0::/shell\n");
  put("sys/fs/cgroup/shell/cpu.max", "100000 100000\n");
  put("proc/42/cgroup", "0::/daemon\n");
  put("proc/42/status", "Name:\tnode\nCpus_allowed_list:\t0-1,4,6-7\n");
  expect(availableCores(root)).toBe(1);
  expect(availableCores(root, 42)).toBe(5);
  put("sys/fs/cgroup/daemon/cpu.max", "250000 100000\n");
  expect(availableCores(root, 42)).toBe(3);
  expect(availableCores(root, 43)).toBe(unlimited);
});

test("a part of a core counts as one, and what is read is never trusted", () => {
  put("proc/self/cgroup", "0::/x\nnonsense\n");
  put("sys/fs/cgroup/x/cpu.max", "101000 100000\n");
  expect(availableCores(root)).toBe(Math.min(unlimited, 2));
  put("sys/fs/cgroup/x/cpu.max", "100000 0\n");
  expect(availableCores(root)).toBe(unlimited);
});

test("here", () => {
  expect(availableCores()).toBeGreaterThanOrEqual(1);
  expect(availableCores()).toBeLessThanOrEqual(unlimited);
});
