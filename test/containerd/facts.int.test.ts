// Facts of a containerd that pulls: its settings change with its first pull, and that must not speak against it.

import { join } from "node:path";
import { expect, test } from "vitest";
import { createContainerd } from "../../src/containerd/client.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { busyboxLayers, pushImage } from "../harness/images.ts";
import { PrivateRegistry } from "../harness/registry.ts";

const { signal } = new AbortController();

test("facts are containerd's own, before its first pull and after", async () => {
  // As `containerd config default` writes it: with a table of headers that is there and empty.
  await using server = await PrivateContainerd.start({
    more: '[plugins."io.containerd.grpc.v1.cri".registry.headers]',
  });
  await using registry = await PrivateRegistry.start();
  const containerd = createContainerd({
    address: server.address,
    namespace: "k8s.io",
    configFile: "/nonexistent",
    snapshotter: undefined,
  });
  try {
    const expected = {
      version: expect.stringMatching(/^v?1\.6\./) as string,
      contentRoot: server.contentRoot,
      snapshotterRoot: server.snapshotterRoot,
      snapshotter: "overlayfs",
      registryConfigPath: [join(server.root, "certs.d")],
      discardUnpackedLayers: false,
      syncsLayers: false,
      takesRecords: true,
      pinnedImages: [expect.stringMatching(/\/pause:/)],
      unfit: undefined,
    };
    expect(await containerd.facts(signal)).toEqual(expected);
    const { reference } = await pushImage(registry, "facts:v1", busyboxLayers());
    const { records } = containerd;
    expect([await records.image(reference), await records.status(reference)]).toEqual([undefined, undefined]);
    const id = await server.cri.mustPull(reference);
    expect(await records.image(reference)).toMatchObject({
      labels: { "io.cri-containerd.image": "managed" },
    });
    expect(await records.status(reference)).toMatchObject({ id, tags: [reference] });
    await server.cri.removeImage(reference);
    expect(await containerd.facts(signal)).toEqual(expected);
  } finally {
    containerd.close();
  }
});
