// The hostile corpus as images: Hawser's answer is containerd's, and where there is an image it is the same tree.

import { afterAll, beforeAll, expect, test } from "vitest";
import { FakeRegistry } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { settled } from "../harness/parity.ts";
import { readImages, readLayers } from "../harness/state.ts";
import { differences } from "../harness/tree.ts";
import { Canary } from "../layer/canary.ts";
import { blobOf, corpus } from "../layer/hostile.ts";

let theirs: PrivateContainerd;
let ours: PrivateContainerd;
let hawser: PrivateHawser;
let fake: FakeRegistry;
let canary: Canary;

beforeAll(async () => {
  theirs = await PrivateContainerd.start();
  ours = await PrivateContainerd.start();
  hawser = await PrivateHawser.start({ containerd: ours.address });
  fake = await FakeRegistry.start();
  canary = new Canary();
});

afterAll(async () => {
  canary[Symbol.dispose]();
  await hawser[Symbol.asyncDispose]();
  await theirs[Symbol.asyncDispose]();
  await ours[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

const compared = corpus.filter(({ outcome, oursAlone }) => !(oursAlone && outcome === "exhausted"));

test.each([true, false])("every entry, as the bottom layer: %s", async (isBase) => {
  const base = { bytes: tarGz([dir("d", { mode: 0o711 }), file("f", "below"), dir("c")]) };
  const wrong: string[] = [];
  for (const [index, hostile] of compared.entries()) {
    const blob = blobOf(hostile, canary.outside);
    const layers = isBase ? [blob] : [base, blob];
    const image = fake.put(`hostile/${isBase ? "base" : "upper"}-${index}:v1`, layers);
    const [left, right] = [await theirs.cri.pull(image.reference), await hawser.cri.pull(image.reference)];
    const [expected, got] = [outcomeOf(left), outcomeOf(right)];
    if (expected !== got) wrong.push(`${hostile.name}: containerd ${expected}, Hawser ${got}`);
    // What Hawser refuses is left to containerd, which must refuse it as well unless it is known not to look.
    const { outcome, lenient } = hostile;
    if (outcome !== "unsupported" && (expected === "pulled") !== (outcome === "tree" || lenient === true))
      wrong.push(`${hostile.name}: ${outcome} here, ${expected} by containerd`);
  }
  expect(wrong).toEqual([]);
  await settled(ours);
  expect(await readImages(ours)).toEqual(await readImages(theirs));
  const [some, others] = [await readLayers(theirs), await readLayers(ours)];
  for (const [chainID, tree] of some) {
    const implicit = new Set([...tree].filter(([, { kind }]) => kind === "directory").map(([path]) => path));
    expect(differences(tree, others.get(chainID) ?? new Map(), implicit), chainID).toEqual([]);
  }
  expect(some.size).toBeGreaterThan(20);
  expect(canary.changes()).toEqual([]);
});

/** "pulled", or the code: messages contain what differs between two calls. */
function outcomeOf(reply: unknown): string {
  const { code } = reply as { code?: number };
  return code === undefined ? "pulled" : `code ${code}`;
}
