// The containerds that Hawser is held against: the machine's own, and those of newer Debian suites in private folders.
//
// A newer one is a package of another suite that is downloaded and unpacked, never installed. Its containerd, shim and ctr run on this machine;
// its runc does not, and the machine's is used.

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { unpackPackages } from "../../config/release/debian.ts";

/** What a version must be, so that nobody believes that one was tested which was not. */
const expected = {
  "1.6": { suite: undefined, version: /\b1\.6\.\d+/ },
  "1.7": { suite: "trixie", version: /\b1\.7\.\d+/ },
  "2.1": { suite: "forky", version: /\b2\.1\.\d+/ },
} as const;

export type Minor = keyof typeof expected;

export const allMinors = Object.keys(expected) as Minor[];

/** Versions to test; `HAWSER_CONTAINERD=1.7` in the environment picks one. */
export const minors: readonly Minor[] = allMinors.filter(
  (minor) => (process.env["HAWSER_CONTAINERD"] ?? minor) === minor,
);

export interface Release {
  readonly minor: Minor;
  /** As `containerd --version` says it. */
  readonly version: string;
  /** The folder to look for its programs in before all others; undefined for the machine's own. */
  readonly path: string | undefined;
}

const folder = "/var/tmp/hawser-containerd";

/** Downloads once; throws one clear line when the version cannot be had or is another than expected. */
export function containerdRelease(minor: Minor): Release {
  const { suite, version: range } = expected[minor];
  const path = suite === undefined ? undefined : join(unpacked(suite), "usr/bin");
  const program = path === undefined ? "containerd" : join(path, "containerd");
  const version = execFileSync(program, ["--version"], { encoding: "utf8" }).trim();
  if (!range.test(version)) {
    throw new Error(
      `${program} is ${JSON.stringify(version)}, and tests for ${minor} expect ${String(range)}`,
    );
  }
  return { minor, version, path };
}

function unpacked(suite: string): string {
  const done = join(folder, suite);
  if (existsSync(join(done, "usr/bin/containerd"))) return done;
  mkdirSync(folder, { recursive: true, mode: 0o755 });
  const work = mkdtempSync(join(folder, `${suite}-`));
  try {
    const root = join(work, "root");
    unpackPackages({ names: ["containerd"], suite }, root);
    // Whoever is first wins; the other's is as good.
    if (!existsSync(done)) renameSync(root, done);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new Error(`containerd of Debian ${suite} cannot be had: ${why}`, { cause: error });
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return done;
}
