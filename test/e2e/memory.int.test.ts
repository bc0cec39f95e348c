// Memory: what the daemon needs at its peak does not depend on how much it pulls.
//
// Each case has a daemon of its own, whose peak is the kernel's (VmHWM: anonymous memory, and what is mapped of files);
// the same work in small comes first, to compare with.

import { readFileSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { fat, many } from "../fakes/large.ts";
import { type Content, type FakeLayer, FakeRegistry } from "../fakes/registry.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";

const mebibyte = 1024 * 1024;
/** MiB; 100 of them are Node's own before the first pull. */
const peakMax = 300;
/** MiB, for garbage that is collected sooner or later. */
const growthMax = 100;
/** Each thread has a heap and buffers of its own, and machines have any number of cores. */
const config = "[unpack]\nmax_concurrent = 2\n[fallback]\nenabled = false";

const pulled = { value: expect.stringMatching(/^sha256:/) as string };

let fake: FakeRegistry;
let containerd: PrivateContainerd;
let count = 0;

beforeAll(async () => {
  fake = await FakeRegistry.start();
  containerd = await PrivateContainerd.start();
});

afterAll(async () => {
  await containerd[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

/** Peak in MiB of the larger process of a daemon that pulls these images at once, and nothing else. */
async function peakOf(
  images: readonly (readonly FakeLayer<Content>[])[],
  answer: object = pulled,
): Promise<number> {
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const references = images.map((layers) => {
    count += 1;
    return fake.put(`memory/image-${count}:v1`, layers).reference;
  });
  const replies = await Promise.all(references.map((reference) => hawser.cri.pull(reference)));
  for (const reply of replies) expect(reply).toMatchObject(answer);
  const { processes } = hawser;
  expect(processes.map(({ role }) => role).sort()).toEqual(["front", "puller"]);
  const peak = Math.max(...processes.map(({ pid }) => peakKibibytes(pid)));
  for (const reference of references) await containerd.cri.removeImage(reference);
  return Math.round((peak * 1024) / mebibyte);
}

function peakKibibytes(pid: number): number {
  return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]);
}

/** The larger work needs hardly more than the smaller one, and no more than it may. */
function expectFlat(small: number, large: number): void {
  expect(large).toBeLessThan(peakMax);
  expect(large - small).toBeLessThan(growthMax);
}

/** Twenty images of three layers each. */
function twenty(mebibytes: number): FakeLayer<Content>[][] {
  return Array.from({ length: 20 }, () => Array.from({ length: 3 }, () => fat(mebibytes)));
}

test("one layer of a gigabyte, sixteen times as much as the other", { timeout: 300_000 }, async () => {
  expectFlat(await peakOf([[fat(64)]]), await peakOf([[fat(1024)]]));
});

test("twenty images at once, of small layers or of larger ones", async () => {
  expectFlat(await peakOf(twenty(1)), await peakOf(twenty(5)));
});

test("a directory of 10,000 entries, and ten of them, pulled or removed again for a wrong digest", async () => {
  const one = await peakOf([[many(10_000, 10_000)]]);
  const ten = many(100_000, 10_000);
  expectFlat(one, await peakOf([[ten]]));
  const wrong = { ...ten, diffID: `sha256:${"0".repeat(64)}` };
  expectFlat(one, await peakOf([[wrong]], { message: expect.stringContaining("diffID") }));
});
