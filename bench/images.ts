// Realistic images, made on the spot from Debian packages: nothing is downloaded from a container registry.
//
// A layer is a set of packages, unpacked and packed again with GNU tar and pigz or zstd, as image builders do. Layers are kept
// in a cache folder, so that only the first run on a machine makes them.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { layerTypes, type PushedImage, pushImage } from "../test/harness/images.ts";
import type { PrivateRegistry } from "../test/harness/registry.ts";
import type { Packing, Recipe } from "./recipes.ts";

const cache = "/var/tmp/hawser-images";

export interface BuiltImage extends PushedImage {
  /** The layers as they were pushed, bottom up. */
  readonly files: readonly string[];
  readonly packing: Packing;
  readonly compressedBytes: number;
  readonly unpackedBytes: number;
}

/** A layer in the cache. */
interface BuiltLayer {
  readonly file: string;
  readonly diffID: string;
  readonly tarBytes: number;
}

const packings = {
  gzip: { extension: "tar.gz", command: "pigz -c", mediaType: layerTypes.ociGzip },
  zstd: { extension: "tar.zst", command: "zstd -q -c -T0", mediaType: layerTypes.ociZstd },
  none: { extension: "tar", command: "cat", mediaType: layerTypes.ociPlain },
} as const;

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
  const packing = recipe.packing ?? "gzip";
  const { mediaType } = packings[packing];
  const built: BuiltLayer[] = [];
  for (const packages of recipe.layers) {
    // A layer is made in one go; a signal that came meanwhile is seen after it.
    await new Promise(setImmediate);
    signal.throwIfAborted();
    built.push(buildLayer(packages, packing, say));
  }
  const layers = built.map(({ file, diffID }) => ({ bytes: readFileSync(file), diffID, mediaType }));
  const image = await pushImage(registry, `bench/${recipe.name}:v1`, layers, {
    ...(recipe.config && { config: recipe.config }),
  });
  return {
    ...image,
    files: built.map(({ file }) => file),
    packing,
    compressedBytes: image.layers.reduce((sum, layer) => sum + layer.size, 0),
    unpackedBytes: built.reduce((sum, layer) => sum + layer.tarBytes, 0),
  };
}

/** What is in the cache has a file beside it that says what it unfolds to. */
function buildLayer(packages: readonly string[], packing: Packing, say: (text: string) => void): BuiltLayer {
  const { extension, command } = packings[packing];
  const key = createHash("sha256").update(JSON.stringify(packages)).digest("hex").slice(0, 12);
  const file = join(cache, `${key}.${extension}`);
  if (!existsSync(`${file}.json`)) {
    mkdirSync(cache, { recursive: true });
    const work = mkdtempSync(join(cache, "work-"));
    try {
      say(`making a layer of ${packages.length} Debian packages`);
      download(packages, work);
      const script = `mkdir root && for deb in *.deb; do dpkg-deb -x "$deb" root; done
        tar -C root --sort=name --numeric-owner -cf layer.tar .
        sha256sum < layer.tar > sum
        ${command} layer.tar > packed`;
      execFileSync("sh", ["-ec", script], { cwd: work, stdio: "pipe" });
      const [sum = ""] = readFileSync(join(work, "sum"), "utf8").split(" ");
      const { size } = statSync(join(work, "layer.tar"));
      renameSync(join(work, "packed"), file);
      writeFileSync(`${file}.json`, JSON.stringify({ diffID: `sha256:${sum}`, tarBytes: size }));
    } finally {
      rmSync(work, { recursive: true, force: true });
    }
  }
  const said = JSON.parse(readFileSync(`${file}.json`, "utf8")) as Omit<BuiltLayer, "file">;
  return { file, ...said };
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
