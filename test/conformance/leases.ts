// Leases: they expire after a day, a sweep takes the dead ones with what they were making, and without one nothing is
// made.

import { describe, expect, test } from "vitest";
import { sha256 } from "../../src/oci/digest.ts";
import { type Bench, blob, chain } from "./bench.ts";

export function describeLeases(bench: () => Bench): void {
  describe("leases", () => {
    test("one that nobody deletes expires after a day; disposing deletes it, twice too", async () => {
      const one = await bench().lease({ "io.hawser/instance": "me" });
      const lines = (await bench().leases()).split("\n");
      const line = lines.find((text) => text.startsWith(one.id));
      expect(line).toContain("io.hawser/instance=me");
      const [, expiry = ""] = /containerd\.io\/gc\.expire=([^,\s]+)/.exec(line ?? "") ?? [];
      const hours = (Date.parse(expiry) - Date.now()) / 3_600_000;
      expect(hours).toBeGreaterThan(23.9);
      expect(hours).toBeLessThanOrEqual(24);
      await one[Symbol.asyncDispose]();
      expect(await bench().leases()).not.toContain(one.id);
      await one[Symbol.asyncDispose]();
    });

    test("a sweep takes the leases of the dead with all that they alone protect, and nothing else", async () => {
      // Of another process: a lease that is held here is not dead, whatever its label.
      const other = await bench().another();
      const [dead, orphan, alive] = [
        await other.lease({ "io.hawser/instance": "dead" }),
        await other.lease({ "io.hawser/instance": "self" }),
        await other.lease({ "io.hawser/instance": "living" }),
      ];
      const living = [
        alive,
        await bench().lease({ "io.hawser/instance": "self" }),
        await bench().lease({ "io.hawser/instance": "dead" }),
        await bench().lease({ "example.com/other": "dead" }),
      ];
      const [base, gone] = [chain().lower, chain().lower];
      for (const chainID of [base, gone])
        await dead.commitSnapshot(await dead.prepareSnapshot(chainID, undefined, {}), chainID);
      const all = [dead, orphan, ...living];
      const prepared = await Promise.all(all.map((one) => one.prepareSnapshot(chain().lower, undefined, {})));
      // The committed layer is held by a living lease too.
      expect(await living[0]?.holdSnapshot(base)).toBe(true);
      await expect(living[0]?.holdSnapshot(base, AbortSignal.abort())).rejects.toMatchObject({
        code: "cancelled",
      });
      const asked: string[] = [];
      const isDead = async (value: string): Promise<boolean> => {
        asked.push(value);
        return value === "dead";
      };
      expect(await bench().containerd.sweep("io.hawser/instance", "self", isDead)).toBe(2);
      expect(asked.sort()).toEqual(["dead", "living"]);
      const leases = await bench().leases();
      expect(all.map(({ id }) => leases.includes(id))).toEqual([false, false, true, true, true, true]);
      await bench().collect();
      const left = await bench().snapshots();
      expect(prepared.map(({ key }) => left.includes(key))).toEqual([false, false, true, true, true, true]);
      expect(left).toContain(base);
      expect(left).not.toContain(gone);
      await alive[Symbol.asyncDispose]();
      other.close();
    });

    test("under one that was deleted nothing is made, and nothing held", async () => {
      const [one, other] = [await bench().lease(), await bench().lease()];
      const [{ bytes, descriptor }, { lower, middle }] = [blob(), chain()];
      await other.putContent(descriptor, bytes, {});
      await other.commitSnapshot(await other.prepareSnapshot(lower, undefined, {}), lower);
      const active = await one.prepareSnapshot(middle, lower, {});
      await one[Symbol.asyncDispose]();
      expect(await one.holdContent(descriptor)).toBe(false);
      expect(await one.holdSnapshot(lower)).toBe(false);
      const gone = { code: "not_found" };
      const absent = blob();
      await expect(one.putContent(absent.descriptor, absent.bytes, {})).rejects.toMatchObject(gone);
      await expect(one.prepareSnapshot(sha256("no lease"), undefined, {})).rejects.toMatchObject(gone);
      await expect(one.commitSnapshot(active, middle)).rejects.toMatchObject(gone);
      expect(await bench().ingests()).toEqual([]);
    });
  });
}
