// From a folder to an archive that is the same, byte for byte, whoever makes it and whenever: names are sorted, owners
// and times are fixed, and what gzip would say of the moment is left out.

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { chmod, readdir, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { ReleaseError, run } from "./command.ts";

/** 1980-01-01, the first time that every archiver can express. */
const epochSeconds = 315_532_800;

const sumsFile = "SHA256SUMS";

/** Gives every file and folder its mode: these are programs, the rest is read. */
export async function settle(top: string, programs: ReadonlySet<string>): Promise<void> {
  await chmod(top, 0o755);
  for (const entry of await readdir(top, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    if (!entry.isDirectory() && !entry.isFile())
      throw new ReleaseError(`${path} is neither a file nor a folder`);
    const runs = entry.isDirectory() || programs.has(relative(top, path));
    await chmod(path, runs ? 0o755 : 0o644);
  }
}

/** Writes SHA256SUMS, which "sha256sum -c" reads, over every other file; returns how many bytes they have. */
export async function writeSums(top: string): Promise<number> {
  const entries = await readdir(top, { recursive: true, withFileTypes: true });
  const paths = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  const lines: string[] = [];
  let sizeBytes = 0;
  for (const path of paths.toSorted()) {
    const hash = createHash("sha256");
    for await (const piece of createReadStream(path)) {
      hash.update(piece as Buffer);
      sizeBytes += (piece as Buffer).length;
    }
    lines.push(`${hash.digest("hex")}  ${relative(top, path)}\n`);
  }
  await writeFile(join(top, sumsFile), lines.join(""), { mode: 0o644 });
  return sizeBytes;
}

/** The archive of a folder, with that folder's name at the front of every path. */
export async function pack(top: string, archive: string): Promise<void> {
  const flags = [
    "--create",
    // Without extended headers, which would carry times of this machine.
    "--format=ustar",
    "--sort=name",
    `--mtime=@${epochSeconds}`,
    "--owner=0",
    "--group=0",
    "--numeric-owner",
    // The program and not Node's zlib, whose output depends on the processor.
    "--use-compress-program=gzip -n",
  ];
  const part = `${archive}.part`;
  try {
    await run("tar", [...flags, `--file=${part}`, `--directory=${dirname(top)}`, basename(top)]);
    await rename(part, archive);
  } finally {
    await rm(part, { force: true });
  }
}
