// The bundle that "npm run release" makes of this checkout, built once for the same sources.

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { buildBundle } from "../../config/release/bundle.ts";
import { cached } from "../../config/release/cache.ts";
import { type Architecture, root } from "../../config/release/place.ts";

export interface TestBundle {
  readonly archive: string;
  /** Its one folder at the top. */
  readonly name: string;
}

/** What goes into a bundle, or says how it is made. */
const inputs = [
  "LICENSE",
  ".npmrc",
  "package.json",
  "package-lock.json",
  "tsconfig.json",
  "config",
  "native",
  "src",
];
const ageMsMax = 3600 * 1000;

export async function testBundle(architecture: Architecture = "amd64"): Promise<TestBundle> {
  const key = await hashOfInputs();
  const folder = await cached(
    `bundle-${architecture}`,
    key,
    (out) => buildTestBundle(architecture, out),
    ageMsMax,
  );
  const [file = ""] = await readdir(folder);
  return { archive: join(folder, file), name: file.replace(/\.tar\.gz$/, "") };
}

export async function buildTestBundle(architecture: Architecture, out: string): Promise<void> {
  const units = join(root, "config/systemd");
  if (existsSync(units)) {
    await buildBundle({ architecture, units, out });
    return;
  }
  const placeholders = await mkdtemp(join(tmpdir(), "units-"));
  try {
    for (const name of ["hawser-launch", "hawser.service", "hawser.socket"])
      await writeFile(join(placeholders, name), "# a placeholder\n");
    await buildBundle({ architecture, units: placeholders, out });
  } finally {
    await rm(placeholders, { recursive: true });
  }
}

async function hashOfInputs(): Promise<string> {
  const hash = createHash("sha256");
  for (const input of inputs) {
    for (const path of await filesOf(join(root, input)))
      hash.update(`${relative(root, path)}\0`).update(await readFile(path));
  }
  return hash.digest("hex").slice(0, 32);
}

async function filesOf(path: string): Promise<string[]> {
  const entries = await readdir(path, { recursive: true, withFileTypes: true }).catch(() => undefined);
  if (entries === undefined) return [path];
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return files.filter((file) => !file.startsWith(join(root, "native/build/"))).toSorted();
}
