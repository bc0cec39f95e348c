// The oracle: the same pulls made by containerd alone and through Hawser, and everything that must be equal afterwards.

import { expect } from "vitest";
import { type ContainerdOptions, PrivateContainerd } from "./containerd.ts";
import { PrivateHawser } from "./hawser.ts";
import { implicit } from "./odd.ts";
import { eventually } from "./process.ts";
import { activeExtracts, leftovers, readAnswers, readLayers, readLeases, readState } from "./state.ts";
import { differences } from "./tree.ts";

/** What goes on after the answer has ended: no lease, nothing in spool or staging. */
export async function settled(containerd: PrivateContainerd): Promise<void> {
  await eventually(async () => {
    expect(await readLeases(containerd)).toEqual([]);
    expect(leftovers(containerd)).toEqual([]);
    expect(await activeExtracts(containerd)).toEqual([]);
  }, "the end of what follows a pull");
}

/** A reference to pull, or something that happens between two pulls. */
export type Step = string | (() => Promise<unknown>);

/** Returns Hawser's metrics. The steps are made twice: by containerd alone, then through Hawser. */
export async function compareWithContainerd(
  options: ContainerdOptions,
  steps: readonly Step[],
  hawserConfig = "",
): Promise<string> {
  await using theirs = await PrivateContainerd.start(options);
  await using ours = await PrivateContainerd.start(options);
  await using hawser = await PrivateHawser.start({ containerd: ours.address, config: hawserConfig });
  const answers: unknown[] = [];
  for (const step of steps)
    answers.push(typeof step === "string" ? await theirs.cri.pull(step) : await step());
  for (const [index, step] of steps.entries()) {
    if (typeof step === "string") expect(await hawser.cri.pull(step)).toEqual(answers[index]);
    else await step();
    await settled(ours);
  }
  const references = steps.filter((step) => typeof step === "string");
  await expectSame(ours, theirs, references);
  return await hawser.metrics();
}

/** Both containerds hold the same: records, answers for these references, and the tree of every layer. */
export async function expectSame(
  ours: PrivateContainerd,
  theirs: PrivateContainerd,
  references: readonly string[],
): Promise<void> {
  expect(await readState(ours)).toEqual(await readState(theirs));
  expect(await readAnswers(ours, references)).toEqual(await readAnswers(theirs, references));
  const [left, right] = [await readLayers(theirs), await readLayers(ours)];
  expect([...right.keys()].sort()).toEqual([...left.keys()].sort());
  expect(left.size).toBeGreaterThan(0);
  for (const [chainID, tree] of left) {
    expect(differences(tree, right.get(chainID) ?? new Map(), implicit), chainID).toEqual([]);
  }
}
