// One image whose parts fail at different times: nothing is begun behind a failure, and no failure goes unheard.

import { expect, test } from "vitest";
import type { Containerd, Lease } from "../../src/containerd/containerd.ts";
import { Demand } from "../../src/demand.ts";
import { PullError, whileNotAborted } from "../../src/errors.ts";
import { sha256 } from "../../src/oci/digest.ts";
import { hostPlatform } from "../../src/oci/manifest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { Image } from "../../src/pull/image.ts";
import type { Site } from "../../src/pull/site.ts";
import type { Work } from "../../src/pull/work.ts";
import type { Repository } from "../../src/registry/registry.ts";
import { ImageTrace } from "../../src/trace.ts";
import { gate } from "../fakes/registry.ts";
import { idleVitals } from "../fakes/trace.ts";

const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));
const descriptorOf = (mediaType: string, bytes: Buffer) => ({
  mediaType,
  digest: sha256(bytes),
  size: bytes.length,
});

const { architecture } = hostPlatform();
const config = json({
  os: "linux",
  architecture,
  config: {},
  rootfs: { type: "layers", diff_ids: [sha256("layer")] },
});
const manifest = json({
  schemaVersion: 2,
  mediaType: mediaTypes.ociManifest,
  config: descriptorOf(mediaTypes.ociConfig, config),
  layers: [descriptorOf("application/vnd.oci.image.layer.v1.tar", Buffer.from("layer"))],
});

/** Lets everything go on that waits for nothing but its turn. */
async function nextTurn(): Promise<void> {
  await new Promise((resolve) => {
    setImmediate(resolve);
  });
}

test("metadata that cannot be written while layers are still looked for: no layer is begun any more", async () => {
  const [asked, looking] = [gate(), gate()];
  const began: string[] = [];
  const deleted = gate();
  const lease = {
    holdContent: async () => false,
    putContent: async () => {
      await asked.opened;
      throw new PullError("not_found", "the lease is gone");
    },
    holdSnapshot: async () => {
      asked.open();
      await looking.opened;
      return false;
    },
    [Symbol.asyncDispose]: async () => deleted.open(),
  } as Partial<Lease> as Lease;
  const pulling = Image.pull(
    {
      reference: parseReference("example.com/image:1"),
      name: "pull 1",
      site: {
        facts: { contentRoot: "/nonexistent", snapshotterRoot: "/dev/shm" },
        instance: { id: "instance" },
        spools: { drop: async () => false },
        claim: async () => {},
      } as unknown as Site,
      containerd: {
        records: { image: async () => undefined },
        lease: async () => lease,
      } as unknown as Containerd,
      repository: {
        resolve: async () => ({ descriptor: descriptorOf(mediaTypes.ociManifest, manifest), body: manifest }),
        fetch: async () => config,
      } as Partial<Repository> as Repository,
      work: {
        asking: () => ({ [Symbol.dispose]: () => {} }),
        layer: () => {
          began.push("layer");
          return { result: Promise.resolve(), [Symbol.asyncDispose]: async () => {} };
        },
        traceOf: () => undefined,
      } as unknown as Work,
      demand: new Demand(true),
      ahead: undefined,
      keepLayers: false,
      memory: undefined,
      events: { stage: () => {}, unpacked: () => {}, inFlight: () => {}, warn: () => {} },
      trace: new ImageTrace(),
      vitals: idleVitals,
    },
    new AbortController().signal,
  );
  await asked.opened;
  let isOver = false;
  void pulling.then(() => {
    isOver = true;
  });
  // More than enough for a failure that waits for nobody to be told.
  for (let turn = 0; turn < 20; turn++) await nextTurn();
  expect(isOver).toBe(false);
  looking.open();
  const image = await pulling;
  expect(image.failure?.message).toBe("the lease is gone");
  expect(began).toEqual([]);
  await image[Symbol.asyncDispose]();
  await deleted.opened;
});

test("what is not waited for any more may fail without anybody hearing of it", async () => {
  const unheard: unknown[] = [];
  const listen = (reason: unknown): void => void unheard.push(reason);
  process.on("unhandledRejection", listen);
  const { signal } = new AbortController();
  const aborted = AbortSignal.abort();
  try {
    for (const one of [aborted, AbortSignal.any([signal, aborted])]) {
      const failing = Promise.reject(new PullError("internal", "later"));
      await expect(whileNotAborted(failing, one)).rejects.toMatchObject({ code: "cancelled" });
    }
    // Node tells of them when the microtasks are done.
    await nextTurn();
  } finally {
    process.off("unhandledRejection", listen);
  }
  expect(unheard).toEqual([]);
});
