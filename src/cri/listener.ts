// The listening socket: made here and then root's alone, or inherited from whoever made it before this process ran.
//
// A socket of our own is taken over from a dead process, never from a living one, and its path goes when listening ends,
// unless a successor listens there as well. Connections are handed on as they come; no byte of them is read here.

import { linkSync, renameSync } from "node:fs";
import { chmod, lstat, mkdir, rm, stat } from "node:fs/promises";
import { connect, createServer, type Server, type Socket } from "node:net";
import { dirname, join } from "node:path";
import { PullError } from "../errors.ts";

export interface Listener {
  /** The listening descriptor, for a process that is to inherit it. */
  readonly fd: number;
  /** Stops accepting; connections that are there stay. The path goes, if this process made it. */
  close(): void;
  /** Stops accepting and leaves the path to a successor. */
  leave(): void;
}

/** Listens on a path, in place of a socket that a dead process left. Throws `invalid` with the key to set otherwise. */
export async function listen(
  path: string,
  accept: (connection: Socket) => void,
  key = "cri.listen",
): Promise<Listener> {
  await claim(path, key);
  const server = createServer(accept);
  try {
    await rm(path, { force: true });
    await started(server, { path });
    await chmod(path, 0o600);
  } catch (error) {
    server.close();
    const { message } = PullError.from(error);
    const todo = `stop what uses it, or set ${key} to another path`;
    throw new PullError("invalid", `cannot listen on ${path}: ${message}: ${todo}`, { cause: error });
  }
  return {
    fd: descriptorOf(server),
    close: () => void server.close(),
    leave: () => {
      // Closing removes the path, so another name of it takes its place at once.
      const other = join(dirname(path), `.${process.pid}`);
      linkSync(path, other);
      server.close();
      renameSync(other, path);
    },
  };
}

/** Listens on a descriptor that is a listening socket already. */
export async function inherit(fd: number, accept: (connection: Socket) => void): Promise<Listener> {
  const server = createServer(accept);
  try {
    await started(server, { fd });
  } catch (error) {
    const { message } = PullError.from(error);
    throw new PullError("invalid", `descriptor ${fd} is no listening socket: ${message}`, { cause: error });
  }
  const close = (): void => void server.close();
  return { fd, close, leave: close };
}

/** Node tells the descriptor of what it listens on in this way only. */
function descriptorOf(server: Server): number {
  const { _handle: handle } = server as Server & { readonly _handle?: { readonly fd?: number } };
  return handle?.fd ?? -1;
}

async function started(server: Server, where: { path: string } | { fd: number }): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    // Stays on: accept(2) reports EMFILE as an error of the server, which must not end the process.
    server.on("error", reject);
    server.listen({ ...where, backlog: backlogConnections }, resolve);
  });
}

/** What may wait while a process takes over from another. */
const backlogConnections = 1024;

/** Makes way for our socket: its folder exists, and nobody living listens there. */
async function claim(path: string, key: string): Promise<void> {
  await makeFolder(dirname(path)).catch((error: Error) => {
    const why = `the folder of ${path} cannot be made: ${error.message}`;
    throw new PullError("invalid", `${why}; set ${key} to another path`, { cause: error });
  });
  const present = await lstat(path).catch(() => undefined);
  if (present === undefined) return;
  // Connecting to any file is refused, so a path that is set wrong must not cost somebody a file.
  if (!present.isSocket()) {
    throw new PullError("invalid", `${path} exists and is no socket: set ${key} to another path`);
  }
  if (await answers(path)) {
    throw new PullError(
      "invalid",
      `another process listens on ${path}: stop it, or set ${key} to another path`,
    );
  }
}

/** Node's own recursion goes round for ever where a folder cannot be made but is said to be missing, as in /proc. */
async function makeFolder(path: string): Promise<void> {
  const make = async (): Promise<string> => {
    try {
      await mkdir(path, { mode: 0o755 });
      return "";
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : "";
      if (code === "EEXIST" && (await stat(path)).isDirectory()) return "";
      if (code === "ENOENT" && path !== dirname(path)) return "parent";
      throw error;
    }
  };
  if ((await make()) === "") return;
  await makeFolder(dirname(path));
  if ((await make()) !== "") throw new Error(`there can be no folder ${path}`);
}

async function answers(path: string): Promise<boolean> {
  return await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", () => resolve(false));
  });
}
