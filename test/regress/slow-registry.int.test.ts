// One registry that went silent, or dripped, kept all other pulls of the node waiting: layers slept in every worker
// thread behind its bytes, and its requests were all that the node may have open.

import { randomBytes } from "node:crypto";
import { expect, test } from "vitest";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";

function put(registry: FakeRegistry, name: string, count: number): FakeImage {
  const layers = Array.from({ length: count }, (_, index) => ({
    bytes: tarGz([file(`${index}`, randomBytes(200_000))]),
  }));
  return registry.put(`${name}:v1`, layers);
}

test("a pull from a quick registry ends while two slow ones have more layers than there are workers and requests", async () => {
  await using quick = await FakeRegistry.start();
  await using one = await FakeRegistry.start();
  await using two = await FakeRegistry.start();
  await using containerd = await PrivateContainerd.start();
  const config =
    '[unpack]\nmax_concurrent = 2\n[download]\nprogress_timeout = "1h"\nmax_concurrent = 4\nmax_concurrent_per_image = 2\n';
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const held = gate();
  const slow = [one, two].map((registry) => {
    const image = put(registry, "slow", 6);
    registry.behave = ({ path }) =>
      image.layers.some(({ digest }) => path.endsWith(digest))
        ? { after: 1000, afterwards: held.opened }
        : undefined;
    return image;
  });
  const replies = slow.map(({ reference }) => hawser.cri.pull(reference));
  await eventually(async () => {
    const text = await hawser.metrics();
    expect(text).toContain('hawser_in_flight{what="downloads"} 4');
    expect(text).toContain('hawser_in_flight{what="unpacks"} 2');
  }, "everything is taken");
  const image = put(quick, "quick", 3);
  await hawser.cri.mustPull(image.reference);
  held.open();
  expect(await Promise.all(replies)).toEqual(slow.map(({ configDigest }) => ({ value: configDigest })));
  expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 3');
  await settled(containerd);
});
