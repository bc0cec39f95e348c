// The record of an installation: what was made on this node, written down before it is made.
//
// Whatever ends an installation halfway, the record says what to take away again. It is written to a file beside it and
// renamed, both synced, so that after a power failure there is the one or the other.

import { mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { PullError } from "../errors.ts";
import type { Plain } from "../yaml.ts";
import { places } from "./places.ts";

/** A thing that was not there before. A folder goes when nothing is left in it, a tree with all that it holds. */
export interface Made {
  readonly kind: "folder" | "tree" | "file" | "link";
  readonly path: string;
}

export interface KubeletChange {
  readonly file: string;
  /** There was no such file; else it is kept in places.kubeletBefore. */
  readonly isNew: boolean;
  /** Of the file after the change: while it has this digest, the old one can be put back whole. */
  readonly sha256: string;
  /** The keys that were changed, with what they were; null for what was not there, which JSON has no undefined for. */
  readonly before: { readonly [key: string]: Plain | null };
  /** When, for telling which processes have started since. */
  readonly at: Moment;
  /** What systemd runs kubelet as, where it ran. */
  readonly unit?: string | undefined;
  /** When for the last time, where that was more than once. */
  readonly lastAt?: Moment;
  /** Set once it has been taken back. */
  readonly undoneAt?: Moment;
}

/** Seconds since this boot; a clock that is set must not matter. */
export interface Moment {
  readonly boot: string;
  readonly seconds: number;
}

export interface Installation {
  readonly format: 1;
  readonly phase: "installing" | "installed" | "upgrading" | "removing";
  readonly version: string;
  /** The socket of containerd, and the folders that hold its content and its snapshots. */
  readonly containerd: { readonly address: string; readonly content: string; readonly snapshots: string };
  readonly made: readonly Made[];
  readonly kubelet?: KubeletChange;
}

export class Record {
  #now: Installation;

  private constructor(now: Installation) {
    this.#now = now;
  }

  /** Undefined where nothing is installed; throws `unsupported` for what another version wrote. */
  static async read(): Promise<Record | undefined> {
    let text: string;
    try {
      text = await readFile(places.record, "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw new PullError("unavailable", `${places.record} cannot be read: ${PullError.from(error).message}`);
    }
    const now = parse(text);
    if (now?.format === 1) return new Record(now);
    const todo = "use the hawser that installed it";
    throw new PullError("unsupported", `${places.record} is not of this version of Hawser: ${todo}`);
  }

  /** Not written yet. */
  static begin(start: Pick<Installation, "version" | "containerd">): Record {
    return new Record({ format: 1, phase: "installing", made: [], ...start });
  }

  get now(): Installation {
    return this.#now;
  }

  async set(change: Partial<Installation>): Promise<void> {
    this.#now = { ...this.#now, ...change };
    await mkdir(places.state, { recursive: true, mode: 0o755 });
    await writeWhole(places.record, `${JSON.stringify(this.#now, undefined, 2)}\n`, 0o600);
  }
}

/** Replaces a file in one step: whoever reads it finds the old one or the new one. */
export async function writeWhole(path: string, text: string, mode: number): Promise<void> {
  const beside = `${path}.new`;
  try {
    await using file = await open(beside, "w", mode);
    // The umask has had its say.
    await file.chmod(mode);
    await file.writeFile(text);
    await file.sync();
  } catch (error) {
    await rm(beside, { force: true }).catch(() => {});
    const { code, message } = PullError.from(error);
    throw new PullError(code, `cannot write ${path}: ${message}`, { cause: error });
  }
  await rename(beside, path);
  await using folder = await open(dirname(path));
  await folder.sync();
}

function parse(text: string): Installation | undefined {
  try {
    return JSON.parse(text) as Installation;
  } catch {
    return undefined;
  }
}
