// One installation, upgrade or removal at a time on a node.

import { open, readFile, rm } from "node:fs/promises";
import { PullError } from "../errors.ts";
import { places } from "./places.ts";

/** Throws `exists` while another process has it; what a dead one left does not count. */
export async function takeLock(): Promise<AsyncDisposable> {
  for (;;) {
    try {
      await using file = await open(places.lock, "wx", 0o600);
      await file.writeFile(`${process.pid}`);
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

/** A lock that nothing is written in is being taken. */
async function isHawser(pid: string): Promise<boolean> {
  if (pid === "") return true;
  const command = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
  return command.split("\0").some((word) => word.endsWith("main.js"));
}
