// A directory whose files name images, one on a line: what a ConfigMap that is mounted on the node looks like, or what a
// person puts there.
//
// Read again whenever something in it changes, and every now and then, since a mount can be exchanged unseen. Files may
// be anybody's mistake: what is read of them is bounded, and what is no reference is told, not thrown.

import { constants, type FSWatcher, watch } from "node:fs";
import { open, readdir } from "node:fs/promises";
import { join } from "node:path";

export interface DirectoryOptions {
  readonly path: string;
  /** The references that the files name now, told when they have changed. */
  readonly changed: (references: readonly string[]) => void;
  /** Why it cannot be read, told when that has changed; undefined when it can be again. */
  readonly trouble: (why: string | undefined) => void;
}

const pollMs = 30_000;
/** Changes come in bunches. */
const settleMs = 200;
const filesMax = 1_000;
const fileBytesMax = 2 ** 20;

export class Directory implements AsyncDisposable {
  /** Settles once it was read for the first time, or could not be. */
  readonly ready: Promise<void>;
  readonly #options: DirectoryOptions;
  readonly #poll: NodeJS.Timeout;
  #watcher: FSWatcher | undefined;
  #settling: NodeJS.Timeout | undefined;
  #reading: Promise<void>;
  #told = "";
  #why: string | undefined;
  #isClosed = false;

  constructor(options: DirectoryOptions) {
    this.#options = options;
    this.#poll = setInterval(() => this.#readAgain(), pollMs).unref();
    this.#reading = this.#read();
    this.ready = this.#reading;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    clearInterval(this.#poll);
    clearTimeout(this.#settling);
    this.#watcher?.close();
    await this.#reading;
  }

  #readAgain(): void {
    this.#reading = this.#reading.then(async () => await this.#read());
  }

  async #read(): Promise<void> {
    if (this.#isClosed) return;
    this.#watch();
    try {
      const references = await readReferences(this.#options.path);
      const text = references.join("\n");
      if (text !== this.#told) this.#options.changed(references);
      this.#told = text;
      this.#tell(undefined);
    } catch (error) {
      // What it named before is still wanted: a mount that is exchanged is away for a moment.
      this.#tell(error instanceof Error ? error.message : String(error));
    }
  }

  #tell(why: string | undefined): void {
    if (why !== this.#why) this.#options.trouble(why);
    this.#why = why;
  }

  /** Not every file system tells of changes; those are looked at now and then. */
  #watch(): void {
    if (this.#watcher) return;
    try {
      const watcher = watch(this.#options.path, { persistent: false }, () => {
        clearTimeout(this.#settling);
        this.#settling = setTimeout(() => this.#readAgain(), settleMs).unref();
      });
      const leave = (): void => {
        watcher.close();
        this.#watcher = undefined;
      };
      watcher.on("error", leave).on("close", leave);
      this.#watcher = watcher;
    } catch {
      // Its absence is told by the attempt to read it.
    }
  }
}

/** Sorted, each once. Hidden files are not read: a ConfigMap's own are, by their names without a dot. */
async function readReferences(path: string): Promise<string[]> {
  const names = (await readdir(path)).filter((name) => !name.startsWith("."));
  if (names.length > filesMax) throw new Error(`${path} has over ${filesMax} files`);
  const references = new Set<string>();
  for (const name of names.sort())
    for (const line of (await readText(join(path, name))).split("\n")) {
      const reference = line.replace(/#.*/, "").trim();
      if (reference !== "") references.add(reference);
    }
  return [...references].sort();
}

async function readText(path: string): Promise<string> {
  // Opening a FIFO would wait for somebody to write to it.
  await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  const stat = await file.stat();
  if (!stat.isFile()) return "";
  if (stat.size > fileBytesMax) throw new Error(`${path} is over 1 MiB long`);
  return await file.readFile("utf8");
}
