// A blob that two parked at the same moment, and a third took, once lost its file between them: the pull failed by a
// file that was not there.

import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { sha256 } from "../../src/oci/digest.ts";
import { Spools } from "../../src/pull/spools.ts";
import { Spans } from "../../src/trace.ts";

const never = new AbortController().signal;
const content = Buffer.from("what is in the content store");
const blob = { mediaType: "any", digest: sha256(content), size: content.length };

let folder = "";
let spools: Spools;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "parked-"));
  await mkdir(join(folder, "store"));
  await writeFile(join(folder, "store/blob"), content);
  spools = await Spools.open({
    folder: join(folder, "own"),
    limits: { bytesMax: 1_000_000, ageMaxMs: 3_600_000 },
    deferred: () => {},
    changed: () => {},
  });
});

afterEach(async () => {
  await spools.drop();
  await spools[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

test("a blob that several park and take at once is there for whoever takes it, or is begun anew", async () => {
  const borrow = async (): Promise<void> => await spools.borrow(blob, join(folder, "store/blob"));
  const take = async (): Promise<void> => {
    const held = await spools.take(blob, 0, new Spans(), never);
    if (held.isResumed) expect(held.spool.watermark).toBe(content.length);
    await held.park();
  };
  for (let round = 0; round < 100; round++) {
    await borrow();
    await Promise.all([take(), borrow(), borrow(), take()]);
    const held = await spools.take(blob, 0, new Spans(), never);
    expect(held.isResumed).toBe(true);
    expect(held.spool.watermark).toBe(content.length);
    await held.discard();
  }
});
