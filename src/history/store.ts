// The last pulls of this node, over restarts: a file for each, in one directory, named by when it began.
//
// Whoever pulls writes, whoever is asked reads, and nobody holds a lock: a file appears whole or not at all, and what is too
// old is removed by whoever writes next. A pull is never held up or failed by this; a disk that is full loses traces.

import { mkdir, open, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { PullRecord } from "./record.ts";

/** A record of ten thousand layers is no larger. */
const recordBytesMax = 16 * 1024 * 1024;
const namePattern = /^(\d{15})-([0-9a-f]{16})\.json$/;

export class Store {
  readonly #folder: string;
  readonly #keep: number;

  /** Keeps so many. */
  constructor(folder: string, keep: number) {
    this.#folder = folder;
    this.#keep = keep;
  }

  /** Rejects with the system's error where it cannot be written. */
  async add(record: PullRecord): Promise<void> {
    if (this.#keep === 0) return;
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    const name = `${String(Date.parse(record.startedAt)).padStart(15, "0")}-${record.id}.json`;
    const place = join(this.#folder, name);
    // In the same directory, and of no name that is read.
    await writeFile(`${place}.new`, JSON.stringify(record), { mode: 0o600 });
    await rename(`${place}.new`, place);
    await this.#prune();
  }

  /** The newest first, at most so many; what cannot be read is not there. */
  async latest(count: number): Promise<readonly PullRecord[]> {
    const names = (await this.#names()).slice(-count).toReversed();
    const records = await Promise.all(names.map(async (name) => await this.#read(name)));
    return records.filter((record) => record !== undefined);
  }

  /** Something that changes whenever another one is kept. */
  async version(): Promise<string> {
    return (await this.#names()).at(-1) ?? "";
  }

  /** Those whose id begins so, the newest first. */
  async find(prefix: string): Promise<readonly PullRecord[]> {
    const names = (await this.#names()).filter((name) => namePattern.exec(name)?.[2]?.startsWith(prefix));
    const records = await Promise.all(names.toReversed().map(async (name) => await this.#read(name)));
    return records.filter((record) => record !== undefined);
  }

  /** The oldest first. */
  async #names(): Promise<readonly string[]> {
    const names = await readdir(this.#folder).catch(() => []);
    return names.filter((name) => namePattern.test(name)).sort();
  }

  async #read(name: string): Promise<PullRecord | undefined> {
    try {
      await using file = await open(join(this.#folder, name));
      if ((await file.stat()).size > recordBytesMax) return undefined;
      return JSON.parse(await file.readFile("utf8")) as PullRecord;
    } catch {
      return undefined;
    }
  }

  async #prune(): Promise<void> {
    const surplus = (await this.#names()).slice(0, -this.#keep);
    await Promise.all(surplus.map(async (name) => await rm(join(this.#folder, name), { force: true })));
  }
}
