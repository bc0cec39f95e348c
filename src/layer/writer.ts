// tar-fs at work below the staging directory: bytes of an archive that was judged already go in, files come out.
//
// It writes asynchronously; whoever waits for dispose knows that nothing is written any more.

import { once } from "node:events";
import fs from "node:fs";
import { chmod, lchown, lutimes } from "node:fs/promises";
import { join } from "node:path";
import { extract } from "tar-fs";
import { PullError } from "../errors.ts";
import type { Entry } from "./entry.ts";
import type { ForeignHeader, PlainArchive } from "./plain.ts";

export class Writer implements AsyncDisposable {
  readonly #staging: string;
  readonly #archive: PlainArchive;
  readonly #calls = new PendingCalls();
  readonly #stream: ReturnType<typeof extract>;
  #failure: PullError | undefined;

  constructor(staging: string, archive: PlainArchive) {
    this.#staging = staging;
    this.#archive = archive;
    const options = {
      fs: this.#calls.watch(fs),
      umask: 0,
      // Targets are written as they are and nothing is ever written through a link: see plain.ts.
      validateSymlinks: false,
      ignore: (_path: string, header: ForeignHeader) => this.#isLeftOut(header),
    };
    // Its types leave out options that it has.
    this.#stream = extract(staging, options as unknown as Parameters<typeof extract>[1]);
    this.#stream.on("error", (error: Error) => {
      this.#failure ??= writeError(error);
    });
  }

  /** Resolves once tar-fs wants more. */
  async write(bytes: Buffer): Promise<void> {
    if (bytes.length > 0 && this.#failure === undefined && !this.#stream.write(bytes))
      await this.#until("drain");
    this.#throwIfFailed();
  }

  /** Resolves once everything is written. */
  async end(): Promise<void> {
    this.#throwIfFailed();
    const finished = this.#until("finish");
    this.#stream.end(undefined);
    await finished;
    this.#throwIfFailed();
  }

  /** Owner, mode with setuid, and times of everything; of directories once nothing more is put into them. */
  async describe(): Promise<void> {
    const { entries, implied } = this.#archive;
    try {
      for (const path of implied)
        if (!entries.has(path)) await this.#describeImplied(join(this.#staging, path));
      for (const isDirectory of [false, true]) {
        for (const [path, entry] of entries) {
          if ((entry.type === "directory") === isDirectory) await describe(join(this.#staging, path), entry);
        }
      }
    } catch (error) {
      throw writeError(error);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stream.destroy(null);
    await this.#calls.end();
  }

  async #describeImplied(path: string): Promise<void> {
    await lchown(path, 0, 0);
    await chmod(path, 0o755);
  }

  #throwIfFailed(): void {
    if (this.#failure) throw this.#failure;
  }

  /** The stream's events; one that fails says so in #failure and closes, which ends the wait too. */
  async #until(event: "drain" | "finish"): Promise<void> {
    const over = new AbortController();
    const { signal } = over;
    try {
      await Promise.race([once(this.#stream, event, { signal }), once(this.#stream, "close", { signal })]);
    } catch (error) {
      this.#failure ??= writeError(error);
    } finally {
      over.abort();
    }
  }

  #isLeftOut(header: ForeignHeader): boolean {
    if (this.#failure) return true;
    try {
      return this.#archive.meet(header);
    } catch (error) {
      this.#failure = PullError.from(error);
      return true;
    }
  }
}

async function describe(file: string, { type, uid, gid, mode, mtime, atime }: Entry): Promise<void> {
  await lchown(file, uid, gid);
  if (type !== "symlink") await chmod(file, mode);
  await lutimes(file, atime.seconds, mtime.seconds);
}

function writeError(error: unknown): PullError {
  const code = error instanceof Error && "code" in error ? String(error.code) : undefined;
  const isFull = code === "ENOSPC" || code === "EDQUOT" || code === "EMFILE" || code === "ENFILE";
  const text = code ?? (error instanceof Error ? error.message : String(error));
  return new PullError(isFull ? "exhausted" : "corrupt", `writing the layer: ${text}`, { cause: error });
}

/**
 * Counts calls of node:fs under way. A destroyed stream of tar-fs does not wait for its own, and forgets a file that it
 * was about to write: such a file would stay open.
 */
class PendingCalls {
  readonly #files = new Set<fs.WriteStream>();
  #count = 0;
  #isEnding = false;
  #onIdle: (() => void) | undefined;

  /** The same functions, counted from their start until their callback is through. */
  watch(target: typeof fs): typeof fs {
    return new Proxy(target, {
      get: (_target, key): unknown => {
        const value: unknown = Reflect.get(target, key);
        if (typeof value !== "function") return value;
        if (key === "createWriteStream") return (path: string) => this.#file(target.createWriteStream(path));
        return (...parameters: unknown[]) => this.#call(value as Call, parameters);
      },
    });
  }

  /** Closes what is open, and resolves once nothing is under way any more. */
  async end(): Promise<void> {
    this.#isEnding = true;
    for (const file of this.#files) file.destroy();
    // Twice: what a callback sets off on a later turn starts before that turn is over.
    await this.#settled();
    await new Promise(setImmediate);
    await this.#settled();
  }

  async #settled(): Promise<void> {
    if (this.#count === 0) return;
    await new Promise<void>((resolve) => {
      this.#onIdle = resolve;
    });
  }

  #call(call: Call, parameters: unknown[]): unknown {
    const callback = parameters.at(-1);
    if (typeof callback !== "function") return call(...parameters);
    this.#count += 1;
    return call(...parameters.slice(0, -1), (...results: unknown[]) => {
      try {
        (callback as Call)(...results);
      } finally {
        this.#done();
      }
    });
  }

  #file(file: fs.WriteStream): fs.WriteStream {
    this.#count += 1;
    this.#files.add(file);
    file.once("close", () => {
      this.#files.delete(file);
      // After tar-fs has heard of it too, and begun what follows.
      process.nextTick(() => this.#done());
    });
    if (this.#isEnding) file.destroy();
    return file;
  }

  #done(): void {
    this.#count -= 1;
    if (this.#count > 0) return;
    this.#onIdle?.();
    this.#onIdle = undefined;
  }
}

type Call = (...parameters: unknown[]) => unknown;
