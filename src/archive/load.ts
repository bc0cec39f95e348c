// Images out of an archive into containerd, with no registry: through the same engine as pulls, and listed.
//
// Each image of the archive is told of once, when it is there or cannot be; one that fails keeps none of the others from
// being loaded. An archive names its images itself, so whoever loads it trusts it with the names on this node.

import { PullError, throwIfAborted } from "../errors.ts";
import type { Digest } from "../oci/digest.ts";
import { parseReference } from "../oci/reference.ts";
import type { Puller, Spare } from "../pull/pull.ts";
import type { Site } from "../pull/site.ts";
import { type Content, contentsOf } from "./contents.ts";
import type { Files } from "./files.ts";
import { ArchiveRepository } from "./repository.ts";

/** So many at once, since between its layers and its record an image keeps no core busy. */
const atOnceMax = 3;

export interface LoadOptions {
  readonly files: Files;
  readonly puller: Puller;
  readonly site: Site;
  readonly spare: Spare;
  /** For an archive of one image: what it is to be called, whatever the archive says. */
  readonly name: string | undefined;
  readonly loaded: (outcome: Loaded) => void;
}

export type Loaded =
  | { readonly name: string; readonly id: Digest; readonly seconds: number }
  | { readonly name: string; readonly failure: PullError };

/** Throws what is wrong with the archive as a whole, with nothing loaded, and `cancelled`. */
export async function load(options: LoadOptions, signal: AbortSignal): Promise<void> {
  const contents = await contentsOf(options.files, signal);
  if (contents.length === 0) throw new PullError("invalid", "it holds no images");
  const waiting = (options.name === undefined ? lastOfEach(contents) : one(contents, options.name)).values();
  const work = async (): Promise<void> => {
    for (const content of waiting) {
      throwIfAborted(signal);
      const outcome = await loadOne(content, options, signal);
      throwIfAborted(signal);
      options.loaded(outcome);
    }
  };
  const over = await Promise.allSettled(Array.from({ length: atOnceMax }, work));
  for (const outcome of over) if (outcome.status === "rejected") throw outcome.reason;
}

/** Of several of one name the last one counts, as if they had been loaded one after another. */
function lastOfEach(contents: readonly Content[]): readonly Content[] {
  const last = new Map(contents.map((content) => [content.name && canonical(content.name), content]));
  return contents.filter(
    ({ name }, nth) => name === undefined || last.get(canonical(name)) === contents[nth],
  );
}

function one(contents: readonly Content[], name: string): readonly Content[] {
  const targets = contents.map(({ image }) => (image instanceof PullError ? image : image.target.digest));
  const count = new Set(targets).size;
  if (count > 1) throw new PullError("invalid", `it holds ${count} images, and a name is for one`);
  const [content] = contents;
  return content ? [{ ...content, name }] : [];
}

async function loadOne(content: Content, options: LoadOptions, signal: AbortSignal): Promise<Loaded> {
  const { files, puller, site, spare } = options;
  const { image } = content;
  const began = performance.now();
  const name = content.name === undefined ? undefined : canonical(content.name);
  if (image instanceof PullError) return { name: name ?? "an image without a name", failure: image };
  if (content.name === undefined || name === undefined)
    return { name: image.target.digest, failure: nameless(content) };
  const claimed = name.split("@")[1];
  if (claimed !== undefined && claimed !== image.target.digest)
    return { name, failure: new PullError("corrupt", `the archive has ${image.target.digest} by this name`) };
  const given = {
    repository: new ArchiveRepository(files, image),
    names: image.isOriginal ? "digest" : "name",
    spare,
  } as const;
  await using pulled = await puller.load(content.name, site, given, signal);
  if (pulled.failure) return { name, failure: pulled.failure };
  if (!pulled.registered) return { name, failure: new PullError("internal", "it was not listed") };
  return { name, id: pulled.registered.id, seconds: (performance.now() - began) / 1000 };
}

function nameless({ hint }: Content): PullError {
  const said = hint === undefined ? "" : `, only the tag ${JSON.stringify(hint.slice(0, 128))}`;
  const way = "--name gives one to the image of an archive that holds no other";
  return new PullError("invalid", `the archive gives it no name${said} (${way})`);
}

/** As its record is named; a name that is none is told as it is. */
function canonical(name: string): string {
  try {
    return parseReference(name).name;
  } catch {
    return name.slice(0, 300);
  }
}
