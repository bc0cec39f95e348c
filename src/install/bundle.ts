// The bundle that this program was started from, as an installation takes it.

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { PullError } from "../errors.ts";
import { places, unitNames } from "./places.ts";

export interface Bundle {
  readonly root: string;
  readonly version: string;
}

const needed = ["bin/hawser", "lib/node", "lib/hawser/dist/main.js", "libexec/hawser-launch"];
/** More files, or a longer list, than a release ever has. */
const filesMax = 100_000;

/** Throws `invalid` where this program is not part of a release, or of one whose files are not those that were released. */
export async function openBundle(root: string | undefined, version: string): Promise<Bundle> {
  if (root === undefined)
    throw new PullError(
      "invalid",
      'this is no release of Hawser: "npm run release" makes one, with bin/hawser in it',
    );
  const sums = await readSums(root);
  for (const name of [...needed, ...unitNames.map((unit) => `share/systemd/${unit}`)])
    if (!sums.has(name)) throw spoilt(root, `it has no ${name}`);
  for (const [name, sum] of sums) {
    const found = await digestOf(join(root, name)).catch(() => "none");
    if (found !== sum) throw spoilt(root, `${name} is not the one that was released`);
  }
  return { root, version };
}

/** Whether a folder is that release, file by file. */
export async function isReleased(root: string, version: string): Promise<boolean> {
  return await openBundle(root, version).then(
    () => true,
    () => false,
  );
}

function spoilt(root: string, why: string): PullError {
  return new PullError("invalid", `the release in ${root} is not whole: ${why}; unpack it once more`);
}

/** Digests by name, from the list that sha256sum reads. */
async function readSums(root: string): Promise<Map<string, string>> {
  const text = await readFile(join(root, "SHA256SUMS"), "utf8").catch(() => "");
  const lines = text.split("\n", filesMax).flatMap((line): [string, string][] => {
    const [, sum, name] = /^([0-9a-f]{64})  (.+)$/.exec(line) ?? [];
    return sum !== undefined && name !== undefined ? [[name, sum]] : [];
  });
  return new Map(lines);
}

async function digestOf(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  return hash.digest("hex");
}

/** Text of a unit, with what it is named in the bundle. */
export async function unitOf({ root }: Bundle, name: string): Promise<string> {
  return await readFile(join(root, "share/systemd", name), "utf8");
}

/** Where this version lies once it is installed. */
export function placeOf(version: string): string {
  return join(places.versions, version);
}
