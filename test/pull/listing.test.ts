// Entering an image among containerd's: what may be replaced, by whom, and what is left when it comes to nothing.

import { expect, test, vi } from "vitest";
import type { CriImage, ImageRecord, Records } from "../../src/containerd/containerd.ts";
import { PullError } from "../../src/errors.ts";
import { sha256 } from "../../src/oci/digest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import { parseReference } from "../../src/oci/reference.ts";
import { type Listing, list, listingOf } from "../../src/pull/listing.ts";

const never = new AbortController().signal;
const name = "example.com/team/app:1";
const id = sha256("config");

function recordOf(text: string, labels: Record<string, string> = {}): ImageRecord {
  return { target: { mediaType: mediaTypes.ociManifest, digest: sha256(text), size: 7 }, labels };
}

const wanted: Listing = { id, names: [name], record: recordOf("new"), labels: new Map() };

/** Records as containerd has them, and a CRI that answers with `known` for whatever there is a record of. */
class MemoryRecords implements Records {
  readonly all = new Map<string, ImageRecord>();
  known: string | undefined = id;
  beforeCreate: (() => void) | undefined;

  async image(of: string): Promise<ImageRecord | undefined> {
    return this.all.get(of);
  }

  async createImage(of: string, record: ImageRecord): Promise<void> {
    this.beforeCreate?.();
    if (this.all.has(of)) throw new PullError("exists", "there is one");
    this.all.set(of, record);
  }

  async replaceImage(of: string, record: ImageRecord): Promise<void> {
    this.all.set(of, record);
  }

  async removeImage(of: string): Promise<void> {
    this.all.delete(of);
  }

  async contentLabels(): Promise<undefined> {}
  async labelContent(): Promise<void> {}

  async hasSnapshot(): Promise<boolean> {
    return true;
  }

  async status(of: string): Promise<CriImage | undefined> {
    return this.all.has(of) && this.known !== undefined
      ? { id: this.known, tags: [], digests: [] }
      : undefined;
  }
}

test("a name that is free gets a record, and one that stands for the same keeps its marks", async () => {
  const records = new MemoryRecords();
  await list(wanted, undefined, records, never);
  expect(records.all.get(name)).toEqual(recordOf("new"));
  records.all.set(name, recordOf("new", { "io.cri-containerd.image": "managed" }));
  await list(wanted, undefined, records, never);
  expect(records.all.get(name)?.labels).toEqual({ "io.cri-containerd.image": "managed" });
});

test("what the name stood for when the image was asked for is replaced, and nothing that has come since", async () => {
  const records = new MemoryRecords();
  records.all.set(name, recordOf("old"));
  await list(wanted, recordOf("old").target, records, never);
  expect(records.all.get(name)).toEqual(recordOf("new"));
  for (const former of [recordOf("old").target, undefined]) {
    records.all.set(name, recordOf("newer"));
    const failure = list(wanted, former, records, never);
    await expect(failure).rejects.toMatchObject({ code: "unavailable", temporary: true });
    expect(records.all.get(name)).toEqual(recordOf("newer"));
  }
  await list(wanted, "any", records, never);
  expect(records.all.get(name)).toEqual(recordOf("new"));
});

test("a record that somebody makes at the same moment is looked at like one that was there", async () => {
  const records = new MemoryRecords();
  records.beforeCreate = () => records.all.set(name, recordOf("theirs"));
  await expect(list(wanted, undefined, records, never)).rejects.toThrow("another image meanwhile");
  expect(records.all.get(name)).toEqual(recordOf("theirs"));
  records.all.delete(name);
  await list(wanted, "any", records, never);
  expect(records.all.get(name)).toEqual(recordOf("new"));
});

test("where CRI does not come to know the image, all records are as they were", async () => {
  vi.useFakeTimers();
  try {
    const records = new MemoryRecords();
    records.known = undefined;
    const byDigest = `example.com/team/app@${sha256("new")}`;
    records.all.set(name, recordOf("old", { some: "label" }));
    const failure = list({ ...wanted, names: [name, byDigest] }, "any", records, never);
    const rejected = expect(failure).rejects.toThrow(
      "containerd does not list example.com/team/app:1 after 10 s",
    );
    await vi.advanceTimersByTimeAsync(11_000);
    await rejected;
    expect([...records.all]).toEqual([[name, recordOf("old", { some: "label" })]]);
  } finally {
    vi.useRealTimers();
  }
});

test.each(["UPPER/x:1", "LOCALHOST/x:1", "[::1]:5000/x:1"])(
  "%s, which not every containerd takes for a name, is refused",
  (text) => {
    const plan = { documents: [], layers: [] };
    const facts = { discardUnpackedLayers: false };
    const options = { names: "name", source: {} } as const;
    expect(() => listingOf(parseReference(text), plan, facts, options)).toThrow("not every containerd");
  },
);
