// An instance: one running Hawser, its id, its directories beside containerd's, and the proof that it is alive.
//
// Whatever outlives a crash (staging directories, spools, leases) carries the instance's id. The proof of life is a
// listening unix socket named by the id: the kernel closes it with the process, however that ends, so connecting tells
// the living from the dead, across mount and network namespaces and pid reuse. Only what belongs to the dead is swept,
// and their spools change hands.

import { randomBytes } from "node:crypto";
import { type FileHandle, mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import { dirname, join } from "node:path";
import type { Containerd, ContainerdFacts } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import { removeTree } from "../removal.ts";

/** Label on every lease of ours; its value is the id of the instance that made it. */
export const instanceLabel = "io.hawser/instance";

const folder = "io.hawser";

export interface Instance extends AsyncDisposable {
  readonly id: string;
  /** `<snapshotter root>/io.hawser/staging/<id>`: renamed from there, so it must be the snapshotter's file system. */
  readonly staging: string;
  /** `<containerd root>/io.hawser/spool/<id>`, which is not made here: adopted from there, so it must be the content store's file system. */
  readonly spool: string;
  /** Whether dead instances left spools: a look at a folder, for whoever cannot wait for more. */
  hasClaims(): Promise<boolean>;
  /** Makes the spool folders of dead instances ours, and returns where they are now: below our own. */
  claimSpools(): Promise<string[]>;
  /** Removes what dead instances, and broken-off calls of our own, left in containerd. */
  sweepContainerd(containerd: Containerd): Promise<void>;
  /** Removes the folders of dead instances, and returns how many of them there were. */
  sweepFolders(): Promise<number>;
}

/** Takes the lock and makes the staging directory. Disposing removes it and gives the lock up. */
export async function createInstance(facts: ContainerdFacts): Promise<Instance> {
  const id = randomBytes(8).toString("hex");
  const state = join(dirname(facts.contentRoot), folder);
  const places = {
    instances: join(state, "instances"),
    spool: join(state, "spool"),
    staging: join(facts.snapshotterRoot, folder, "staging"),
  };
  const lock = await Lock.take(places.instances, id);
  const own = { staging: join(places.staging, id), spool: join(places.spool, id) };
  try {
    await mkdir(own.staging, { recursive: true, mode: 0o700 });
  } catch (error) {
    await lock[Symbol.asyncDispose]();
    throw error;
  }
  return {
    id,
    ...own,
    hasClaims: async () => (await deadSpools(lock, places.spool, id)).length > 0,
    claimSpools: () => claimSpools(lock, places.spool, id),
    sweepContainerd: async (containerd) => {
      await containerd.sweep(instanceLabel, id, async (other) => !(await lock.isHeld(other)));
    },
    sweepFolders: () => sweepFolders(lock, places, id),
    [Symbol.asyncDispose]: async () => {
      await removeTree(own.staging);
      await lock[Symbol.asyncDispose]();
    },
  };
}

async function deadSpools(lock: Lock, place: string, self: string): Promise<string[]> {
  const dead: string[] = [];
  for (const id of await readdir(place).catch(() => []))
    if (id !== self && !(await lock.isHeld(id))) dead.push(id);
  return dead;
}

async function claimSpools(lock: Lock, place: string, self: string): Promise<string[]> {
  const claimed: string[] = [];
  for (const id of await deadSpools(lock, place, self)) {
    const ours = join(place, self, `inherited-${id}`);
    try {
      await rename(join(place, id), ours);
      claimed.push(ours);
    } catch {
      // Another instance was faster.
    }
  }
  return claimed;
}

async function sweepFolders(
  lock: Lock,
  places: { readonly instances: string; readonly staging: string },
  self: string,
): Promise<number> {
  const dead = new Set<string>();
  for (const id of await readdir(places.staging)) {
    if (id === self || (await lock.isHeld(id))) continue;
    dead.add(id);
    await removeTree(join(places.staging, id));
  }
  // The lock file goes last: while anything of an instance is left, its name still says that it is dead.
  for (const name of await readdir(places.instances)) {
    if (name === self || (await lock.isHeld(name))) continue;
    dead.add(name);
    await rm(join(places.instances, name), { force: true });
  }
  return dead.size;
}

/** Between bind(2) and listen(2) a socket refuses connections like a dead one's, so it gets its name behind both. */
const unborn = ".new";

/** The listening socket. Addressed through /proc/self/fd, since a socket's path may be 107 bytes at the most. */
class Lock implements AsyncDisposable {
  readonly #path: string;
  readonly #folder: FileHandle;
  readonly #server: Server;

  private constructor(path: string, folderHandle: FileHandle, server: Server) {
    this.#path = path;
    this.#folder = folderHandle;
    this.#server = server;
  }

  static async take(path: string, id: string): Promise<Lock> {
    await mkdir(path, { recursive: true, mode: 0o700 });
    const handle = await open(path);
    const server = createServer((socket) => socket.destroy());
    server.unref();
    const lock = new Lock(join(path, id), handle, server);
    try {
      await listen(server, `/proc/self/fd/${handle.fd}/${id}${unborn}`);
      await rename(join(path, `${id}${unborn}`), join(path, id));
    } catch (error) {
      await lock[Symbol.asyncDispose]();
      throw new PullError("internal", `cannot lock ${path}: ${PullError.from(error).message}`, {
        cause: error,
      });
    }
    return lock;
  }

  /** True unless the kernel says that nobody listens. A doubt counts as alive: sweeping can wait, harm cannot. */
  async isHeld(id: string): Promise<boolean> {
    return await new Promise<boolean>((resolve) => {
      const socket = connect(`/proc/self/fd/${this.#folder.fd}/${id}`);
      socket.once("connect", () => {
        socket.destroy();
        resolve(true);
      });
      socket.once("error", (error) => {
        const code = "code" in error ? error.code : undefined;
        resolve(code !== "ECONNREFUSED" && code !== "ENOENT");
      });
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Closing unlinks a socket that has not got its name yet through the folder's descriptor, so the descriptor goes last.
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    await rm(this.#path, { force: true });
    await this.#folder.close();
  }
}

async function listen(server: Server, path: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(path, resolve);
  });
}
