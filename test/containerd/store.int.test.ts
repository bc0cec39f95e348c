// The contract of the containerd room, held against every containerd to be had and against the fake that stands for
// them where faults are wanted.

import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { describeContainerd } from "../conformance/containerd.ts";
import { MemoryContainerd } from "../fakes/memory/containerd.ts";
import { PrivateContainerd, scratch } from "../harness/containerd.ts";
import { containerdRelease, minors } from "../harness/versions.ts";

const isolation = '[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "isolated"';

for (const minor of minors) {
  describeContainerd(`containerd ${minor}`, async ({ isolated }) => {
    const release = containerdRelease(minor);
    const server = await PrivateContainerd.start({ release, ...(isolated && { more: isolation }) });
    const { root, address, contentRoot, snapshotterRoot } = server;
    return {
      root,
      address,
      contentRoot,
      snapshotterRoot,
      ctr: async (...args) => server.ctr(...args),
      kill: async () => await server.stop("SIGKILL"),
      startAgain: async () => await server.startAgain(),
      [Symbol.asyncDispose]: async () => await server[Symbol.asyncDispose](),
    };
  });
}

describeContainerd("the fake", async ({ isolated }) => {
  const fake = await MemoryContainerd.start({ parent: scratch(), isolated });
  const { root, address } = fake;
  const { contentRoot, snapshotterRoot } = fake.metadata;
  return {
    root,
    address,
    contentRoot,
    snapshotterRoot,
    // In a process of its own, as always: here it would wait for this very process.
    ctr: async (...args) => {
      const run = promisify(execFile);
      return (await run("ctr", ["--address", address, "--namespace", "k8s.io", ...args])).stdout;
    },
    kill: async () => fake.cut(),
    startAgain: async () => await fake.listen(),
    [Symbol.asyncDispose]: async () => await fake[Symbol.asyncDispose](),
  };
});
