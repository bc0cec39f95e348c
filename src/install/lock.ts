// One installation, upgrade or removal at a time on a node.

import { link, readFile, rm, writeFile } from "node:fs/promises";
import { PullError } from "../errors.ts";
import { places } from "./places.ts";

/** Throws `exists` while another process has it; what a dead one left does not count. */
export async function takeLock(): Promise<AsyncDisposable> {
  // Never seen without what is in it.
  const own = `${places.lock}.${process.pid}`;
  await writeFile(own, `${process.pid}`, { mode: 0o600 });
  try {
    return await take(own);
  } finally {
    await rm(own, { force: true });
  }
}

async function take(own: string): Promise<AsyncDisposable> {
  for (;;) {
    try {
      await link(own, places.lock);
      return { [Symbol.asyncDispose]: async () => await rm(places.lock, { force: true }) };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const holder = (await readFile(places.lock, "utf8").catch(() => "")).trim();
    if (await isHawser(holder))
      throw new PullError("exists", `process ${holder} is at an installation already (${places.lock})`);
    await rm(places.lock, { force: true });
  }
}

async function isHawser(pid: string): Promise<boolean> {
  if (!/^\d+$/.test(pid)) return false;
  const command = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
  return command.split("\0").some((word) => word.endsWith("main.js"));
}
