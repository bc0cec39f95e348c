// A bundle: everything that a node needs to run Hawser, in one folder that runs wherever it is unpacked.
//
//   bin/hawser          starts the program with the bundle's own Node
//   libexec/            hawser-launch, what the unit runs
//   lib/node            Node's own build, byte for byte
//   lib/*.so.*          libraries that the addon is linked with
//   lib/hawser/         the program with its modules in it, the addon
//   share/              the configuration's template and the units
//   SHA256SUMS LICENSE THIRD-PARTY-NOTICES
//
// It is laid out in a temporary folder, held to the floor, and packed. No byte of it says where or when it was made.

import { existsSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildProgram } from "../build.ts";
import { buildAddon } from "./addon.ts";
import { pack, settle, writeSums } from "./archive.ts";
import { ReleaseError } from "./command.ts";
import { checkFloor } from "./floor.ts";
import { layModules } from "./modules.ts";
import { fetchNode } from "./node.ts";
import { renderNotices } from "./notices.ts";
import { type Architecture, machines, root } from "./place.ts";

export interface BundleOptions {
  readonly architecture: Architecture;
  /** Folder with hawser-launch and the units. */
  readonly units: string;
  /** Folder that the archive is written into. */
  readonly out: string;
}

export interface Bundle {
  readonly archive: string;
  /** The one folder at the archive's top. */
  readonly name: string;
  readonly packedBytes: number;
  readonly unpackedBytes: number;
  /** Highest symbol version of each library that anything in it wants. */
  readonly wants: ReadonlyMap<string, string>;
}

const launcher = "hawser-launch";
const programs = new Set(["bin/hawser", `libexec/${launcher}`, "lib/node"]);

export async function buildBundle({ architecture, units, out }: BundleOptions): Promise<Bundle> {
  const version = await readVersion();
  const name = `hawser-${version}-linux-${architecture}`;
  const work = await mkdtemp(join(tmpdir(), "release-"));
  try {
    const top = join(work, name);
    await layUnits(units, top);
    await layProgram(top, architecture);
    const wants = await checkFloor(top, machines[architecture].elf);
    await settle(top, programs);
    const unpackedBytes = await writeSums(top);
    await mkdir(out, { recursive: true });
    const archive = join(out, `${name}.tar.gz`);
    await pack(top, archive);
    return { archive, name, packedBytes: (await stat(archive)).size, unpackedBytes, wants };
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function readVersion(): Promise<string> {
  const { version } = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as { version: string };
  return version;
}

/** hawser-launch and the units; what is missing or strange there is told before anything is built. */
async function layUnits(units: string, top: string): Promise<void> {
  for (const folder of ["bin", "libexec", "lib", "share/systemd"])
    await mkdir(join(top, folder), { recursive: true });
  for (const name of [launcher, "hawser.service", "hawser.socket"]) {
    if (!existsSync(join(units, name))) throw new ReleaseError(`${join(units, name)} is missing`);
  }
  for (const name of await readdir(units)) {
    const isUnit = /\.(service|socket)$/.test(name);
    if (!isUnit && name !== launcher) throw new ReleaseError(`${join(units, name)} has no place in a bundle`);
    await copyFile(join(units, name), join(top, isUnit ? "share/systemd" : "libexec", name));
  }
}

async function layProgram(top: string, architecture: Architecture): Promise<void> {
  const lib = join(top, "lib");
  const program = join(lib, "hawser");
  const node = await fetchNode(architecture);
  await copyFile(join(node, "bin/node"), join(lib, "node"));
  await copyFile(join(root, "config/release/hawser"), join(top, "bin/hawser"));
  await copyFile(join(root, "config/hawser.toml"), join(top, "share/hawser.toml"));
  await copyFile(join(root, "LICENSE"), join(top, "LICENSE"));
  const libraries = await buildAddon(architecture, lib);
  const packages = await buildProgram(join(program, "dist"));
  await writeFile(join(program, "package.json"), await describeProgram());
  const modules = await layModules(program, packages);
  await writeFile(join(top, "THIRD-PARTY-NOTICES"), await renderNotices({ node, libraries, modules }));
}

/** What Node and the program read of package.json. */
async function describeProgram(): Promise<string> {
  const all = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as Record<string, unknown>;
  const kept = ["name", "version", "description", "license", "type", "engines", "dependencies"];
  return `${JSON.stringify(Object.fromEntries(kept.map((key) => [key, all[key]])), null, 2)}\n`;
}
