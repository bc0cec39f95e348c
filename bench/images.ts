// Realistic images, made on the spot from Debian packages: nothing is downloaded from a container registry.
//
// A layer is a set of packages, unpacked and packed again with GNU tar and pigz, as image builders do. Layers are kept
// in a cache folder, so that only the first run on a machine makes them.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { type PushedImage, pushImage, type TestLayer } from "../test/harness/images.ts";
import type { PrivateRegistry } from "../test/harness/registry.ts";

export interface Recipe {
  readonly name: string;
  /** What it is like, for the table's reader. */
  readonly title: string;
  /** Debian packages, layer by layer, bottom up. */
  readonly layers: readonly (readonly string[])[];
  readonly config?: Readonly<Record<string, unknown>>;
}

const cache = "/var/tmp/hawser-images";

const base = [
  "base-files",
  "bash",
  "coreutils",
  "dpkg",
  "apt",
  "libapt-pkg6.0",
  "perl-base",
  "libc6",
  "libc-bin",
  "util-linux",
  "tar",
  "grep",
  "sed",
  "gzip",
  "findutils",
  "login",
  "passwd",
  "libstdc++6",
  "libssl3",
  "libsystemd0",
  "libtinfo6",
  "libselinux1",
  "libpcre2-8-0",
  "zlib1g",
  "debianutils",
  "tzdata",
  "ca-certificates",
  "openssl",
  "libicu72",
  "libdb5.3",
];

/** A Go toolchain on top of compilers and version control, as the images that Go programs are built in. */
export const goLike: Recipe = {
  name: "go",
  title: "Go-like, four layers",
  layers: [
    base,
    [
      "git",
      "git-man",
      "mercurial-common",
      "subversion",
      "libsvn1",
      "perl-modules-5.36",
      "libperl5.36",
      "curl",
      "libcurl4",
      "openssh-client",
      "procps",
    ],
    [
      "gcc-12",
      "g++-12",
      "cpp-12",
      "libgcc-12-dev",
      "libstdc++-12-dev",
      "binutils-x86-64-linux-gnu",
      "libbinutils",
      "libc6-dev",
      "linux-libc-dev",
      "libasan8",
      "libtsan2",
      "make",
      "gfortran-12",
      "libgfortran-12-dev",
    ],
    ["golang-1.19-go", "golang-1.19-src"],
  ],
};

/** Small enough for a first look, and able to run. */
export const tools: Recipe = {
  name: "tools",
  title: "shell tools, three layers",
  layers: [
    base,
    ["git", "git-man", "perl-modules-5.36", "libperl5.36", "curl", "libcurl4"],
    ["gcc-12", "cpp-12", "libgcc-12-dev", "binutils-x86-64-linux-gnu", "libbinutils", "libc6-dev"],
  ],
  config: { config: { Env: ["PATH=/usr/bin:/bin"] } },
};

export interface BuiltImage extends PushedImage {
  /** The gzip layers, bottom up. */
  readonly files: readonly string[];
  readonly compressedBytes: number;
  readonly unpackedBytes: number;
}

export function sizes({ compressedBytes, unpackedBytes }: BuiltImage): string {
  const mib = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MiB`;
  return `${mib(compressedBytes)} compressed, ${mib(unpackedBytes)} unpacked`;
}

/** Makes what is missing in the cache and pushes all of it. `say` is told what takes long. */
export async function pushRecipe(
  registry: PrivateRegistry,
  recipe: Recipe,
  say: (text: string) => void,
  signal: AbortSignal,
): Promise<BuiltImage> {
  const files: string[] = [];
  const layers: TestLayer[] = [];
  let unpackedBytes = 0;
  for (const [index, packages] of recipe.layers.entries()) {
    // A layer is made in one go; a signal that came meanwhile is seen after it.
    await new Promise(setImmediate);
    signal.throwIfAborted();
    const file = layerFile(recipe.name, index, packages, say);
    files.push(file);
    const bytes = readFileSync(file);
    const tar = gunzipSync(bytes, { maxOutputLength: 2 ** 32 });
    unpackedBytes += tar.length;
    layers.push({ bytes, diffID: `sha256:${createHash("sha256").update(tar).digest("hex")}` });
  }
  const image = await pushImage(registry, `bench/${recipe.name}:v1`, layers, {
    ...(recipe.config && { config: recipe.config }),
  });
  const compressedBytes = image.layers.reduce((sum, layer) => sum + layer.size, 0);
  return { ...image, files, compressedBytes, unpackedBytes };
}

function layerFile(
  image: string,
  index: number,
  packages: readonly string[],
  say: (text: string) => void,
): string {
  const key = createHash("sha256").update(JSON.stringify(packages)).digest("hex").slice(0, 12);
  const file = join(cache, `${image}-${index}-${key}.tar.gz`);
  if (existsSync(file)) return file;
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, "work-"));
  try {
    say(`making layer ${index + 1} of ${packages.length} Debian packages`);
    download(packages, work);
    execFileSync("sh", ["-c", 'mkdir root && for deb in *.deb; do dpkg-deb -x "$deb" root; done'], {
      cwd: work,
      stdio: "pipe",
    });
    execFileSync("sh", ["-c", "tar -C root --sort=name --numeric-owner -c . | pigz > layer.tar.gz"], {
      cwd: work,
      stdio: "pipe",
    });
    renameSync(join(work, "layer.tar.gz"), file);
    return file;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** Fetches packages into a folder; on a machine whose package lists are missing or old, after an update. */
function download(packages: readonly string[], folder: string): void {
  // _apt may not read the folder; as root the download goes on without its sandbox.
  const args = ["-qq", "-o", "APT::Sandbox::User=root", "download", ...packages];
  try {
    execFileSync("apt-get", args, { cwd: folder, stdio: "pipe" });
  } catch (error) {
    // Ended by a signal: whoever sent it wants no second try.
    if ((error as { readonly signal?: unknown }).signal) throw error;
    execFileSync("apt-get", ["-qq", "update"], { stdio: "pipe" });
    execFileSync("apt-get", args, { cwd: folder, stdio: "pipe" });
  }
}
