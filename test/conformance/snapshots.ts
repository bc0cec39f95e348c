// Snapshots: prepared as an empty folder above its parents, committed once, held by every lease that asked, and
// collected with the last of them.

import { chown, mkdir, readdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { sha256 } from "../../src/oci/digest.ts";
import { eventually } from "../harness/process.ts";
import { type Bench, chain, isThere } from "./bench.ts";

export function describeSnapshots(bench: () => Bench): void {
  async function isListed(name: string): Promise<boolean> {
    return (await bench().snapshots()).includes(name);
  }

  describe("snapshots", () => {
    test("prepared, written, committed on one another; held again by others; collected in the end", async () => {
      const { lower, middle, upper } = chain();
      const one = await bench().lease();
      expect(await one.holdSnapshot(lower)).toBe(false);
      const first = await one.prepareSnapshot(lower, undefined, {});
      expect(first.key).toMatch(new RegExp(`^extract-\\d+-\\S{4} ${lower}$`));
      expect(first.lowerdirs).toEqual([]);
      await writeFile(join(first.upperdir, "a"), "below");
      await one.commitSnapshot(first, lower);
      expect(await isListed(first.key)).toBe(false);
      const second = await one.prepareSnapshot(middle, lower, {});
      expect(second.lowerdirs).toEqual([first.upperdir]);
      await one.commitSnapshot(second, middle);
      const third = await one.prepareSnapshot(upper, middle, {});
      expect(third.lowerdirs).toEqual([second.upperdir, first.upperdir]);
      await one.commitSnapshot(third, upper);
      const info = JSON.parse(await bench().tested.ctr("snapshots", "info", upper)) as unknown;
      const labels = { "containerd.io/snapshot.ref": upper };
      expect(info).toMatchObject({ Kind: "Committed", Parent: middle, Labels: labels });

      const two = await bench().lease();
      expect(await two.holdSnapshot(upper)).toBe(true);
      await one[Symbol.asyncDispose]();
      await bench().collect();
      expect(await readFile(join(first.upperdir, "a"), "utf8")).toBe("below");
      await two[Symbol.asyncDispose]();
      await eventually(async () => {
        expect(await isListed(lower)).toBe(false);
        expect(await isThere(first.upperdir)).toBe(false);
      }, "their collection");
    });

    test("an upperdir is an empty folder of its parent's owner that another can be renamed onto", async () => {
      const { lower, middle } = chain();
      const one = await bench().lease();
      const first = await one.prepareSnapshot(lower, undefined, {});
      const { uid, gid, mode } = await stat(first.upperdir);
      expect([uid, gid, mode & 0o777]).toEqual([0, 0, 0o755]);
      const folder = join(bench().tested.snapshotterRoot, "folder");
      await mkdir(folder);
      await writeFile(join(folder, "a"), "renamed");
      await rename(folder, first.upperdir);
      await chown(first.upperdir, 12, 34);
      await one.commitSnapshot(first, lower);
      const second = await one.prepareSnapshot(middle, lower, {});
      expect(await readdir(second.upperdir)).toEqual([]);
      expect(await stat(second.upperdir)).toMatchObject({ uid: 12, gid: 34 });
      expect(await readFile(join(second.lowerdirs[0] ?? "", "a"), "utf8")).toBe("renamed");
    });

    test("one that was prepared and never committed is collected with its lease", async () => {
      const one = await bench().lease();
      const active = await one.prepareSnapshot(chain().lower, undefined, {});
      await bench().collect();
      expect(await isListed(active.key)).toBe(true);
      expect(await isThere(active.upperdir)).toBe(true);
      await one[Symbol.asyncDispose]();
      await eventually(async () => {
        expect(await isListed(active.key)).toBe(false);
        expect(await isThere(active.upperdir)).toBe(false);
      }, "its collection");
    });

    test("a layer that somebody else committed meanwhile is a success, and held", async () => {
      const { lower } = chain();
      const [one, two] = [await bench().lease(), await bench().lease()];
      const mine = await one.prepareSnapshot(lower, undefined, {});
      const theirs = await two.prepareSnapshot(lower, undefined, {});
      await two.commitSnapshot(theirs, lower);
      await one.commitSnapshot(mine, lower);
      expect(await isListed(mine.key)).toBe(false);
      await two[Symbol.asyncDispose]();
      await bench().collect();
      expect(await isListed(lower)).toBe(true);
    });

    test("a layer that is committed already is told when it is prepared, and held", async () => {
      const { lower } = chain();
      const [one, two] = [await bench().lease(), await bench().lease()];
      await one.commitSnapshot(await one.prepareSnapshot(lower, undefined, {}), lower);
      await expect(two.prepareSnapshot(lower, undefined, {})).rejects.toMatchObject({ code: "exists" });
      await one[Symbol.asyncDispose]();
      await bench().collect();
      expect(await isListed(lower)).toBe(true);
    });

    test("a parent that is not there is not found; removing what is gone succeeds", async () => {
      const one = await bench().lease();
      const gone = { code: "not_found" };
      await expect(one.prepareSnapshot(chain().upper, sha256("nobody"), {})).rejects.toMatchObject(gone);
      const active = await one.prepareSnapshot(sha256("short-lived"), undefined, {});
      await one.removeSnapshot(active);
      await one.removeSnapshot(active);
      await expect(one.commitSnapshot(active, sha256("short-lived"))).rejects.toMatchObject(gone);
    });
  });
}
