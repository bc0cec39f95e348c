// What a release is made of and need not be fetched twice, in folders below node_modules/.cache.
//
// A folder appears under its name when it is whole, by a rename, so that several builds at a time see all or nothing.

import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm, stat, utimes } from "node:fs/promises";
import { join } from "node:path";
import { root } from "./place.ts";

const cache = join(root, "node_modules/.cache/hawser-release");
const dayMs = 24 * 3600 * 1000;

/** The folder of this kind and key, made if it is not there; others of the kind go when nobody asked for them so long. */
export async function cached(
  kind: string,
  key: string,
  make: (folder: string) => Promise<void>,
  ageMsMax = dayMs,
): Promise<string> {
  const place = join(cache, kind);
  const done = join(place, key);
  if (!existsSync(done)) {
    await mkdir(place, { recursive: true });
    await removeOld(place, ageMsMax);
    const work = await mkdtemp(join(place, ".making-"));
    try {
      await make(work);
      await rename(work, done);
    } catch (error) {
      // Somebody else was first, and theirs is as good.
      if (!existsSync(done)) throw error;
    } finally {
      await rm(work, { recursive: true, force: true });
    }
  }
  const now = new Date();
  await utimes(done, now, now);
  return done;
}

async function removeOld(place: string, ageMsMax: number): Promise<void> {
  for (const name of await readdir(place)) {
    const path = join(place, name);
    // What is gone by now was being made, or removed, by somebody else.
    const age = await stat(path).then(
      ({ mtimeMs }) => Date.now() - mtimeMs,
      () => 0,
    );
    if (age > ageMsMax) await rm(path, { recursive: true, force: true });
  }
}
