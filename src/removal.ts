// Removing the tree of a layer that will not become a snapshot, however many entries it has.
//
// node:fs would read every directory into memory and have a promise for each entry of it, on the thread that answers
// kubelet; the addon does it in a thread of libuv's pool, holding one directory on each level. One tree after another,
// so that the pool's other threads stay free for everything else. Without the addon node:fs has to do.

import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { getSystemErrorName } from "node:util";
import { PullError } from "./errors.ts";
import { loadNative } from "./native.ts";

/** The last removal that was asked for. */
let last: Promise<unknown> = Promise.resolve();

/** Success when there is nothing. Throws `internal` when something of it stays. */
export async function removeTree(path: string): Promise<void> {
  const removal = last.then(() => remove(path));
  last = removal.catch(() => {});
  await removal;
}

async function remove(path: string): Promise<void> {
  const native = loadNative();
  if (native.kind === "missing") {
    await rm(path, { recursive: true, force: true });
    return;
  }
  const result = await native.binding.removePath(Buffer.from(path).toString("latin1"));
  // A file system that is read-only says so even of what is not there.
  if (result === 0 || !existsSync(path)) return;
  throw new PullError("internal", `removing ${path} failed: ${getSystemErrorName(result)}`);
}
