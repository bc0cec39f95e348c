// Images that every node of a cluster is to have: what a ConfigMap names that is mounted into this container is put where
// the node's daemon looks for such names (`prewarm.directory`), and follows each change of it.
//
// Nothing is fetched here, and no daemon is restarted for it.

import { PullError } from "../errors.ts";
import { places } from "../install/places.ts";
import { Directory } from "../prewarm/directory.ts";
import { removeFromNode, writeOnNode } from "./node.ts";

const file = `${places.images}/cluster`;

/** Until it is disposed of; what the node was told last stays. */
export function followImages(folder: string, warn: (line: string) => void): AsyncDisposable {
  let told: string | undefined;
  let writing: Promise<void> = Promise.resolve();
  const write = (references: readonly string[]): void => {
    told = references.map((reference) => `${reference}\n`).join("");
    const text = told;
    writing = writing
      .then(async () => await writeOnNode(file, text))
      .catch((error: unknown) => warn(`${file} cannot be written: ${PullError.from(error).message}`));
  };
  const directory = new Directory({
    path: folder,
    changed: write,
    trouble: (why) => {
      if (why !== undefined) warn(`${folder}: ${why}`);
    },
  });
  // Of an empty folder nothing is told, but the node may have another idea from before.
  const begun = directory.ready.then(() => {
    if (told === undefined) write([]);
  });
  return {
    [Symbol.asyncDispose]: async () => {
      await begun;
      await directory[Symbol.asyncDispose]();
      await writing;
    },
  };
}

export async function forgetImages(): Promise<void> {
  await removeFromNode(places.images);
}
