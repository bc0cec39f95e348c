// What the fuzzer throws bytes at, and what must hold whatever they are. Each target is given chance and does one
// execution; it throws when something does not hold.

import { rmSync } from "node:fs";
import { gunzipSync, gzipSync } from "node:zlib";
import { PullError } from "../../src/errors.ts";
import type { Output } from "../../src/layer/decompress.ts";
import type { Entry } from "../../src/layer/entry.ts";
import { unpackPortable } from "../../src/layer/portable.ts";
import { TarParser } from "../../src/layer/tar.ts";
import { unpackNative } from "../../src/layer/unpack.ts";
import { parseConfig, parseIndex, parseManifest } from "../../src/oci/manifest.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { parseJournal } from "../../src/pull/journal.ts";
import { dir, file, hardlink, symlink, type TarEntry, tar } from "../fakes/tar.ts";
import { differences, readTree } from "../harness/tree.ts";
import type { Canary } from "../layer/canary.ts";
import { layerTypes, native, nativeTo, Staging } from "../layer/staging.ts";
import type { Randomness } from "../soak/random.ts";

export interface Target {
  readonly name: string;
  run(random: Randomness, canary: Canary): Promise<void>;
}

export const targets: readonly Target[] = [
  { name: "archive: both engines, canary", run: archives },
  { name: "gzip: native beside zlib", run: async (random) => compareGzip(random) },
  { name: "zstd: any bytes", run: async (random) => anyZstd(random) },
  { name: "metadata: manifests, configs, references, journals", run: async (random) => anyMetadata(random) },
];

const names = [
  "a",
  "b",
  "a/b",
  "a/b/c",
  "../x",
  "/a",
  ".wh.a",
  "a/.wh.b",
  "a/.wh..wh..opq",
  "..",
  ".",
  "a/../b",
  "b/./c",
];

function randomEntry(random: Randomness, outside: string): TarEntry {
  const name = pick(random, [...names, `${outside}/file`]);
  const target = pick(random, [...names, outside, `${outside}/file`, "../../..", "/"]);
  const more = { mode: random.integer(0o10000), uid: random.integer(70_000), mtime: random.integer(2 ** 31) };
  const kind = random.integer(6);
  if (kind === 0) return dir(name, more);
  if (kind === 1) return symlink(name, target, more);
  if (kind === 2) return hardlink(name, target, more);
  if (kind === 3) return { name, type: pick(random, ["3", "4", "6"]), major: 1, minor: 3, ...more };
  return file(name, random.bytes(random.integer(1500)), more);
}

/** An archive of hostile entries, half of the time with damaged bytes: a tree or a PullError, and no neighbour changes. */
async function archives(random: Randomness, canary: Canary): Promise<void> {
  const entries = Array.from({ length: random.integer(8) + 1 }, () => randomEntry(random, canary.outside));
  const stream = random.chance(0.5) ? mutate(tar(entries), random) : tar(entries);
  const base = random.chance(0.5);
  await using staging = await Staging.make();
  const roots: string[] = [];
  const failed: boolean[] = [];
  for (const engine of ["native", "portable"] as const) {
    await using spool = await staging.filled(stream);
    const spec = { bytes: stream, mediaType: layerTypes.plain, base };
    const job = { ...(await staging.job(spool, spec)), staging: canary.root() };
    roots.push(job.staging);
    try {
      if (engine === "native") unpackNative(job, native(), () => false);
      else await unpackPortable(job, () => false);
      failed.push(false);
    } catch (error) {
      if (!(error instanceof PullError) || error.code === "internal") throw error;
      failed.push(true);
    }
  }
  const [one = "", other = ""] = roots;
  if (failed[0] === true && failed[1] === false) throw new Error("portable takes what native refuses");
  if (failed[0] === false && failed[1] === false) mustEqual(one, other, namesIn(stream));
  const changes = canary.changes();
  if (changes.length > 0) throw new Error(`outside of the root: ${changes.join("; ")}`);
  for (const root of roots) rmSync(root, { recursive: true, force: true });
}

/** Of the entries that are in a stream, which damage may have left out. */
function namesIn(stream: Buffer): Set<string> {
  const found = new Set<string>();
  const add = ({ name }: Entry): void => void found.add(name.replace(/\/$/, ""));
  const nothing = (): void => {};
  const sink = { global: nothing, whole: add, begin: add, piece: nothing, finish: nothing };
  new TarParser(sink, Number.POSITIVE_INFINITY).feed(stream, 0, stream.length);
  return found;
}

/** Nobody gives directories that no entry names a time. */
function mustEqual(one: string, other: string, named: ReadonlySet<string>): void {
  const tree = readTree(one);
  const implied = new Set([...tree.keys()].filter((path) => !named.has(path)));
  const found = differences(tree, readTree(other), implied);
  if (found.length > 0) throw new Error(`engines differ: ${found.join("; ")}`);
}

/** Members in a row, damaged half of the time: the native engine says what zlib says, or refuses more. */
function compareGzip(random: Randomness): void {
  const members = Array.from({ length: random.integer(3) + 1 }, () => gzipSync(compressible(random)));
  const packed = random.chance(0.5) ? mutate(Buffer.concat(members), random) : Buffer.concat(members);
  const ours = attempt(() => inflate(packed, random));
  const theirs = attempt(() => gunzipSync(packed));
  if (ours && theirs && !ours.equals(theirs)) throw new Error("inflated to other bytes than zlib's");
  if (ours && !theirs && !isZeroPadded(packed)) throw new Error("zlib refuses what native takes");
}

/** Go, and we, pass over zeros behind the last member; zlib's binding does so as well, but not after garbage. */
function isZeroPadded(packed: Buffer): boolean {
  return packed.at(-1) === 0;
}

function inflate(packed: Buffer, random: Randomness): Buffer {
  const parts: Buffer[] = [];
  const output: Output = (buffer, start, end) => void parts.push(Buffer.from(buffer.subarray(start, end)));
  using inflater = nativeTo("gzip", output);
  for (let at = 0; at < packed.length; ) {
    const end = Math.min(packed.length, at + random.integer(4096) + 1);
    inflater.push(packed, at, end);
    at = end;
  }
  inflater.end();
  return Buffer.concat(parts);
}

function anyZstd(random: Randomness): void {
  const magic = Buffer.from("28b52ffd", "hex");
  const packed = Buffer.concat([magic, random.bytes(random.integer(600))]);
  let outBytes = 0;
  attempt(() => {
    using inflater = nativeTo("zstd", (_buffer, start, end) => {
      outBytes += end - start;
      if (outBytes > 2 ** 26) throw new PullError("exhausted", "enough");
    });
    inflater.push(packed, 0, packed.length);
    inflater.end();
    return packed;
  });
}

const documents = [
  '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":2},"layers":[]}',
  '{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:1","size":-1,"platform":{"os":"linux"}}]}',
  '{"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:00"]}}',
  "docker.io/library/busybox:latest@sha256:0000000000000000000000000000000000000000000000000000000000000000",
  '{"version":1,"boot":"b","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","sizeBytes":9}\nw 0 9\nk {"image":"i","labels":{}}\n',
];

function anyMetadata(random: Randomness): void {
  const bytes = mutate(Buffer.from(pick(random, documents)), random);
  const text = bytes.toString("latin1");
  for (const parse of [
    () => parseManifest(bytes),
    () => parseIndex(bytes),
    () => parseConfig(bytes),
    () => parseReference(text),
  ]) {
    attempt(() => (parse(), bytes));
  }
  // Never throws: a journal is believed or not.
  parseJournal(text, "b");
}

/** Undefined when it was refused; anything but a refusal is thrown on. */
function attempt(run: () => Buffer): Buffer | undefined {
  try {
    return run();
  } catch (error) {
    const isZlib = error instanceof Error && "code" in error && /^(?:Z_|ERR_)/.test(String(error.code));
    if (isZlib || (error instanceof PullError && error.code !== "internal")) return undefined;
    throw error;
  }
}

/** Up to eight bytes changed, a piece cut out, doubled or cut off. */
function mutate(bytes: Buffer, random: Randomness): Buffer {
  const copy = Buffer.from(bytes);
  for (let count = random.integer(8); count >= 0; count--)
    copy[random.integer(copy.length)] = random.integer(256);
  const [from, to] = [random.integer(copy.length), random.integer(copy.length)].sort((a, b) => a - b);
  switch (random.integer(4)) {
    case 0:
      return Buffer.concat([copy.subarray(0, from), copy.subarray(to)]);
    case 1:
      return Buffer.concat([copy, copy.subarray(from, to)]);
    case 2:
      return copy.subarray(0, to);
    default:
      return copy;
  }
}

function compressible(random: Randomness): Buffer {
  const unit = random.bytes(random.integer(300) + 1);
  return Buffer.concat(Array.from({ length: random.integer(200) }, () => unit));
}

function pick<Item>(random: Randomness, items: readonly Item[]): Item {
  return items[random.integer(items.length)] as Item;
}
