// The modules that the program runs with, as npm installs them for production, and nothing that was compiled for a machine:
// most are built into the program, so that only their licences are wanted, and one is laid beside it.

import { createHash } from "node:crypto";
import { copyFile, mkdir, readdir, readFile } from "node:fs/promises";
import { dirname, extname, join } from "node:path";
import { apart } from "../build.ts";
import { cached } from "./cache.ts";
import { ReleaseError, run } from "./command.ts";
import { isElf } from "./floor.ts";
import { root } from "./place.ts";

/** What npm needs to install exactly what the lock file says. */
const inputs = ["package.json", "package-lock.json", ".npmrc"];

/** What a program can load. */
const loadable = new Set([".js", ".cjs", ".mjs", ".json", ".proto", ".wasm"]);
/** Other packages' and developers' folders. */
const passedOver = /^(node_modules|\.github|tests?|__tests__|examples?|bench(marks?)?|docs)$/;
export const licenceFile = /^(licen[cs]e|copying|notice)/i;

/** What npm's record of an installation says of a package. */
interface Installed {
  readonly os?: readonly string[];
  readonly cpu?: readonly string[];
  readonly libc?: readonly string[];
}

/**
 * Lays the package that stays apart from the program into a folder's node_modules. Returns the folders of all packages that
 * are shipped: of that one and of those that were built into the program, which must be what production installs.
 */
export async function layModules(into: string, built: readonly string[]): Promise<string[]> {
  const from = await install();
  const record = JSON.parse(await readFile(join(from, "node_modules/.package-lock.json"), "utf8")) as {
    readonly packages: Readonly<Record<string, Installed>>;
  };
  const own = `node_modules/${apart}`;
  const shipped = [...built, own].toSorted();
  for (const folder of shipped) {
    const installed = record.packages[folder];
    if (installed === undefined)
      throw new ReleaseError(`${folder} is in the program, and production does not install it`);
    checkPortable(folder, installed, await readdir(join(from, folder)));
  }
  await copyLoadable(join(from, own), join(into, own));
  await checkNoMachineCode(join(into, "node_modules"));
  return shipped.map((folder) => join(from, folder));
}

async function install(): Promise<string> {
  const texts = await Promise.all(inputs.map((name) => readFile(join(root, name))));
  const key = createHash("sha256").update(Buffer.concat(texts)).digest("hex");
  return await cached("modules", key, async (work) => {
    for (const name of inputs) await copyFile(join(root, name), join(work, name));
    // Optional ones are those with machine code: piscina's, for a priority that our workers set themselves.
    const flags = ["--omit=dev", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"];
    await run("npm", ["ci", "--silent", ...flags], { cwd: work });
  });
}

/** A package that is compiled on installation, or is for one system alone, must not enter a bundle unnoticed. */
export function checkPortable(folder: string, { os, cpu, libc }: Installed, files: readonly string[]): void {
  if ((os ?? cpu ?? libc) !== undefined || files.includes("binding.gyp"))
    throw new ReleaseError(`${folder} is made for one kind of machine, and bundles take none such`);
}

async function copyLoadable(from: string, to: string): Promise<void> {
  for (const entry of await readdir(from, { withFileTypes: true })) {
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    if (entry.isDirectory()) {
      if (!passedOver.test(entry.name)) await copyLoadable(source, target);
    } else if (licenceFile.test(entry.name) || loadable.has(extname(entry.name))) {
      await mkdir(dirname(target), { recursive: true });
      await copyFile(source, target);
    }
  }
}

export async function checkNoMachineCode(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    if (!entry.isDirectory() && (extname(entry.name) === ".node" || (await isElf(path))))
      throw new ReleaseError(`${path} is machine code, and bundles take none from modules`);
  }
}
