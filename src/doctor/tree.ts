// The files of a node, below a root that tests replace. Reads are bounded, and never wait for a pipe's other end.

import { constants } from "node:fs";
import { open, readdir, realpath, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { PullError } from "../errors.ts";

/** More than any file that is read here has. */
const bytesMax = 1024 * 1024;

export class Tree {
  readonly #root: string;

  constructor(root: string) {
    this.#root = root;
  }

  /** Where a path of the node is for this process. */
  at(path: string): string {
    return join(this.#root, path);
  }

  /** Rejects with the reason in one line when it cannot be read. */
  async read(path: string): Promise<string> {
    try {
      return await this.#read(path);
    } catch (error) {
      throw new PullError("unavailable", `${path} cannot be read: ${reasonOf(error)}`, { cause: error });
    }
  }

  /** Undefined when there is no such file; rejects when it cannot be read for any other reason. */
  async readIfThere(path: string): Promise<string | undefined> {
    try {
      return await this.read(path);
    } catch (error) {
      if (error instanceof PullError && isAbsence(error.cause)) return undefined;
      throw error;
    }
  }

  /** Names in a directory, sorted; none when it is not there. */
  async list(path: string): Promise<string[]> {
    try {
      return (await readdir(this.at(path))).sort();
    } catch (error) {
      if (isAbsence(error)) return [];
      throw new PullError("unavailable", `${path} cannot be listed: ${reasonOf(error)}`, { cause: error });
    }
  }

  async isDirectory(path: string): Promise<boolean> {
    return (await stat(this.at(path)).catch(() => undefined))?.isDirectory() ?? false;
  }

  async exists(path: string): Promise<boolean> {
    return (await stat(this.at(path)).catch(() => undefined)) !== undefined;
  }

  /** The path without symbolic links, as far as it exists. */
  async real(path: string): Promise<string> {
    const resolved = await realpath(this.at(path)).catch(() => undefined);
    if (resolved === undefined)
      return path === "/" ? path : join(await this.real(dirname(path)), basename(path));
    const root = await realpath(this.#root);
    return root === "/" ? resolved : resolved.slice(root.length) || "/";
  }

  async #read(path: string): Promise<string> {
    await using handle = await open(this.at(path), constants.O_RDONLY | constants.O_NONBLOCK);
    const parts: Buffer[] = [];
    // Files of /proc do not know their size.
    for (let bytes = 0; bytes <= bytesMax; ) {
      const { bytesRead, buffer } = await handle.read(Buffer.allocUnsafe(64 * 1024));
      if (bytesRead === 0) return Buffer.concat(parts).toString("utf8");
      parts.push(buffer.subarray(0, bytesRead));
      bytes += bytesRead;
    }
    throw new PullError("exhausted", `it is over ${bytesMax} bytes long`);
  }
}

function isAbsence(error: unknown): boolean {
  const code = codeOf(error);
  return code === "ENOENT" || code === "ENOTDIR";
}

/** An error's errno, or what stands in its place; empty without one. */
export function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}

const reasons: Readonly<Record<string, string>> = {
  EACCES: "permission denied (run it as root)",
  EPERM: "not permitted (run it as root)",
  ENOENT: "there is no such file",
  ENOTDIR: "there is no such directory",
  EISDIR: "it is a directory",
  ECONNREFUSED: "nobody listens there",
  ENOTFOUND: "there is no such name",
  EAI_AGAIN: "the name servers do not answer",
  ETIMEDOUT: "no answer",
  EHOSTUNREACH: "no route to it",
  ENETUNREACH: "no route to it",
  ECONNRESET: "the connection was cut",
};

/** Why something failed, in a few words. */
export function reasonOf(error: unknown): string {
  const known = reasons[codeOf(error)];
  if (known !== undefined) return known;
  return error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
}
