// The last pulls of this node, over restarts: a file for each, in one directory, named by when it ended.
//
// A file has two lines: what lists show of the pull, and all of it; so a list reads the beginnings of its files alone.
// Whoever pulls writes, whoever is asked reads, and nobody holds a lock: a file appears whole or not at all, and what is too
// old is removed by whoever writes next. A pull is never held up or failed by this; a disk that is full loses traces.

import { mkdir, open, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { PullRecord } from "./record.ts";
import { type PullSummary, summaryOf } from "./summary.ts";

/** Of what is written here; what another version wrote in another way is not there. */
const format = 1;
/** An image's name is most of it. */
const summaryBytesMax = 16 * 1024;
/** A record of ten thousand layers is no larger. */
const recordBytesMax = 16 * 1024 * 1024;
/** Files that are read at once. */
const readsMax = 16;
/** What was not finished by then never will be. */
const unfinishedMsMax = 60_000;
const namePattern = /^(\d{15})-([0-9a-f]{16})\.json$/;

export class Store {
  readonly #folder: string;
  /** How many are kept. */
  keep: number;

  constructor(folder: string, keep: number) {
    this.#folder = folder;
    this.keep = keep;
  }

  /** Rejects with the system's error where it cannot be written. */
  async add(record: PullRecord): Promise<void> {
    if (this.keep === 0) return;
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    // Clocks are set back; what comes later is behind what came before all the same.
    const latest = numberOf((await this.#names()).at(-1) ?? "");
    const number = String(Math.max(latest + 1, Date.now())).padStart(15, "0");
    const place = join(this.#folder, `${number}-${record.id}.json`);
    const text = `${JSON.stringify({ format, summary: summaryOf(record) })}\n${JSON.stringify(record)}\n`;
    try {
      // In the same directory, and of no name that is read.
      await writeFile(`${place}.new`, text, { mode: 0o600 });
      await rename(`${place}.new`, place);
    } catch (error) {
      await rm(`${place}.new`, { force: true });
      throw error;
    }
    await this.#prune();
  }

  /** The newest first, at most so many; what cannot be read is not there. */
  async latest(count: number): Promise<readonly PullSummary[]> {
    const names = (await this.#names()).slice(-count).toReversed();
    const found: PullSummary[] = [];
    for (let at = 0; at < names.length; at += readsMax) {
      const some = names.slice(at, at + readsMax).map(async (name) => await this.#readSummary(name));
      found.push(...(await Promise.all(some)).filter((summary) => summary !== undefined));
    }
    return found;
  }

  /** Something that is another once another one is kept, or one is gone. */
  async version(): Promise<string> {
    const names = await this.#names();
    return `${names.at(-1)} ${names.length}`;
  }

  /** Ids that begin so, the newest first. */
  async find(prefix: string): Promise<readonly string[]> {
    const ids = (await this.#names()).flatMap((name) => namePattern.exec(name)?.[2] ?? []);
    return ids.filter((id) => id.startsWith(prefix)).toReversed();
  }

  /** Undefined where it is not there, or cannot be read. */
  async read(id: string): Promise<PullRecord | undefined> {
    const name = (await this.#names()).findLast((one) => one.endsWith(`-${id}.json`));
    if (name === undefined) return undefined;
    const [first = "", second = ""] = (await this.#readStart(name, recordBytesMax)).split("\n");
    return summaryIn(first) ? (parse(second) as PullRecord | undefined) : undefined;
  }

  async #readSummary(name: string): Promise<PullSummary | undefined> {
    const [first = ""] = (await this.#readStart(name, summaryBytesMax)).split("\n");
    return summaryIn(first);
  }

  /** The oldest first. */
  async #names(): Promise<readonly string[]> {
    const names = await readdir(this.#folder).catch(() => []);
    return names.filter((name) => namePattern.test(name)).sort();
  }

  /** So many bytes of it; none where it is gone. */
  async #readStart(name: string, bytesMax: number): Promise<string> {
    try {
      await using file = await open(join(this.#folder, name));
      const { size } = await file.stat();
      const buffer = Buffer.alloc(Math.min(size, bytesMax));
      const { bytesRead } = await file.read(buffer, 0, buffer.length, 0);
      return buffer.toString("utf8", 0, bytesRead);
    } catch {
      return "";
    }
  }

  async #prune(): Promise<void> {
    const all = await readdir(this.#folder);
    const kept = all.filter((name) => namePattern.test(name)).sort();
    const unfinished = all.filter((name) => {
      const isNew = name.endsWith(".new") && namePattern.test(name.slice(0, -".new".length));
      return isNew && numberOf(name) < Date.now() - unfinishedMsMax;
    });
    const surplus = [...kept.slice(0, -this.keep), ...unfinished];
    await Promise.all(surplus.map(async (name) => await rm(join(this.#folder, name), { force: true })));
  }
}

function numberOf(name: string): number {
  return Number(/^\d{15}/.exec(name)?.[0] ?? 0);
}

/** Undefined for a line that is none of ours. */
function summaryIn(line: string): PullSummary | undefined {
  const { format: found, summary }: { readonly format?: unknown; readonly summary?: unknown } = Object(
    parse(line),
  );
  return found === format ? (summary as PullSummary) : undefined;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
