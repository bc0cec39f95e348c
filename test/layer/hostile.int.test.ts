// The corpus on both engines: the outcome is known beforehand, and no neighbour of the root is ever touched.

import { chmodSync, writeFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { unpackPortable } from "../../src/layer/portable.ts";
import { unpackNative } from "../../src/layer/unpack.ts";
import { sha256 } from "../../src/oci/digest.ts";
import { Canary } from "./canary.ts";
import { blobOf, corpus } from "./hostile.ts";
import { native, Staging } from "./staging.ts";

let canary: Canary;
let staging: Staging;

beforeAll(async () => {
  canary = new Canary();
  staging = await Staging.make();
});

afterAll(async () => {
  canary[Symbol.dispose]();
  await staging[Symbol.asyncDispose]();
});

const limits = { bytesMax: 32 * 1024 * 1024 };

async function outcomeOf(name: string, engine: "native" | "portable", base: boolean) {
  const hostile = corpus.find((one) => one.name === name);
  if (hostile === undefined) throw new Error(name);
  const blob = blobOf(hostile, canary.outside);
  await using spool = await staging.filled(blob.bytes);
  const job = { ...(await staging.job(spool, { ...blob, base, limits })), staging: canary.root() };
  let code = "tree";
  try {
    if (engine === "native") unpackNative(job, native(), () => false);
    else await unpackPortable(job, () => false);
  } catch (error) {
    expect(error).toMatchObject({ name: "PullError" });
    code = (error as { code: string }).code;
  }
  return { code, expected: hostile.outcome, isLenient: hostile.lenient === true };
}

describe.each(["native", "portable"] as const)("%s", (engine) => {
  test.each(corpus.flatMap(({ name, why }) => [[name, why, false] as const, [name, why, true] as const]))(
    "%s: %s (bottom layer: %s)",
    async (name, _why, base) => {
      const { code, expected, isLenient } = await outcomeOf(name, engine, base);
      // The portable engine may leave anything to containerd, but takes nothing that the native one and it refuse.
      if (engine === "native") expect(code).toBe(expected);
      else expect([expected, "unsupported", ...(isLenient ? ["tree"] : [])]).toContain(code);
      expect(canary.changes()).toEqual([]);
    },
  );
});

test("the canary notices", () => {
  using other = new Canary();
  expect(other.changes()).toEqual([]);
  chmodSync(`${other.outside}/file`, 0o600);
  writeFileSync(`${other.outside}/planted`, "x");
  expect(other.changes().join()).toMatch(/outside\/file.*outside\/planted/);
});

test("every entry has a name and a stream of its own, and a reason", () => {
  expect(new Set(corpus.map(({ name }) => name)).size).toBe(corpus.length);
  expect(new Set(corpus.map((hostile) => sha256(blobOf(hostile, "/x").tar))).size).toBe(corpus.length);
  expect(corpus.filter(({ why }) => why === "")).toEqual([]);
  expect(corpus.length).toBeGreaterThan(55);
});
