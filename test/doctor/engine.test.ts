// The engine: addon, processor and cores in each of their states.

import { availableParallelism } from "node:os";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { DoctorOptions } from "../../src/doctor/doctor.ts";
import { checkEngine } from "../../src/doctor/engine.ts";
import { loadNative, type Native } from "../../src/native.ts";
import { all, lines, MadeUpNode } from "./node.ts";

let node: MadeUpNode;

beforeEach(() => {
  node = new MadeUpNode();
  node.write("/proc/cpuinfo", "processor : 0\nflags\t\t: fpu avx2 bmi2 pclmulqdq sha_ni\n");
});

afterEach(() => {
  node[Symbol.dispose]();
});

const missing: Native = { kind: "missing", reason: "the native addon cannot be loaded: no such file" };

async function found(
  load: () => Native = loadNative,
  options: Partial<DoctorOptions> = {},
): Promise<string[]> {
  return lines(await all(checkEngine(node.context(options), load)));
}

test("all there", async () => {
  const cores = availableParallelism();
  expect(await found()).toEqual([
    "ok native addon: loads",
    "ok sha256: the processor has SHA-NI",
    "ok inflate: the processor has AVX2",
    `ok cores: this shell may use ${cores}`,
  ]);
});

test("an addon that is missing, and one that is not needed", async () => {
  expect((await found(() => missing))[0]).toBe(
    `broken native addon: ${missing.reason}: every pull goes through to containerd -> install the bundle of this version for this architecture`,
  );
  expect((await found(() => missing, { engine: "portable" }))[0]).toBe(
    `slow native addon: ${missing.reason}; the portable engine is used -> take the addon of this version, and leave unpack.engine out`,
  );
});

const pass = "or pass these features on to the virtual machine";

test.each([
  [
    "flags : avx2 bmi2 pclmulqdq sha_ni avx512f vpclmulqdq",
    ["ok inflate: the processor has AVX2 and AVX-512"],
  ],
  [
    "flags : avx2 pclmulqdq",
    [
      "slow sha256: the processor has no SHA-NI: digests take about three times the CPU time -> use a newer processor, or pass this feature on to the virtual machine",
      `slow inflate: the processor has no BMI2: inflating takes more CPU time -> use a newer processor, ${pass}`,
    ],
  ],
  [
    "flags : sha_ni",
    [
      `slow inflate: the processor has no AVX2, no BMI2, no PCLMULQDQ: inflating takes more CPU time -> use a newer processor, ${pass}`,
    ],
  ],
  ["Features : fp asimd sha1 sha2", ["ok sha256: the processor has SHA-2 instructions"]],
  [
    "Features : fp asimd",
    [
      "slow sha256: the processor has no SHA-2 instructions: digests take about three times the CPU time -> use a newer processor, or pass this feature on to the virtual machine",
    ],
  ],
  ["model : 1", ["unknown CPU: /proc/cpuinfo does not name its features"]],
])("%j", async (line, expected) => {
  node.write("/proc/cpuinfo", `processor : 0\n${line}\n`);
  expect(await found()).toEqual(expect.arrayContaining(expected));
});

test("cores are the daemon's: by its control group, and by its affinity", async () => {
  node.process(9, {
    command: ["node", "main.js", "serve"],
    listens: ["/run/hawser/hawser.sock"],
    files: { cgroup: "0::/system.slice/hawser.service\n", status: "Cpus_allowed_list:\t0-3,8\n" },
  });
  expect((await found()).at(-1)).toBe("ok cores: the daemon may use 5");
  node.write("/sys/fs/cgroup/system.slice/hawser.service/cpu.max", "100000 100000\n");
  expect((await found()).at(-1)).toMatch(
    /^slow cores: the daemon may use 1 of \d+, by its control group: layers are unpacked one after another -> give it two cores or more$/,
  );
});
