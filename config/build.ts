// npm run build: the program as it runs, in dist/, as a few files instead of the nine hundred that it and its modules are
// written in. To find, read and link that many was a quarter of what a start cost.
//
// main.js, worker.js and chunks of what is loaded on demand lie beside each other, since native.ts and daemon.ts look for
// what is beside them. It never shortens names: stack traces and profiles stay readable. It checks no types: "npm run check"
// does.

import { chmod, mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build, type Plugin, stop } from "esbuild";

const root = fileURLToPath(new URL("..", import.meta.url));
const entries = { main: "src/main.ts", worker: "src/layer/worker.ts" };

/** A module that looks for a file of its own, and so stays what it is: piscina starts its worker.js. */
export const apart = "piscina";

/** Modules in CommonJS call `require` for Node's own, which is not there in the other kind. */
const banner = `import { createRequire as requireFrom } from "node:module";
const require = requireFrom(import.meta.url);`;

/**
 * undici without what it has of a browser (fetch, WebSocket, caches, cookies) and without its mocks: nothing here uses
 * them, and to load them was a fifth of what loading the puller cost. What its clients need of them they ask for by themselves.
 */
const leanUndici: Plugin = {
  name: "lean-undici",
  setup: ({ onResolve, onLoad }) => {
    onResolve({ filter: /^\.\/lib\/(?:web|mock)\// }, ({ importer }) =>
      importer.endsWith("/undici/index.js") ? { path: "unused", namespace: "lean-undici" } : undefined,
    );
    // Its index makes one of these, and only hands on the others.
    onLoad({ filter: /^unused$/, namespace: "lean-undici" }, () => ({
      contents: "module.exports = new Proxy({}, { get: () => class Unused {} });",
    }));
  },
};

/**
 * Writes src/, or what is named of it, into a folder, with the modules that it needs but for `apart`. Returns the folders
 * of their packages, such as "node_modules/undici", sorted.
 */
export async function buildProgram(
  folder: string,
  files: Readonly<Record<string, string>> = entries,
): Promise<string[]> {
  try {
    const { metafile } = await build({
      absWorkingDir: root,
      entryPoints: { ...files },
      outdir: folder,
      bundle: true,
      splitting: true,
      format: "esm",
      platform: "node",
      target: "node20.19",
      external: [apart],
      plugins: [leanUndici],
      banner: { js: banner },
      // A bundle's THIRD-PARTY-NOTICES has them all.
      legalComments: "none",
      metafile: true,
      logLevel: "warning",
    });
    const packages = Object.keys(metafile.inputs).flatMap((path) => packageOf.exec(path)?.[0] ?? []);
    return [...new Set(packages)].toSorted();
  } finally {
    // esbuild is a process, which would stay.
    await stop();
  }
}

const packageOf = /^.*node_modules\/(?:@[^/]+\/)?[^/]+/;

/** What is begun with, which loads the others. */
const starts: ReadonlySet<string> = new Set(Object.keys(entries).map((name) => `${name}.js`));

/**
 * Puts what is built in the place of what was there before, file by file, and what begins it last: whoever starts the program
 * meanwhile finds one or the other, and all of it where nothing has changed.
 */
async function replaceProgram(place: string): Promise<void> {
  const next = await mkdtemp(`${place}.next-`);
  try {
    await buildProgram(next);
    await mkdir(place, { recursive: true });
    const names = (await readdir(next)).toSorted(
      (one, other) => Number(starts.has(one)) - Number(starts.has(other)),
    );
    await chmod(join(next, "main.js"), 0o755);
    for (const name of names) await rename(join(next, name), join(place, name));
    const former = (await readdir(place)).filter((name) => !names.includes(name));
    for (const name of former) await rm(join(place, name), { recursive: true });
  } finally {
    await rm(next, { recursive: true, force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await replaceProgram(join(root, "dist"));
