// Of two pulls that came to a new instance together, the first took over what the dead had left, and the second, which
// saw that nothing was left any more, fetched everything anew before the first was through with it.

import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import type { Containerd, ContainerdFacts } from "../../src/containerd/containerd.ts";
import { sha256 } from "../../src/oci/digest.ts";
import { createInstance } from "../../src/pull/instance.ts";
import { Recovery } from "../../src/pull/recovery.ts";
import { Spools, type SpoolsOptions } from "../../src/pull/spools.ts";
import { Spans } from "../../src/trace.ts";
import { gate } from "../fakes/registry.ts";
import { eventually } from "../harness/process.ts";

const blob = { mediaType: "any", digest: sha256("blob"), size: 100 };

test("what is being claimed is waited for", async () => {
  const root = await mkdtemp(join(tmpdir(), "half-claimed-"));
  const roots = { contentRoot: join(root, "content"), snapshotterRoot: join(root, "snapshotter") };
  await mkdir(roots.snapshotterRoot);
  const instance = await createInstance(roots as ContainerdFacts);
  const open = async (folder: string): Promise<Spools> => await Spools.open({ ...limits, folder });
  const dead = await open(join(instance.spool, "../dead"));
  const held = await dead.take(blob, 0, new Spans(), new AbortController().signal);
  held.spool.write(0, Buffer.alloc(100));
  // To be adopted for an image, which containerd is asked for.
  held.keep({ image: "image", labels: {} });
  await held.park();
  await dead[Symbol.asyncDispose]();
  const spools = await open(instance.spool);
  const asked = gate();
  const containerd = {
    sweep: async () => {},
    records: {
      image: async () => {
        await asked.opened;
        return undefined;
      },
    },
  } as unknown as Containerd;
  const recovery = new Recovery({ containerd, instance, spools, adopted: () => {} });
  const first = recovery.claimSeen();
  await eventually(async () => expect(await readdir(join(instance.spool, ".."))).not.toContain("dead"), "it");
  const second = recovery.claimSeen().then((isSeen) => [isSeen, spools.isParked(blob.digest)]);
  // Only what waits for nothing could be over before the question to containerd is answered.
  await Promise.race([second, instance.hasClaims().then(async () => await instance.hasClaims())]);
  asked.open();
  expect(await second).toEqual([false, true]);
  expect(await first).toBe(true);
  await spools.drop();
  await spools[Symbol.asyncDispose]();
  await instance[Symbol.asyncDispose]();
  await rm(root, { recursive: true });
});

const limits: Omit<SpoolsOptions, "folder"> = {
  limits: { bytesMax: 1000, ageMaxMs: 3_600_000 },
  deferred: () => {},
  changed: () => {},
};
