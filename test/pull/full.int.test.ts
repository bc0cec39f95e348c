// Spools on a disk that is full or has no inodes left: it is told as that, and no file and no descriptor stays.

import { readdirSync, readlinkSync } from "node:fs";
import { mkdir, rename } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { sha256 } from "../../src/oci/digest.ts";
import { type HeldSpool, Spools } from "../../src/pull/spools.ts";
import { Spans } from "../../src/trace.ts";
import { Volume } from "../harness/volume.ts";

const mebibyte = 1024 * 1024;
const never = new AbortController().signal;
const blob = { mediaType: "any", digest: sha256("blob"), size: mebibyte };

async function openIn(volume: Volume): Promise<Spools> {
  const limits = { bytesMax: 64 * mebibyte, ageMaxMs: 3_600_000 };
  return await Spools.open({
    folder: join(volume.path, "own"),
    limits,
    changed: () => {},
    deferred: () => {},
  });
}

async function take(spools: Spools): Promise<HeldSpool> {
  return await spools.take(blob, 0, new Spans(), never);
}

/** Files of the folder, and descriptors into it. */
function left({ path }: Volume): string[] {
  const files = readdirSync(join(path, "own"), { recursive: true, encoding: "utf8" });
  const descriptors = readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return [];
    }
  });
  return [...files, ...descriptors.filter((target) => target.startsWith(path))].filter(
    (name) => name !== "parked",
  );
}

test("no space for a journal", async () => {
  using volume = new Volume({ mebibytes: 8 });
  await using spools = await openIn(volume);
  volume.fill(0);
  await expect(take(spools)).rejects.toMatchObject({ code: "exhausted" });
  expect(left(volume)).toEqual([]);
  await volume.empty();
  // The room that was reserved for it has been given back as well.
  await (await take(spools)).discard();
  expect(left(volume)).toEqual([]);
});

test("no space for the journal of a spool that was parked", async () => {
  using volume = new Volume({ mebibytes: 8 });
  await using spools = await openIn(volume);
  const former = await take(spools);
  former.spool.write(0, Buffer.alloc(1000));
  await former.park();
  // The parked journal's own page would be free for the new one.
  const parked = join(volume.path, "own/parked");
  const journal = readdirSync(parked).find((name) => name.endsWith(".journal")) ?? "none";
  await rename(join(parked, journal), join(volume.path, "kept"));
  volume.fill(0);
  await expect(take(spools)).rejects.toMatchObject({ code: "exhausted" });
  expect(left(volume)).toEqual([]);
});

test("no inode for a journal or a spool", async () => {
  // The root, the ballast, both folders, and one or two files more.
  for (const inodes of [4, 5]) {
    using volume = new Volume({ mebibytes: 8, inodes });
    await using spools = await openIn(volume);
    volume.fill(mebibyte);
    await expect(take(spools)).rejects.toMatchObject({ code: "exhausted" });
    expect(left(volume)).toEqual([]);
  }
});

test("no space for what is to be kept: that is not believed to be noted, and everything else is", async () => {
  using volume = new Volume({ mebibytes: 8 });
  await using spools = await openIn(volume);
  const held = await take(spools);
  held.spool.write(0, Buffer.alloc(mebibyte));
  volume.fill(0);
  // Longer than what is left of the journal's last page.
  held.keep({ image: "image", labels: { long: "x".repeat(8192) } });
  await held.spool.close();
  await mkdir(join(volume.path, "dead"));
  for (const name of [held.spool.view.path, `${held.spool.view.path}.journal`]) {
    await rename(name, name.replace("/own/", "/dead/"));
  }
  // A spool that is left on a nearly full disk would be dropped.
  await volume.empty();
  expect(await spools.inherit(join(volume.path, "dead"), async () => true)).toEqual([]);
  const resumed = await take(spools);
  expect(resumed.isResumed).toBe(true);
  expect(resumed.spool.missing()).toEqual([]);
  await resumed.discard();
});
