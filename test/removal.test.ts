// Trees are removed one after another whatever they hold, in memory that does not grow with them, and what stays is told.

import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { removeTree } from "../src/removal.ts";
import { scratch } from "./harness/containerd.ts";
import { Volume } from "./harness/volume.ts";

let folder = "";

beforeEach(() => {
  folder = mkdtempSync(join(scratch(), "removal-ü-"));
});

afterEach(() => {
  rmSync(folder, { recursive: true });
});

test("several at once, names in any bytes, and nothing where nothing is", async () => {
  for (const name of ["one", "two"]) {
    mkdirSync(join(folder, name, "inner"), { recursive: true });
    writeFileSync(
      Buffer.concat([Buffer.from(`${folder}/${name}/inner/`), Buffer.from([0xff, 0xe9])]),
      "content",
    );
  }
  await Promise.all([removeTree(join(folder, "one")), removeTree(join(folder, "two"))]);
  expect(readdirSync(folder)).toEqual([]);
  await removeTree(join(folder, "one"));
});

test("what cannot be removed is told with its path, and keeps nothing else from being removed", async () => {
  using volume = new Volume({ mebibytes: 1 });
  mkdirSync(join(folder, "other"));
  const failing = removeTree(volume.path);
  const other = removeTree(join(folder, "other"));
  await expect(failing).rejects.toMatchObject({
    code: "internal",
    message: `removing ${volume.path} failed: EBUSY`,
  });
  await other;
  expect(readdirSync(folder)).toEqual([]);
});

test("the event loop turns while a large tree goes, and no memory is taken for its entries", async () => {
  mkdirSync(join(folder, "large"));
  for (let index = 0; index < 20_000; index++) writeFileSync(join(folder, `large/${index}`), "");
  const before = process.memoryUsage().heapUsed;
  let [turns, most] = [0, before];
  let isOver = false;
  const count = (): void => {
    turns += 1;
    most = Math.max(most, process.memoryUsage().heapUsed);
    if (!isOver) setImmediate(count);
  };
  setImmediate(count);
  await removeTree(join(folder, "large"));
  isOver = true;
  expect(turns).toBeGreaterThan(10);
  expect(most - before).toBeLessThan(8 * 1024 * 1024);
});
