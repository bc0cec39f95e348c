// An instance: one running Hawser, its id, its directories beside containerd's, and the proof that it is alive.
//
// Whatever outlives a crash (staging directories, spools, leases) carries the instance's id. The proof of life is a
// listening unix socket named by the id: the kernel closes it with the process, however that ends, so connecting tells
// the living from the dead, across mount and network namespaces and pid reuse. Only what belongs to the dead is swept.

import { randomBytes } from "node:crypto";
import { type FileHandle, mkdir, open, readdir, rm } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import { dirname, join } from "node:path";
import type { Containerd, ContainerdFacts } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";

/** Label on every lease of ours; its value is the id of the instance that made it. */
export const instanceLabel = "io.hawser/instance";

const folder = "io.hawser";

export interface Instance extends AsyncDisposable {
  readonly id: string;
  /** `<snapshotter root>/io.hawser/staging/<id>`: renamed from there, so it must be the snapshotter's file system. */
  readonly staging: string;
  /** `<containerd root>/io.hawser/spool/<id>`: adopted from there, so it must be the content store's file system. */
  readonly spool: string;
  /** Removes what dead instances left, and returns how many of them there were. */
  sweep(containerd: Containerd): Promise<number>;
}

/** Takes the lock and makes the directories. Disposing removes them and gives the lock up. */
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
  await mkdir(own.staging, { recursive: true, mode: 0o700 });
  await mkdir(own.spool, { recursive: true, mode: 0o700 });
  return {
    id,
    ...own,
    sweep: (containerd) => sweep(containerd, lock, places, id),
    [Symbol.asyncDispose]: async () => {
      await rm(own.staging, { recursive: true, force: true });
      await rm(own.spool, { recursive: true, force: true });
      await lock[Symbol.asyncDispose]();
    },
  };
}

async function sweep(
  containerd: Containerd,
  lock: Lock,
  places: { instances: string; spool: string; staging: string },
  self: string,
): Promise<number> {
  const dead = new Set<string>();
  const seen = new Map<string, boolean>();
  const isDead = async (id: string): Promise<boolean> => {
    const known = seen.get(id);
    if (known !== undefined) return known;
    const verdict = id !== self && !(await lock.isHeld(id));
    seen.set(id, verdict);
    if (verdict) dead.add(id);
    return verdict;
  };
  await containerd.sweepLeases(instanceLabel, isDead);
  for (const place of [places.staging, places.spool]) {
    for (const id of await readdir(place)) {
      if (await isDead(id)) await rm(join(place, id), { recursive: true, force: true });
    }
  }
  // The lock file goes last: while anything of an instance is left, its name still says that it is dead.
  for (const name of await readdir(places.instances)) {
    if (await isDead(name)) await rm(join(places.instances, name), { force: true });
  }
  return dead.size;
}

/** The listening socket. Addressed through /proc/self/fd, since a socket's path may be 107 bytes at the most. */
class Lock implements AsyncDisposable {
  readonly #folder: FileHandle;
  readonly #server: Server;

  private constructor(folderHandle: FileHandle, server: Server) {
    this.#folder = folderHandle;
    this.#server = server;
  }

  static async take(path: string, id: string): Promise<Lock> {
    await mkdir(path, { recursive: true, mode: 0o700 });
    const handle = await open(path);
    const server = createServer((socket) => socket.destroy());
    server.unref();
    await new Promise<void>((resolve, reject) => {
      server.once("error", (error) =>
        reject(new PullError("internal", `cannot lock ${path}: ${error.message}`, { cause: error })),
      );
      server.listen(`/proc/self/fd/${handle.fd}/${id}`, resolve);
    });
    return new Lock(handle, server);
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
    // Closing unlinks the socket's file through the folder's descriptor, so the descriptor goes last.
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    await this.#folder.close();
  }
}
