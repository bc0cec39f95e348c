// What is asked of containerd before the first pull, what is passed on to it, and how it is noticed that it goes away.

import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { beforeAll, describe, expect, test } from "vitest";
import { PullError } from "../../src/errors.ts";
import { Selinux } from "../../src/selinux.ts";
import { message } from "../harness/cri.ts";
import { eventually } from "../harness/process.ts";
import { type Bench, blob } from "./bench.ts";

const { signal } = new AbortController();

const off = new Selinux({ isOn: () => false, get: () => 0, set: () => 0 });

export function describeConnection(bench: () => Bench): void {
  /** A foreign call, and its one answer. */
  async function forward(path: string, request: Uint8Array): Promise<Buffer> {
    const metadata = new Metadata();
    metadata.set("containerd-namespace", "k8s.io");
    const call = bench().containerd.forward(path, Buffer.from(request), metadata, {});
    return await new Promise((resolve, reject) => {
      call.on("data", resolve);
      call.on("error", reject);
    });
  }

  describe("facts and foreign calls", () => {
    test("roots, snapshotter and registries are told", async () => {
      const { contentRoot, snapshotterRoot, root } = bench().tested;
      expect(await bench().containerd.facts(signal)).toMatchObject({
        contentRoot,
        snapshotterRoot,
        snapshotter: "overlayfs",
        registryConfigPath: [join(root, "certs.d")],
        discardUnpackedLayers: false,
        syncsLayers: false,
        unfit: undefined,
      });
    });

    test("an image is there once its record is, and holds its content", async () => {
      const { records } = bench().containerd;
      const [name, { bytes, descriptor }] = ["example.com/conformance:1", blob()];
      const one = await bench().lease();
      await one.putContent(descriptor, bytes, {});
      expect(await records.image(name)).toBe(undefined);
      const { digest, size } = descriptor;
      const record = { target: { mediaType: "application/any", digest, size }, labels: { some: "label" } };
      await records.createImage(name, record);
      expect(await records.image(name)).toEqual(record);
      const again = records.createImage(name, { ...record, labels: {} });
      await expect(again).rejects.toMatchObject({ code: "exists" });
      expect(await records.image(name)).toEqual(record);
      await one[Symbol.asyncDispose]();
      await bench().collect();
      expect(await bench().listed(descriptor)).not.toBe("");
      await records.removeImage(name);
      await records.removeImage(name);
      expect(await records.image(name)).toBe(undefined);
      await eventually(async () => expect(await bench().listed(descriptor)).toBe(""), "its collection");
    });

    test("a record that is replaced stands for something else, with other labels, and lets go of what it stood for", async () => {
      const { records } = bench().containerd;
      const name = "example.com/replaced:1";
      const [former, latter] = [blob(), blob()];
      const one = await bench().lease();
      for (const { descriptor, bytes } of [former, latter]) await one.putContent(descriptor, bytes, {});
      const recordOf = ({ descriptor: { digest, size } }: typeof former, labels: Record<string, string>) => ({
        target: { mediaType: "application/any", digest, size },
        labels,
      });
      const early = records.replaceImage(name, recordOf(latter, {}));
      await expect(early).rejects.toMatchObject({ code: "not_found" });
      await records.createImage(name, recordOf(former, { some: "label" }));
      await records.replaceImage(name, recordOf(latter, { other: "label" }));
      expect(await records.image(name)).toEqual(recordOf(latter, { other: "label" }));
      await one[Symbol.asyncDispose]();
      await eventually(
        async () => expect(await bench().listed(former.descriptor)).toBe(""),
        "the collection of what it stood for",
      );
      expect(await bench().listed(latter.descriptor)).not.toBe("");
      await records.removeImage(name);
    });

    test("a method that nobody knows is unimplemented", async () => {
      const failure = forward("/runtime.v1.ImageService/NoSuchMethod", message());
      await expect(failure).rejects.toMatchObject({
        code: status.UNIMPLEMENTED,
      } satisfies Partial<ServiceError>);
    });
  });

  describe("the self-test", () => {
    let staging: string;

    beforeAll(async () => {
      staging = join(bench().tested.snapshotterRoot, "staging");
      await mkdir(staging);
    });

    async function nothingLeft(): Promise<void> {
      expect(await readdir(staging)).toEqual([]);
      const names = (await bench().tested.ctr("namespaces", "ls", "-q")).trim().split("\n");
      expect(names.filter((name) => name !== "k8s.io")).toEqual([]);
      await eventually(
        async () => expect(await readdir(join(bench().tested.snapshotterRoot, "snapshots"))).toEqual([]),
        "the collection of its snapshots",
      );
    }

    test("passes, also while garbage collection runs all the time, and leaves nothing", async () => {
      const { containerd } = bench();
      const stop = new AbortController();
      const churn = async (): Promise<void> => {
        while (!stop.signal.aborted) await (await containerd.lease({}))[Symbol.asyncDispose]();
      };
      const churning = churn();
      try {
        for (let round = 0; round < 10; round++) await containerd.selfTest(staging, off, signal);
      } finally {
        stop.abort();
        await churning;
      }
      await nothingLeft();
    });

    test("fails with step and reason when staging is on another mount", async () => {
      const elsewhere = await mkdtemp(join(tmpdir(), "staging-"));
      try {
        const failure = bench().containerd.selfTest(elsewhere, off, signal);
        await expect(failure).rejects.toMatchObject({ code: "unsupported" });
        await expect(failure).rejects.toThrow(/renaming a directory onto .*EXDEV/);
        expect(await readdir(elsewhere)).toEqual([]);
      } finally {
        await rm(elsewhere, { recursive: true });
      }
      await nothingLeft();
    });

    test("fails with both labels when containerd would have given another", async () => {
      const selinux = new Selinux({
        isOn: () => true,
        get: (folder) => (folder.startsWith(staging) ? "ours" : "theirs"),
        set: () => 0,
      });
      const failure = bench().containerd.selfTest(staging, selinux, signal);
      await expect(failure).rejects.toMatchObject({ code: "unsupported" });
      await expect(failure).rejects.toThrow(/SELinux is on, and .*is labelled ours, and .*\/fs .*theirs/);
      await nothingLeft();
    });

    test("says so when it is cancelled, and leaves nothing", async () => {
      const cancelled = bench().containerd.selfTest(staging, off, AbortSignal.abort());
      await expect(cancelled).rejects.toMatchObject({ code: "cancelled" });
      await nothingLeft();
    });
  });

  test("it goes and comes back: that is told, calls fail for now, and then they work", async () => {
    const { containerd, tested } = bench();
    const one = await bench().lease();
    const { bytes, descriptor } = blob();
    await one.putContent(descriptor, bytes, {});
    const told: boolean[] = [];
    let wake = (): void => {};
    using _watch = containerd.watch((connected) => {
      told.push(connected);
      wake();
    });
    const until = async (count: number): Promise<void> => {
      while (told.length < count) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    };
    await until(1);
    await tested.kill();
    await until(2);
    const failure = await containerd.facts(signal).catch((error: unknown) => PullError.from(error));
    expect(failure).toMatchObject({ code: "unavailable", temporary: true });
    await tested.startAgain();
    await until(3);
    expect(told).toEqual([true, false, true]);
    expect((await containerd.facts(signal)).unfit).toBeUndefined();
    expect(await one.holdContent(descriptor)).toBe(true);
  });
}
