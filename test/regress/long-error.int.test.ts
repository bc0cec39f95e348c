// containerd quotes what a registry says, however long it is, and Node's HTTP/2 client stops reading for good, without
// an error, at a header field of more than 64 KiB: one registry held up every CRI call on the node.

import { afterAll, beforeAll, expect, test } from "vitest";
import { FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";

let containerd: PrivateContainerd;
let hawser: PrivateHawser;
let fake: FakeRegistry;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  hawser = await PrivateHawser.start({ containerd: containerd.address });
  fake = await FakeRegistry.start();
});

afterAll(async () => {
  await hawser[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

test.each([10_000, 100_000, 1_000_000])(
  "a registry's error of %i characters fails its pull, and no other call",
  async (length) => {
    const image = fake.put(`long/error-${length}:v1`, [{ bytes: tarGz([file(`x${length}`)]) }]);
    const errors = [{ code: "DENIED", message: "no".repeat(length / 2) }];
    const body = Buffer.from(JSON.stringify({ errors }));
    fake.behave = ({ path }) => (path.includes("/blobs/") ? { status: 403, body } : undefined);
    const reply = await hawser.cri.pull(image.reference);
    expect(reply).toHaveProperty("code");
    expect(reply).toHaveProperty(
      "message",
      expect.stringMatching(length > 50_000 ? /too long/ : /DENIED|denied/i),
    );
    fake.behave = () => undefined;
    expect(await hawser.cri.pull(image.reference)).toEqual({ value: image.configDigest });
  },
);
