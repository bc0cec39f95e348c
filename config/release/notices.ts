// THIRD-PARTY-NOTICES: the licences of everything in a bundle that is not Hawser's own. What has none, or one that
// nobody has looked at, ends the release.

import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Library } from "./addon.ts";
import { ReleaseError } from "./command.ts";
import { licenceFile } from "./modules.ts";
import { nodeVersion } from "./node.ts";

/** Those that let a program under Apache-2.0 carry what is under them. */
const accepted = new Set(["0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "Zlib"]);
const rule = "=".repeat(100);

interface Notice {
  readonly title: string;
  readonly text: string;
}

export interface Parts {
  /** Folder of Node's package. */
  readonly node: string;
  readonly libraries: readonly Library[];
  /** Folders of the modules. */
  readonly modules: readonly string[];
}

export async function renderNotices({ node, libraries, modules }: Parts): Promise<string> {
  const notices: Notice[] = [
    { title: `Node.js ${nodeVersion} (lib/node)`, text: await readFile(join(node, "LICENSE"), "utf8") },
    ...libraries.map(({ title, licence }) => ({ title, text: licence })),
  ];
  for (const folder of modules) notices.push(await noticeOf(folder));
  const opening =
    "Hawser is under the Apache License, Version 2.0 (LICENSE). This bundle carries the works of others, each under\n" +
    "the licence that follows its name.\n";
  return [
    opening,
    ...notices.map(({ title, text }) => `${rule}\n${title}\n${rule}\n\n${text.trim()}\n`),
  ].join("\n");
}

async function noticeOf(folder: string): Promise<Notice> {
  const text = await readFile(join(folder, "package.json"), "utf8");
  const { name, version, license } = JSON.parse(text) as Record<"name" | "version" | "license", string>;
  checkLicence(name, license);
  const files = (await readdir(folder)).filter((file) => licenceFile.test(file)).toSorted();
  const texts = await Promise.all(files.map((file) => readFile(join(folder, file), "utf8")));
  const all = texts.length > 0 ? texts : await openingsOf(folder);
  if (all.length === 0) throw new ReleaseError(`the module ${name} has no text of its licence, ${license}`);
  return { title: `${name} ${version} (${license})`, text: all.join("\n\n") };
}

/** Every licence of an expression such as "(MIT AND Zlib)" must be a known one. */
export function checkLicence(name: string, expression: unknown): void {
  const terms =
    typeof expression === "string" ? expression.split(/\(|\)|\s+(?:AND|OR)\s+/).filter(Boolean) : [];
  const strange = terms.find((term) => !accepted.has(term.trim()));
  if (terms.length === 0 || strange !== undefined)
    throw new ReleaseError(
      `the licence of the module ${name} is ${JSON.stringify(expression)}, which is not accepted`,
    );
}

/** Packages without a file of their own have the licence at the head of their sources: each one of them once. */
async function openingsOf(folder: string): Promise<string[]> {
  const found = new Set<string>();
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile() || !/\.[cm]?js$/.test(entry.name)) continue;
    const source = await readFile(join(entry.parentPath, entry.name), "utf8");
    const comment = /^(?:"use strict";\n)?((?:\/\/.*\n)+)/.exec(source)?.[1]?.replace(/^\/\/ ?/gm, "");
    if (comment?.includes("Copyright")) found.add(comment.trim());
  }
  return [...found].toSorted();
}
