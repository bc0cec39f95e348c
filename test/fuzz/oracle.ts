// containerd beside the native engine, layer by layer: what it refuses we do not take, and what both take is one tree.
// What only it takes is left to it.

import { implicitOnes } from "../../src/layer/directories.ts";
import { inheritNative } from "../../src/layer/inherit.ts";
import { unpackNative } from "../../src/layer/unpack.ts";
import type { Digest } from "../../src/oci/digest.ts";
import { dir, file, symlink, tar } from "../fakes/tar.ts";
import { type Applied, Applier, type Blob } from "../harness/applier.ts";
import { differences, readTree } from "../harness/tree.ts";
import type { Release } from "../harness/versions.ts";
import { layerTypes, native, Staging } from "../layer/staging.ts";
import { randomness } from "../soak/random.ts";
import { randomArchive } from "./archives.ts";
import type { FuzzOptions } from "./fuzz.ts";

export type Verdict = "one tree" | "both refuse" | "left to containerd";

/** The layers below, with something of everything that an archive may lead through. */
const lowest = tar([
  dir("low", { mode: 0o2751, uid: 4, gid: 5, mtime: 1e9, pax: { "SCHILY.xattr.user.low": "kept" } }),
  dir("low/deep", { mode: 0o700, uid: 6, gid: 7, pax: { "SCHILY.xattr.user.x": "below" } }),
  file("low/deep/f"),
  file("low/f"),
  dir("d", { mode: 0o2775, uid: 8, gid: 9 }),
  file("d/a"),
  dir("d/b", { mode: 0o1777, gid: 3 }),
  dir("a", { mode: 0o500, uid: 50, gid: 51 }),
  dir("a/b", { mode: 0o501, uid: 52 }),
  file("b"),
  file("f"),
  file("hidden"),
  dir("gone"),
  dir("gone/in", { mode: 0o700, uid: 99 }),
  symlink("relative", "low/deep"),
  symlink("absolute", "/low"),
  symlink("dangling", "nowhere"),
  symlink("up", "../../d"),
]);
const middle = tar([
  file(".wh.gone"),
  dir("low", { mode: 0o755 }),
  dir("c"),
  file("c/.wh..wh..opq"),
  symlink("d/c", "../low"),
]);

export class Oracle implements AsyncDisposable {
  readonly #applier: Applier;
  readonly #staging: Staging;

  private constructor(applier: Applier, staging: Staging) {
    this.#applier = applier;
    this.#staging = staging;
  }

  static async start(release: Release): Promise<Oracle> {
    const oracle = new Oracle(await Applier.start(release), await Staging.make());
    let parent = "";
    for (const stream of [lowest, middle]) {
      const applied = await oracle.#applier.apply({ bytes: stream, mediaType: layerTypes.plain }, parent);
      if (applied.error !== undefined) throw new Error(applied.error);
      parent += "+";
      await applied.commit(parent);
    }
    return oracle;
  }

  /** Throws what differs. `stream` is what is in the blob, for one that containerd refuses. */
  async compare(blob: Blob, stream: Buffer, isBase: boolean): Promise<Verdict> {
    await using theirs = await this.#applier.apply(blob, isBase ? "" : "++");
    await using spool = await this.#staging.filled(blob.bytes);
    const made = await this.#staging.job(spool, { ...blob, tar: stream, base: isBase });
    const job = theirs.error === undefined ? { ...made, diffID: theirs.diffID as Digest } : made;
    let implicit: ReadonlySet<string>;
    try {
      const layer = unpackNative(job, native(), () => false);
      await inheritNative(
        native(),
        job.staging,
        theirs.lowers,
        layer.implicitDirectories,
        new AbortController().signal,
      );
      const all = [...implicitOnes(layer.implicitDirectories)];
      implicit = new Set(all.filter(({ named }) => !named).map(({ path }) => path));
    } catch (error) {
      const { name, code } = error as { name?: string; code?: string };
      if (name !== "PullError" || code === "internal") throw error;
      return theirs.error === undefined ? "left to containerd" : "both refuse";
    }
    if (theirs.error !== undefined) throw new Error(`only we take it; containerd: ${theirs.error}`);
    mustEqual(theirs, job.staging, implicit);
    return "one tree";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#staging[Symbol.asyncDispose]();
    await this.#applier[Symbol.asyncDispose]();
  }
}

/** The root's own attributes are the snapshot's, and times of implicit directories depend on when things were made. */
function mustEqual(theirs: Applied, ours: string, implicit: ReadonlySet<string>): void {
  const lines = differences(readTree(theirs.root), readTree(ours), implicit);
  const found = lines.filter((line) => !/^: (?:mode|owner)/.test(line));
  if (found.length > 0) throw new Error(`trees differ: ${found.join("; ")}`);
}

export interface OracleResult {
  readonly verdicts: ReadonlyMap<Verdict, number>;
  /** The first difference, with the seed that repeats it. */
  readonly failure: string | undefined;
}

export interface ChanceOptions extends FuzzOptions {
  /** On a machine that is slow it goes on until there were so many of both that say something. */
  readonly ofEachMin?: number;
}

/** Archives by chance until the time is over or something differs; each from a seed of its own, one higher than the last. */
export async function compareByChance(
  oracle: Oracle,
  { seconds, seed, executionsMax = Infinity, ofEachMin = 0 }: ChanceOptions,
): Promise<OracleResult> {
  const verdicts = new Map<Verdict, number>();
  const end = Date.now() + seconds * 1000;
  const isEnough = (): boolean =>
    Date.now() >= end &&
    (["one tree", "both refuse"] as const).every((verdict) => (verdicts.get(verdict) ?? 0) >= ofEachMin);
  for (let count = 0; !isEnough() && count < executionsMax; count++) {
    const random = randomness((seed + count) >>> 0);
    const entries = randomArchive(random);
    const blob = { bytes: tar(entries), mediaType: layerTypes.plain };
    try {
      const verdict = await oracle.compare(blob, blob.bytes, random.chance(0.4));
      verdicts.set(verdict, (verdicts.get(verdict) ?? 0) + 1);
    } catch (error) {
      return {
        verdicts,
        failure: `seed ${(seed + count) >>> 0}: ${String(error)}: ${JSON.stringify(entries)}`,
      };
    }
  }
  return { verdicts, failure: undefined };
}
