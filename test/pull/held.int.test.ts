// What a pull made is held until containerd has answered, and let go then: garbage collection in the meantime finds all
// that containerd is about to register, or to go on from.

import { Metadata, status } from "@grpc/grpc-js";
import { expect, test, vi } from "vitest";
import { createPullHandler, type PullOutcome } from "../../src/cri/images.ts";
import { makeTrace } from "../fakes/trace.ts";
import { message } from "../harness/cri.ts";
import { Rig } from "./rig.ts";
import { type Pullable, putImage } from "./scenes.ts";
import { type Strike, strikeOf } from "./strikes.ts";

vi.setConfig({ testTimeout: 120_000 });

const { signal } = new AbortController();

/** PullImage as kubelet makes it, and how it was answered. */
async function pullImage(rig: Rig, { reference }: Pullable): Promise<PullOutcome> {
  const outcomes: PullOutcome[] = [];
  const handler = createPullHandler({
    delegating: () => ({ [Symbol.dispose]: () => {} }),
    forward: rig.containerd.forward.bind(rig.containerd),
    ineligible: () => undefined,
    pull: async () => await rig.puller.pull(reference, rig.site, undefined, signal),
    unresolved: (name) => name,
    fallback: true,
    begin: () => makeTrace(),
    done: (outcome) => void outcomes.push(outcome),
    registered: () => {},
  });
  const request = Buffer.from(message([1, message([1, reference])]));
  const path = "/runtime.v1.ImageService/PullImage";
  const deadline = Number.POSITIVE_INFINITY;
  await handler({ path, request, metadata: new Metadata(), deadline }, signal);
  const [outcome] = outcomes;
  if (outcome === undefined) throw new Error("no outcome");
  return outcome;
}

const unavailable = { code: status.UNAVAILABLE, moment: "before" } as const;

test.each<[string, readonly Strike[], PullOutcome["path"], number]>([
  ["all of it, when all is there", [], "accelerated", 0],
  [
    "what was finished, when the rest failed",
    [{ step: "Snapshots/Commit", which: 2, fault: unavailable }],
    "delegated",
    1,
  ],
])("%s", async (_, strikes, path, unfinished) => {
  await using rig = await Rig.open();
  const image = putImage(rig);
  rig.fake.serving.fault = strikeOf(strikes).fault;
  let lacked: string[] | undefined;
  rig.fake.pullImage = async () => {
    // Another pull begins and ends behind it, so whatever is let go too early is gone by then.
    const other = await rig.pull(putImage(rig));
    await other[Symbol.asyncDispose]();
    lacked = rig.lacks(image);
    if (unfinished === 0) rig.register(image);
    return message([1, image.configDigest]);
  };
  expect((await pullImage(rig, image)).path).toBe(path);
  expect(lacked).toEqual(image.chainIDs.slice(image.chainIDs.length - unfinished));
  await rig.puller.settle();
  // What was not registered goes: nothing holds it any longer.
  const everything = [image.manifestDigest, image.configDigest, ...image.chainIDs];
  expect(rig.lacks(image)).toEqual(unfinished === 0 ? [] : everything);
  expect(rig.leftovers()).toEqual([]);
});

test("a lease that can never be deleted is told of, and expires", async () => {
  await using rig = await Rig.open();
  rig.fake.serving.fault = strikeOf([{ step: "Leases/Delete", which: "all", fault: unavailable }]).fault;
  await rig.mustPull(putImage(rig));
  expect(rig.warnings.map(({ code }) => code)).toEqual(["unavailable"]);
  const [left = "", ...others] = rig.leftovers();
  expect([left, ...others]).toEqual([expect.stringMatching(/^hawser-/)]);
  const labels = rig.fake.metadata.of("k8s.io").leases.get(left)?.labels ?? {};
  expect(Date.parse(labels["containerd.io/gc.expire"] ?? "")).toBeGreaterThan(Date.now());
});
