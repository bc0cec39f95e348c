// The addon for a bundle: compiled by this machine's compiler or a cross compiler, against Debian's libraries for the
// other machine, and the libraries that it is linked with.

import { existsSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cached } from "./cache.ts";
import { run } from "./command.ts";
import { codename, unpackPackages } from "./debian.ts";
import { type Architecture, machines, ownArchitecture, root } from "./place.ts";

/** Debian's packages: libisal is shared, and only its decompressor's half of libzstd is linked in. */
const packages = ["libisal-dev", "libisal2", "libzstd-dev"];

/** From lib/hawser/native/build, where the addon is, to lib, where its libraries are. */
const libraryPath = "$ORIGIN/../../..";

export interface Library {
  readonly title: string;
  /** Text of its copyright file. */
  readonly licence: string;
}

/** Lays hawser.node and its libraries into a bundle, and says what they are. */
export async function buildAddon(architecture: Architecture, lib: string): Promise<Library[]> {
  const { triplet, crossPackage } = machines[architecture];
  const isOwn = (await ownArchitecture()) === architecture;
  const libraries = await fetchLibraries(architecture);
  const folder = join(libraries, "usr/lib", triplet);
  const build = await mkdtemp(join(tmpdir(), "addon-"));
  try {
    const variables = {
      BUILD: build,
      CXX: isOwn ? "g++" : `${triplet}-g++`,
      CPPFLAGS: `-isystem '${join(libraries, "usr/include")}'`,
      CXXFLAGS: "-O2",
      // An RPATH, since unlike a RUNPATH it comes before LD_LIBRARY_PATH: nothing takes the libraries' place.
      LDFLAGS: `-s -L'${folder}' -Wl,--disable-new-dtags,-rpath,'${libraryPath.replace("$", "$$$$")}'`,
    };
    const settings = Object.entries(variables).map(([name, value]) => `${name}=${value}`);
    const missing = `apt-get install ${isOwn ? "g++ make" : `${crossPackage} make`}`;
    await run(variables.CXX, ["--version"], { missing });
    await run("make", ["-C", join(root, "native"), ...settings], { missing });
    await mkdir(join(lib, "hawser/native/build"), { recursive: true });
    await copyFile(join(build, "hawser.node"), join(lib, "hawser/native/build/hawser.node"));
  } finally {
    await rm(build, { recursive: true, force: true });
  }
  for (const name of await sharedWith(join(lib, "hawser/native/build/hawser.node"), folder))
    await copyFile(join(folder, name), join(lib, name));
  return await describe(libraries);
}

/** Names of the libraries that a file is linked with and that are in the folder. */
async function sharedWith(file: string, folder: string): Promise<string[]> {
  const text = await run("readelf", ["--wide", "--dynamic", file]);
  const needed = [...text.matchAll(/\(NEEDED\).*\[(.+)\]$/gm)].map(([, name = ""]) => name);
  return needed.filter((name) => existsSync(join(folder, name)));
}

/** A folder with Debian's headers and libraries, of today, so that none is older than a day in what is released. */
async function fetchLibraries(architecture: Architecture): Promise<string> {
  const today = new Date().toISOString().slice(0, 10);
  return await cached(`libraries-${architecture}`, `${codename()}-${today}`, async (work) => {
    const versions = unpackPackages({ names: packages, architecture }, work);
    await writeFile(join(work, "versions.json"), JSON.stringify(Object.fromEntries(versions)));
  });
}

async function describe(libraries: string): Promise<Library[]> {
  const versions = JSON.parse(await readFile(join(libraries, "versions.json"), "utf8")) as Record<
    string,
    string
  >;
  const shipped = { libisal2: "ISA-L (lib/libisal.so.2)", "libzstd-dev": "zstd (in hawser.node)" };
  return await Promise.all(
    Object.entries(shipped).map(async ([name, what]) => ({
      title: `${what}, of Debian's ${name} ${versions[name]}`,
      licence: await readFile(join(libraries, "usr/share/doc", name, "copyright"), "utf8"),
    })),
  );
}
