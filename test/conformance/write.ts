// A Write message by message, below the face: what Hawser's client builds upon, and where a fault may strike it.

import { randomUUID } from "node:crypto";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { type ServiceError, status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Channel } from "../../src/containerd/channel.ts";
import { content } from "../../src/containerd/methods.ts";
import { eventually } from "../harness/process.ts";
import { Bench, blob, isThere, type Start } from "./bench.ts";

type Request = MessageInitShape<typeof content.write.request>;
type Response = MessageShape<typeof content.write.response>;

const [stat, write, commit] = [0, 1, 2];

/** A Write whose every message is answered, or ended by a code. */
class Writing {
  readonly #call: ReturnType<Channel["stream"]>;
  #settle: (outcome: Response | ServiceError) => void = () => {};
  readonly over: Promise<unknown>;

  constructor(channel: Channel, lease: string) {
    this.#call = channel.stream(content.write, { lease, limitMs: 30_000 });
    this.#call.on("data", (answer: Response) => this.#settle(answer));
    this.#call.on("error", (error: ServiceError) => this.#settle(error));
    this.over = new Promise((resolve) => {
      this.#call.on("status", resolve);
    });
  }

  async send(request: Request): Promise<Response | ServiceError> {
    return await new Promise((resolve) => {
      this.#settle = resolve;
      this.#call.write(request);
    });
  }

  async end(): Promise<void> {
    this.#call.end();
    await this.over;
  }
}

/** Puts a file where the blob would be, unknown to containerd. */
async function placeIn(bench: Bench, { bytes, descriptor }: ReturnType<typeof blob>): Promise<void> {
  const [file, path] = [join(bench.tested.root, "placed"), bench.blobPath(descriptor)];
  await mkdir(dirname(path), { recursive: true });
  await writeFile(file, bytes);
  await rename(file, path);
}

export function describeWrite(bench: () => Bench, start: Start): void {
  let channel: Channel;

  beforeAll(() => {
    channel = new Channel({ address: bench().tested.address, namespace: "k8s.io" });
  });

  afterAll(() => {
    channel.close();
  });

  async function open(lease?: string): Promise<{ lease: string; ref: string; writing: Writing }> {
    const id = lease ?? (await bench().lease()).id;
    return { lease: id, ref: randomUUID(), writing: new Writing(channel, id) };
  }

  /** Whether there is an ingest of each of these; others may be on their way out with their leases. */
  async function areActive(...refs: readonly string[]): Promise<boolean[]> {
    const lines = await bench().ingests();
    return refs.map((ref) => lines.some((line) => line.includes(ref)));
  }

  describe("a Write", () => {
    test("answers with the offset, message by message, and ends after COMMIT", async () => {
      const { bytes, descriptor } = blob(3000);
      const { ref, writing } = await open();
      const [total, expected] = [3000n, descriptor.digest];
      expect(await writing.send({ action: stat, ref, total, expected })).toMatchObject({ offset: 0n });
      const [first, second] = [bytes.subarray(0, 1000), bytes.subarray(1000)];
      expect(await writing.send({ action: write, data: first })).toMatchObject({ offset: 1000n });
      const rest = { action: write, offset: 1000n, data: second };
      expect(await writing.send(rest)).toMatchObject({ offset: 3000n });
      expect(await areActive(ref)).toEqual([true]);
      const last = await writing.send({ action: commit, total, expected, offset: 3000n });
      expect(last).toMatchObject({ action: commit, offset: 3000n, digest: expected });
      await writing.over;
      expect(await areActive(ref)).toEqual([false]);
    });

    test("at another offset than the current one is out of range", async () => {
      const { writing, ref } = await open();
      await writing.send({ action: stat, ref, total: 10n });
      const answer = await writing.send({ action: write, offset: 5n, data: Buffer.from("5") });
      expect(answer).toMatchObject({ code: status.OUT_OF_RANGE });
    });

    test("with a ref that is being written is unavailable until that is over", async () => {
      const { writing, ref, lease } = await open();
      await writing.send({ action: stat, ref, total: 10n });
      await writing.send({ action: write, data: Buffer.from("12345") });
      const second = await new Writing(channel, lease).send({ action: stat, ref, total: 10n });
      expect(second).toMatchObject({ code: status.UNAVAILABLE });
      await writing.end();
      const third = await open(lease);
      expect(await third.writing.send({ action: stat, ref, total: 10n })).toMatchObject({ offset: 5n });
      await third.writing.end();
    });

    test("that is broken off leaves an ingest, which is aborted, or collected with its lease", async () => {
      const one = await bench().lease();
      const refs: string[] = [];
      for (let count = 0; count < 2; count++) {
        const { writing, ref } = await open(one.id);
        refs.push(ref);
        await writing.send({ action: stat, ref, total: 10n });
        await writing.send({ action: write, data: Buffer.from("12345") });
        await writing.end();
      }
      expect(await areActive(...refs)).toEqual([true, true]);
      await channel.call(content.abort, { ref: refs[0] ?? "" }, { lease: one.id });
      expect(await areActive(...refs)).toEqual([false, true]);
      await bench().collect();
      expect(await areActive(...refs)).toEqual([false, true]);
      await one[Symbol.asyncDispose]();
      await eventually(
        async () => expect(await areActive(...refs)).toEqual([false, false]),
        "its collection",
      );
      const gone = channel.call(content.abort, { ref: refs[0] ?? "" });
      await expect(gone).rejects.toMatchObject({ code: "not_found" });
    });

    test("of a blob that is there ends at its first message; the lease holds the blob", async () => {
      const { bytes, descriptor } = blob();
      const [one, two] = [await bench().lease(), await bench().lease()];
      await one.putContent(descriptor, bytes, {});
      const { writing, ref } = await open(two.id);
      const expected = descriptor.digest;
      const answer = await writing.send({ action: stat, ref, total: 1000n, expected });
      expect(answer).toMatchObject({ code: status.ALREADY_EXISTS });
      expect(await areActive(ref)).toEqual([false]);
      await one[Symbol.asyncDispose]();
      await bench().collect();
      expect(await isThere(bench().blobPath(descriptor))).toBe(true);
    });

    test("of a blob that comes meanwhile ends at the next message; the lease does not hold the blob", async () => {
      const { bytes, descriptor } = blob();
      const [one, two] = [await bench().lease(), await bench().lease()];
      const { writing, ref } = await open(two.id);
      const [total, expected] = [1000n, descriptor.digest];
      await writing.send({ action: stat, ref, total, expected });
      await one.putContent(descriptor, bytes, {});
      const answer = await writing.send({ action: commit, total, expected, data: bytes });
      expect(answer).toMatchObject({ code: status.ALREADY_EXISTS });
      expect(await areActive(ref)).toEqual([false]);
      await one[Symbol.asyncDispose]();
      const path = bench().blobPath(descriptor);
      await eventually(async () => expect(await isThere(path)).toBe(false), "its collection");
    });

    test("takes over a file of the right size without reading it; from offset 0 it is written anew", async () => {
      const { bytes, descriptor } = blob();
      const place = async (): Promise<void> => await placeIn(bench(), { bytes, descriptor });
      const [total, expected] = [1000n, descriptor.digest];
      const first = await open();
      await place();
      const begun = await first.writing.send({ action: stat, ref: first.ref, total, expected });
      expect(begun).toMatchObject({ offset: total });
      const wrong = await first.writing.send({ action: commit, total, expected, offset: 0n });
      expect(wrong).toMatchObject({ code: status.FAILED_PRECONDITION });
      expect((wrong as ServiceError).details).toContain("failed size validation: 0 != 1000");
      await channel.call(content.abort, { ref: first.ref });
      await place();
      const second = await open();
      await second.writing.send({ action: stat, ref: second.ref, total, expected });
      const right = await second.writing.send({ action: commit, total, expected, offset: total });
      expect(right).toMatchObject({ digest: expected });
      expect(await bench().listed(descriptor)).not.toBe("");
    });

    test("takes over nothing where namespaces do not share content; adoption streams then", async () => {
      await using isolated = await Bench.open(start, { isolated: true });
      await using lease = await isolated.containerd.lease({});
      const other = new Channel({ address: isolated.tested.address, namespace: "k8s.io" });
      const [placed, adopted] = [blob(), blob(2_000_000)];
      const writing = new Writing(other, lease.id);
      await placeIn(isolated, placed);
      const begin = { action: stat, ref: randomUUID(), total: 1000n, expected: placed.descriptor.digest };
      expect(await writing.send(begin)).toMatchObject({ offset: 0n });
      await writing.end();
      other.close();
      const file = join(isolated.tested.root, "spool");
      await writeFile(file, adopted.bytes);
      await lease.adoptContent(adopted.descriptor, file, {});
      expect(await isolated.listed(adopted.descriptor)).not.toBe("");
      expect((await readFile(isolated.blobPath(adopted.descriptor))).equals(adopted.bytes)).toBe(true);
    });

    test("under a lease that is gone is not found", async () => {
      const { writing, ref } = await open("nobody");
      const answer = await writing.send({ action: stat, ref, total: 10n });
      expect(answer).toMatchObject({ code: status.NOT_FOUND });
      expect(await areActive(ref)).toEqual([false]);
    });
  });
}
