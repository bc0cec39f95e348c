// The oracle: an image pulled by containerd and by Hawser must end in the same trees, records, labels and answers, on
// every containerd that there is.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { busyboxLayers, type PushedImage, pushImage, pushPause } from "../harness/images.ts";
import { oddLayers } from "../harness/odd.ts";
import { compareWithContainerd, settled } from "../harness/parity.ts";
import { PrivateRegistry } from "../harness/registry.ts";
import { readContent } from "../harness/state.ts";
import { containerdRelease, minors, type Release } from "../harness/versions.ts";

let registry: PrivateRegistry;
let pause: PushedImage;
let release: Release;

beforeAll(async () => {
  registry = await PrivateRegistry.start();
  pause = await pushPause(registry);
});

afterAll(async () => {
  await registry[Symbol.asyncDispose]();
});

async function compare(references: readonly string[], hawserConfig = ""): Promise<string> {
  return await compareWithContainerd({ release, sandboxImage: pause.reference }, references, hawserConfig);
}

describe.each(minors)("containerd %s", (minor) => {
  beforeAll(() => {
    release = containerdRelease(minor);
  });

  describe("an image with one of everything", () => {
    test.each([
      ["OCI", { docker: false, index: false }],
      ["OCI, in an index", { docker: false, index: true }],
    ])("%s", async (name, options) => {
      const image = await pushImage(
        registry,
        `odd/${name.replace(/\W+/g, "-").toLowerCase()}:v1`,
        oddLayers(),
        options,
      );
      const metrics = await compare([image.reference]);
      expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
      expect(metrics).not.toContain("hawser_fallbacks_total{");
    });
  });

  test("Docker's media types, in an index, by tag, by digest, and by both", async () => {
    const image = await pushImage(registry, "docker/tools:v1", busyboxLayers(), {
      docker: true,
      index: true,
    });
    const byDigest = `${registry.host}/${image.repository}@${image.target.digest}`;
    const both = `${image.reference}@${image.target.digest}`;
    for (const reference of [image.reference, byDigest, both]) {
      expect(await compare([reference])).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
    }
  });

  test("the same image twice, and a second one that shares its layers", async () => {
    const [layer] = busyboxLayers();
    const layers = layer ? [layer] : [];
    const first = await pushImage(registry, "shared/one:v1", layers);
    const second = await pushImage(registry, "shared/two:v1", [...layers, ...oddLayers().slice(2, 4)]);
    const before = registry.requests().length;
    const metrics = await compare([first.reference, first.reference, second.reference]);
    expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 3');
    // Once by containerd and once by Hawser.
    const requests = registry.requests().slice(before);
    const fetched = requests.filter(
      ({ method, path }) => method === "GET" && path.endsWith(first.layers[0]?.digest ?? "?"),
    );
    expect(fetched).toHaveLength(2);
  });

  test("the portable engine ends in the same tree", async () => {
    const image = await pushImage(registry, "portable/tools:v1", busyboxLayers());
    const metrics = await compare([image.reference], '[unpack]\nengine = "portable"');
    expect(metrics).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
    expect(metrics).toContain('hawser_engine_info{engine="portable"} 1');
  });

  test("what the portable engine does not do is left to containerd, with the same outcome", async () => {
    const image = await pushImage(registry, "portable/odd:v1", oddLayers());
    const metrics = await compare([image.reference], '[unpack]\nengine = "portable"');
    expect(metrics).toContain('hawser_fallbacks_total{reason="unsupported"} 1');
  });

  test("without kept layers, as with discard_unpacked_layers", async () => {
    const image = await pushImage(registry, "discarded/tools:v1", busyboxLayers());
    await using containerd = await PrivateContainerd.start({ release, sandboxImage: pause.reference });
    await using hawser = await PrivateHawser.start({
      containerd: containerd.address,
      config: "[content]\nkeep_layers = false",
    });
    const id = await hawser.cri.mustPull(image.reference);
    // containerd itself would keep them.
    expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
    await settled(containerd);
    const blobs = (await readContent(containerd)).map((line) => line.split(" ", 1)[0]);
    expect(blobs).not.toContain(image.layers[0]?.digest);
    expect(blobs).toContain(image.config.digest);
    expect(await containerd.run(id, ["sh", "-c", "echo from $(cat /etc/passwd)"])).toBe(
      "from root:x:0:0:root:/:/bin/sh\n",
    );
  });

  test("a container runs from an image that Hawser pulled", async () => {
    const image = await pushImage(registry, "runs/tools:v1", busyboxLayers(), { index: true });
    await using containerd = await PrivateContainerd.start({ release, sandboxImage: pause.reference });
    await using hawser = await PrivateHawser.start({ containerd: containerd.address });
    const id = await hawser.cri.mustPull(image.reference);
    expect(await containerd.run(id, ["sh", "-c", "echo hello from $(uname)"])).toBe("hello from Linux\n");
  });
});
