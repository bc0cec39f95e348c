// The journal beside a spool: whose bytes it is to hold, which of them are there, and whether they are to be kept.
//
// It is for the next process after a crash of this one. A line is written behind the bytes that it speaks of, so it
// may say too little and never too much; the kernel keeps both, whatever ends the process. It does not across a
// restart of the machine, since nothing here is synced, so the boot's id is part of it. Text, a line a fact:
//
//   {"version":1,"boot":"…","digest":"sha256:…","sizeBytes":123}
//   w 0 1048576            these bytes are written
//   k {"image":"…","labels":{…}}    all bytes were found right, and are to be kept for this image

import { writeSync } from "node:fs";
import { type FileHandle, open, readFile, rm } from "node:fs/promises";
import type { Labels } from "../containerd/containerd.ts";
import { failpoint } from "../failpoint.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { type Digest, parseDigest } from "../oci/digest.ts";
import type { Range } from "../spool.ts";

/** That a blob is to enter the content store, and for what. */
export interface Keep {
  /** Name of the image record without which nobody needs the blob there. */
  readonly image: string;
  readonly labels: Labels;
}

/** What a journal tells of its spool. */
export interface Recorded {
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly written: readonly Range[];
  /** Set once the whole blob was known to be right and was about to enter the content store. */
  readonly keep: Keep | undefined;
}

const version = 1;
/** Bytes that a line waits for: a crash costs at most these, and a line costs next to nothing. */
const batchBytes = 1024 * 1024;
/** Some 500,000 lines; a journal of ours is far smaller. */
const journalBytesMax = 16 * 1024 * 1024;

/** The id of this boot of the machine. */
export async function readBootId(): Promise<string> {
  return (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
}

export class Journal {
  readonly path: string;
  readonly #file: FileHandle;
  #pending: Range[] = [];
  #pendingBytes = 0;
  #isBroken = false;
  #isClosed = false;

  private constructor(path: string, file: FileHandle) {
    this.path = path;
    this.#file = file;
  }

  /** Makes the file anew, with what is written already. When it throws there is no file. */
  static async create(
    path: string,
    { digest, size }: Descriptor,
    boot: string,
    written: readonly Range[],
  ): Promise<Journal> {
    const file = await open(path, "w", 0o600);
    const journal = new Journal(path, file);
    const header = JSON.stringify({ version, boot, digest, sizeBytes: size });
    try {
      await file.appendFile(`${header}\n${written.map(lineOf).join("")}`);
      return journal;
    } catch (error) {
      await file.close();
      await rm(path, { force: true });
      throw error;
    }
  }

  /** Never throws: what is not in the journal is fetched again, and that is all. */
  wrote(range: Range): void {
    const last = this.#pending.at(-1);
    if (last?.end === range.start) last.end = range.end;
    else this.#pending.push({ ...range });
    this.#pendingBytes += range.end - range.start;
    if (this.#pendingBytes >= batchBytes) this.#flush();
  }

  /** Once this has returned, the adoption outlives this process. */
  keep(keep: Keep): void {
    this.#flush();
    this.#append(`k ${JSON.stringify(keep)}\n`);
  }

  /** Writes what is left to write, and closes the file. */
  async close(): Promise<void> {
    if (!this.#isClosed) this.#flush();
    this.#isClosed = true;
    await this.#file.close();
  }

  #flush(): void {
    const text = this.#pending.map(lineOf).join("");
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#append(text);
  }

  /** At once, since the bytes that it speaks of were written at once. */
  #append(text: string): void {
    if (text === "" || this.#isBroken) return;
    try {
      const bytes = Buffer.from(text);
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#file.fd, bytes, done);
      failpoint("journaled");
    } catch {
      // Half a line may be there now, so nothing may follow it.
      this.#isBroken = true;
    }
  }
}

function lineOf({ start, end }: Range): string {
  return `w ${start} ${end}\n`;
}

/** What the journal says; undefined when it is of another boot, of another version, or no journal at all. */
export async function readJournal(path: string, boot: string): Promise<Recorded | undefined> {
  try {
    await using file = await open(path);
    const { size } = await file.stat();
    if (size > journalBytesMax) return undefined;
    return parseJournal(await file.readFile("utf8"), boot);
  } catch {
    return undefined;
  }
}

export function parseJournal(text: string, boot: string): Recorded | undefined {
  try {
    // What follows the last newline is a line that a crash cut off, or nothing.
    const [header = "", ...lines] = text.split("\n").slice(0, -1);
    const parsed: unknown = JSON.parse(header);
    if (!isHeader(parsed) || parsed.version !== version || parsed.boot !== boot) return undefined;
    const { digest, sizeBytes } = parsed;
    const written = lines.filter((line) => !line.startsWith("k ")).map((line) => rangeOf(line, sizeBytes));
    const last = lines.findLast((line) => line.startsWith("k "));
    const keep = last === undefined ? undefined : keepOf(last.slice(2));
    return { digest: parseDigest(digest), sizeBytes, written, keep };
  } catch {
    return undefined;
  }
}

interface Header {
  readonly version: number;
  readonly boot: string;
  readonly digest: string;
  readonly sizeBytes: number;
}

function isHeader(value: unknown): value is Header {
  if (typeof value !== "object" || value === null) return false;
  const { boot, digest, sizeBytes } = value as Partial<Record<keyof Header, unknown>>;
  const isSize = Number.isSafeInteger(sizeBytes) && Number(sizeBytes) >= 0;
  return typeof boot === "string" && typeof digest === "string" && isSize;
}

function rangeOf(line: string, sizeBytes: number): Range {
  const match = /^w (\d{1,16}) (\d{1,16})$/.exec(line);
  const [start, end] = [Number(match?.[1]), Number(match?.[2])];
  if (!(start < end && end <= sizeBytes)) throw new RangeError(line);
  return { start, end };
}

function keepOf(json: string): Keep {
  const { image, labels } = JSON.parse(json) as Partial<Record<keyof Keep, unknown>>;
  const isStrings = Object.values(Object(labels)).every((value) => typeof value === "string");
  if (typeof image !== "string" || typeof labels !== "object" || !isStrings) throw new TypeError(json);
  return { image, labels: { ...labels } };
}
