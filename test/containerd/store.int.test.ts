// Leases, content and snapshots against the real containerd: what is held stays, what is not held goes, and nothing is
// left of what failed.

import { createHash, randomBytes } from "node:crypto";
import { access, mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { createContainerd } from "../../src/containerd/client.ts";
import type { Containerd, ContainerdFacts, Lease } from "../../src/containerd/containerd.ts";
import type { Descriptor } from "../../src/oci/descriptor.ts";
import { chainIDs, type Digest, sha256 } from "../../src/oci/digest.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { eventually } from "../harness/process.ts";

let server: PrivateContainerd;
let containerd: Containerd;
let facts: ContainerdFacts;
const held: Lease[] = [];

beforeAll(async () => {
  server = await PrivateContainerd.start();
  containerd = connect(server);
  facts = await containerd.facts(new AbortController().signal);
});

afterEach(async () => {
  await Promise.all(held.splice(0).map((one) => one[Symbol.asyncDispose]()));
});

afterAll(async () => {
  containerd.close();
  await server[Symbol.asyncDispose]();
});

function connect(to: PrivateContainerd): Containerd {
  return createContainerd({
    address: to.address,
    namespace: "k8s.io",
    configFile: "/nonexistent",
    snapshotter: undefined,
  });
}

async function lease(labels: Record<string, string> = {}): Promise<Lease> {
  const made = await containerd.lease(labels);
  held.push(made);
  return made;
}

function blob(sizeBytes = 1000): { bytes: Buffer; descriptor: Descriptor } {
  const bytes = randomBytes(sizeBytes);
  const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}` as Digest;
  return { bytes, descriptor: { mediaType: "application/octet-stream", digest, size: sizeBytes } };
}

function path({ digest }: Descriptor, root = facts.contentRoot): string {
  return join(root, "blobs/sha256", digest.slice("sha256:".length));
}

/** The line of a blob, with its labels, or nothing. */
function listed({ digest }: Descriptor, of = server): string {
  const lines = of.ctr("content", "ls").split("\n");
  return lines.find((line) => line.startsWith(digest)) ?? "";
}

function ingests(): string[] {
  return server.ctr("content", "active").trim().split("\n").slice(1);
}

/** Makes garbage collection run, and end. */
function collect(): void {
  server.ctr("leases", "create", "--id", "step");
  server.ctr("leases", "delete", "--sync", "step");
}

function isThere(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}

describe("leases", () => {
  test("one that nobody deletes expires after a day; disposing deletes it, twice too", async () => {
    const one = await lease({ "io.hawser/instance": "me" });
    const line = server
      .ctr("leases", "ls")
      .split("\n")
      .find((text) => text.startsWith(one.id));
    expect(line).toContain("io.hawser/instance=me");
    const [, expiry = ""] = /containerd\.io\/gc\.expire=([^,\s]+)/.exec(line ?? "") ?? [];
    const hours = (Date.parse(expiry) - Date.now()) / 3_600_000;
    expect(hours).toBeGreaterThan(23.9);
    expect(hours).toBeLessThanOrEqual(24);
    await one[Symbol.asyncDispose]();
    expect(server.ctr("leases", "ls")).not.toContain(one.id);
    await one[Symbol.asyncDispose]();
  });

  test("a sweep takes the leases of the dead with their active snapshots, and nothing else", async () => {
    const [dead, living, foreign] = [
      await lease({ "io.hawser/instance": "dead" }),
      await lease({ "io.hawser/instance": "living" }),
      await lease({ "example.com/other": "dead" }),
    ];
    const [base = "" as Digest] = chainIDs([sha256("committed by the dead")]);
    const committed = await dead.prepareSnapshot(base, undefined);
    await dead.commitSnapshot(committed, base);
    const snapshots = await Promise.all(
      [dead, living, foreign].map((one, index) => one.prepareSnapshot(sha256(`sweep ${index}`), undefined)),
    );
    // The committed layer is held by a living lease too.
    expect(await living.holdSnapshot(base)).toBe(true);
    const asked: string[] = [];
    const count = await containerd.sweepLeases("io.hawser/instance", async (value) => {
      asked.push(value);
      return value === "dead";
    });
    expect(count).toBe(1);
    expect(asked.sort()).toEqual(["dead", "living"]);
    const leases = server.ctr("leases", "ls");
    expect([dead, living, foreign].map(({ id }) => leases.includes(id))).toEqual([false, true, true]);
    const left = server.ctr("snapshots", "ls");
    expect(snapshots.map(({ key }) => left.includes(key))).toEqual([false, true, true]);
    expect(left).toContain(base);
  });
});

describe("content", () => {
  test("is put, found, kept by its lease, and collected with it", async () => {
    const one = await lease();
    const { bytes, descriptor } = blob();
    expect(await one.holdContent(descriptor)).toBe(false);
    expect(ingests()).toEqual([]);
    await one.putContent(descriptor, bytes, { "example.com/a": "1" });
    expect(await one.holdContent(descriptor)).toBe(true);
    expect(listed(descriptor)).toContain("example.com/a=1");
    expect((await readFile(path(descriptor))).equals(bytes)).toBe(true);
    await one[Symbol.asyncDispose]();
    await eventually(async () => expect(await isThere(path(descriptor))).toBe(false), "its collection");
  });

  test("what is held by two leases stays when one of them goes", async () => {
    const [one, two] = [await lease(), await lease()];
    const { bytes, descriptor } = blob();
    await one.putContent(descriptor, bytes, {});
    expect(await two.holdContent(descriptor)).toBe(true);
    await one[Symbol.asyncDispose]();
    collect();
    expect(await isThere(path(descriptor))).toBe(true);
  });

  test("put by a second lease, it is that lease's too", async () => {
    const [one, two] = [await lease(), await lease()];
    const { bytes, descriptor } = blob();
    await one.putContent(descriptor, bytes, {});
    await two.putContent(descriptor, bytes, {});
    await one[Symbol.asyncDispose]();
    collect();
    expect(await isThere(path(descriptor))).toBe(true);
  });

  test("put again: new labels are added, old ones stay", async () => {
    const one = await lease();
    const { bytes, descriptor } = blob();
    await one.putContent(descriptor, bytes, { "example.com/a": "1" });
    await one.putContent(descriptor, bytes, { "example.com/a": "2", "example.com/b": "3" });
    const labels = listed(descriptor).split("\t").at(-1)?.split(",").sort();
    expect(labels).toEqual(["example.com/a=1", "example.com/b=3"]);
  });

  test("many pulls may put the same blob at once", async () => {
    const { bytes, descriptor } = blob(300_000);
    const leases = await Promise.all(Array.from({ length: 8 }, () => lease()));
    await Promise.all(leases.map((one) => one.putContent(descriptor, bytes, {})));
    for (const one of leases) expect(await one.holdContent(descriptor)).toBe(true);
    expect(ingests()).toEqual([]);
  });

  test("bytes that do not match are refused, and no ingest is left", async () => {
    const one = await lease();
    const { bytes, descriptor } = blob();
    const wrong = { ...descriptor, digest: sha256("something else") };
    await expect(one.putContent(wrong, bytes, {})).rejects.toThrow(/unexpected commit digest/);
    await expect(one.putContent({ ...descriptor, size: 999 }, bytes, {})).rejects.toThrow(/size/);
    expect(ingests()).toEqual([]);
    expect([listed(wrong), listed(descriptor)]).toEqual(["", ""]);
  });
});

describe("adoption", () => {
  async function spool(bytes: Buffer, folder = server.root): Promise<string> {
    const file = join(folder, `spool-${randomBytes(4).toString("hex")}`);
    await writeFile(file, bytes);
    return file;
  }

  test("moves the file: the blob is the same inode, read-only, leased and labelled", async () => {
    const one = await lease();
    const { bytes, descriptor } = blob(5_000_000);
    const file = await spool(bytes);
    const { ino } = await stat(file);
    await one.adoptContent(descriptor, file, { "containerd.io/uncompressed": "sha256:x" });
    const adopted = await stat(path(descriptor));
    expect([adopted.ino, adopted.mode & 0o777, adopted.size]).toEqual([ino, 0o444, bytes.length]);
    expect(listed(descriptor)).toContain("containerd.io/uncompressed=sha256:x");
    expect(await isThere(file)).toBe(false);
    expect(ingests()).toEqual([]);
    await one[Symbol.asyncDispose]();
    await eventually(async () => expect(await isThere(path(descriptor))).toBe(false), "its collection");
  });

  test("an orphan with other bytes and the right size does not get in", async () => {
    const one = await lease();
    const { bytes, descriptor } = blob();
    await mkdir(join(facts.contentRoot, "blobs/sha256"), { recursive: true });
    await writeFile(path(descriptor), Buffer.alloc(bytes.length, 1));
    await one.adoptContent(descriptor, await spool(bytes), {});
    expect((await readFile(path(descriptor))).equals(bytes)).toBe(true);
  });

  test("from another file system the bytes are streamed", async () => {
    const one = await lease();
    const { bytes, descriptor } = blob(3_000_000);
    const folder = await mkdtemp(join(tmpdir(), "spool-"));
    try {
      const file = await spool(bytes, folder);
      expect((await stat(folder)).dev).not.toBe((await stat(server.root)).dev);
      await one.adoptContent(descriptor, file, { "example.com/a": "1" });
      expect((await readFile(path(descriptor))).equals(bytes)).toBe(true);
      expect(listed(descriptor)).toContain("example.com/a=1");
      expect(await isThere(file)).toBe(false);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test("what is there already is held and labelled; the file is gone all the same", async () => {
    const one = await lease();
    const { bytes, descriptor } = blob();
    await one.putContent(descriptor, bytes, {});
    const { ino } = await stat(path(descriptor));
    const file = await spool(bytes);
    await one.adoptContent(descriptor, file, { "example.com/a": "1" });
    expect((await stat(path(descriptor))).ino).toBe(ino);
    expect(listed(descriptor)).toContain("example.com/a=1");
    expect(await isThere(file)).toBe(false);
  });

  test("a file of another size than announced is refused, and nothing is left", async () => {
    const one = await lease();
    const { bytes, descriptor } = blob();
    const file = await spool(bytes);
    await expect(one.adoptContent({ ...descriptor, size: 2000 }, file, {})).rejects.toThrow(/size/);
    expect(listed(descriptor)).toBe("");
    expect(ingests()).toEqual([]);
    expect(await isThere(file)).toBe(false);
  });

  test("where namespaces do not share content, the bytes are streamed", async () => {
    const isolated = await PrivateContainerd.start({
      more: '[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "isolated"',
    });
    const other = connect(isolated);
    try {
      const { contentRoot } = await other.facts(new AbortController().signal);
      await using one = await other.lease({});
      const { bytes, descriptor } = blob(2_000_000);
      await one.adoptContent(descriptor, await spool(bytes, isolated.root), {});
      expect(listed(descriptor, isolated)).not.toBe("");
      expect((await readFile(path(descriptor, contentRoot))).equals(bytes)).toBe(true);
    } finally {
      other.close();
      await isolated[Symbol.asyncDispose]();
    }
  });
});

describe("snapshots", () => {
  /** ChainIDs of two layers that no other test uses: what a test leaves is collected at some time after it. */
  function chain(): { lower: Digest; upper: Digest } {
    const [lower = "" as Digest, upper = "" as Digest] = chainIDs([
      sha256(randomBytes(8).toString("hex")),
      sha256("upper"),
    ]);
    return { lower, upper };
  }

  function isListed(name: string): boolean {
    return server.ctr("snapshots", "ls").includes(name);
  }

  test("prepared, written, committed on one another; held again by others; collected in the end", async () => {
    const { lower, upper } = chain();
    const one = await lease();
    expect(await one.holdSnapshot(lower)).toBe(false);
    const first = await one.prepareSnapshot(lower, undefined);
    expect(first.key).toMatch(new RegExp(`^extract-\\d+-\\S{4} ${lower}$`));
    expect(first.lowerdirs).toEqual([]);
    await writeFile(join(first.upperdir, "a"), "below");
    await one.commitSnapshot(first, lower);
    const second = await one.prepareSnapshot(upper, lower);
    expect(second.lowerdirs).toEqual([first.upperdir]);
    await one.commitSnapshot(second, upper);
    const info = JSON.parse(server.ctr("snapshots", "info", upper)) as Record<string, unknown>;
    expect(info).toMatchObject({ Parent: lower, Labels: { "containerd.io/snapshot.ref": upper } });

    const two = await lease();
    expect(await two.holdSnapshot(upper)).toBe(true);
    await one[Symbol.asyncDispose]();
    collect();
    expect(await readFile(join(first.upperdir, "a"), "utf8")).toBe("below");
    await two[Symbol.asyncDispose]();
    await eventually(async () => expect(isListed(lower)).toBe(false), "their collection");
  });

  test("a layer that somebody else committed meanwhile is a success, and held", async () => {
    const { lower } = chain();
    const [one, two] = [await lease(), await lease()];
    const mine = await one.prepareSnapshot(lower, undefined);
    const theirs = await two.prepareSnapshot(lower, undefined);
    await two.commitSnapshot(theirs, lower);
    await one.commitSnapshot(mine, lower);
    expect(isListed(mine.key)).toBe(false);
    await two[Symbol.asyncDispose]();
    collect();
    expect(isListed(lower)).toBe(true);
  });

  test("a layer that is committed already is told when it is prepared, and held", async () => {
    const { lower } = chain();
    const [one, two] = [await lease(), await lease()];
    await one.commitSnapshot(await one.prepareSnapshot(lower, undefined), lower);
    await expect(two.prepareSnapshot(lower, undefined)).rejects.toMatchObject({ code: "exists" });
    await one[Symbol.asyncDispose]();
    collect();
    expect(isListed(lower)).toBe(true);
  });

  test("a parent that is not there is not found; removing what is gone succeeds", async () => {
    const one = await lease();
    await expect(one.prepareSnapshot(chain().upper, sha256("nobody"))).rejects.toMatchObject({
      code: "not_found",
    });
    const active = await one.prepareSnapshot(sha256("short-lived"), undefined);
    await one.removeSnapshot(active);
    await one.removeSnapshot(active);
    await expect(one.commitSnapshot(active, sha256("short-lived"))).rejects.toMatchObject({
      code: "not_found",
    });
  });
});
