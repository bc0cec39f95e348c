// Images out of an archive into containerd, with no registry: through the same engine as pulls, and listed.
//
// Each image of the archive is told of once, when it is there or cannot be; one that fails keeps none of the others from
// being loaded. An archive names its images itself, so whoever loads it trusts it with the names on this node.

import { PullError } from "../errors.ts";
import type { Digest } from "../oci/digest.ts";
import { parseReference } from "../oci/reference.ts";
import type { Ahead, Puller } from "../pull/pull.ts";
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
  readonly spare: Ahead["spare"];
  /** For an archive of one image: what it is to be called, whatever the archive says. */
  readonly name: string | undefined;
  readonly loaded: (outcome: Loaded) => void;
}

export type Loaded =
  | { readonly name: string; readonly id: Digest; readonly seconds: number }
  | { readonly name: string; readonly failure: PullError };

/** Throws what is wrong with the archive as a whole, with nothing loaded, and `cancelled`. */
export async function load(options: LoadOptions, signal: AbortSignal): Promise<void> {
  const contents = named(await contentsOf(options.files, signal), options.name);
  const waiting = contents.values();
  const work = async (): Promise<void> => {
    for (const content of waiting) options.loaded(await loadOne(content, options, signal));
  };
  await Promise.all(Array.from({ length: atOnceMax }, work));
}

/** Of several of one name the last one counts, as if they had been loaded one after another. */
function named(contents: readonly Content[], name: string | undefined): readonly Content[] {
  if (name === undefined)
    return contents.filter(
      (content, at) =>
        content.name === undefined || contents.findLastIndex((other) => other.name === content.name) === at,
    );
  const [only, ...others] = [
    ...new Map(contents.map((content) => [content.target.digest, content])).values(),
  ];
  if (only === undefined || others.length > 0)
    throw new PullError(
      "invalid",
      `it holds ${others.length + (only ? 1 : 0)} images, and a name is for one`,
    );
  return [{ ...only, name }];
}

async function loadOne(content: Content, options: LoadOptions, signal: AbortSignal): Promise<Loaded> {
  const { files, puller, site, spare } = options;
  const began = performance.now();
  if (content.name === undefined) return { name: content.target.digest, failure: nameless(content) };
  const name = canonical(content.name);
  const claimed = name.split("@")[1];
  if (claimed !== undefined && claimed !== content.target.digest)
    return {
      name,
      failure: new PullError("corrupt", `the archive has ${content.target.digest} by this name`),
    };
  const listed = content.isOriginal ? "digest" : "name";
  const repository = new ArchiveRepository(files, content);
  const ahead = { isKnown: false, spare, listed, repository } as const;
  await using pulled = await puller.pullAhead(content.name, site, undefined, ahead, signal);
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
