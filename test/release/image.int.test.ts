// The image that the Dockerfile makes: built and run by buildah, without a daemon and without a network, on bases that
// are made on the spot: the bare Debian, and one that has no shell.

import { execFile } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { root as checkout } from "../../config/release/place.ts";
import { testBundle } from "../harness/bundle.ts";
import { bareDebian, bareLibraries } from "../harness/debian.ts";

/** A Debian, a Node and modules are fetched when they are asked for first. */
const firstTimeMs = 600_000;
let folder = "";
let version = "";

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "image-"));
  const { archive, name } = await testBundle();
  version = /^hawser-(.+)-linux-amd64$/.exec(name)?.[1] ?? "";
  // What "docker build ." sees after "npm run release".
  const context = join(folder, "context");
  mkdirSync(join(context, "dist-release"), { recursive: true });
  for (const file of ["Dockerfile", ".dockerignore"]) copyFileSync(join(checkout, file), join(context, file));
  copyFileSync(archive, join(context, "dist-release", `${name}.tar.gz`));
}, firstTimeMs);

afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

/** Storage of this file's own; the image's programs run by chroot, which needs no more than this machine allows. */
async function buildah(...args: readonly string[]): Promise<string> {
  const storage = [
    "--root",
    join(folder, "root"),
    "--runroot",
    join(folder, "run"),
    "--storage-driver",
    "vfs",
  ];
  const env = { PATH: process.env["PATH"], HOME: folder, TMPDIR: folder, BUILDAH_ISOLATION: "chroot" };
  const { stdout } = await promisify(execFile)("buildah", [...storage, ...args], { env });
  return stdout.trim();
}

interface Image {
  readonly config: {
    readonly Entrypoint: string[];
    readonly Cmd: string[];
    readonly Env: string[];
    readonly Labels: Record<string, string>;
  };
  readonly rootfs: { readonly diff_ids: string[] };
}

async function inspect(name: string): Promise<Image> {
  const text = await buildah("inspect", "--type", "image", name);
  return (JSON.parse(text) as { readonly OCIv1: Image }).OCIv1;
}

/** Makes a base of a folder, the image on top of it, and a container of that; returns how to run in it. */
async function build(name: string, base: string): Promise<(...command: string[]) => Promise<string>> {
  const empty = await buildah("from", "scratch");
  await buildah("add", "--quiet", empty, base, "/");
  await buildah("commit", "--quiet", "--rm", empty, `localhost/base-${name}`);
  const from = `BASE=localhost/base-${name}`;
  const context = join(folder, "context");
  await buildah("build", "--pull-never", "--build-arg", from, "--tag", `localhost/${name}`, context);
  const container = await buildah("from", "--pull-never", `localhost/${name}`);
  return async (...command) => await buildah("run", container, "--", ...command);
}

test(
  "on a Debian, its entry point is the program, and it has no other Node and no archive",
  async () => {
    const run = await build("debian", await bareDebian());
    const { config, rootfs } = await inspect("localhost/debian");
    expect(config.Labels["org.opencontainers.image.version"]).toBe(version);
    expect(await run(...config.Entrypoint, "version")).toContain(`hawser ${version} (node v22.`);
    const [, bundle] = /^HAWSER_BUNDLE=(.+)$/m.exec(config.Env.join("\n")) ?? [];
    expect(await run("sh", "-c", `"${bundle}/bin/hawser" version`)).toContain(`hawser ${version} (node v22.`);
    expect(await run(...config.Entrypoint, ...config.Cmd)).toContain("Usage: hawser COMMAND");
    expect(await run("hawser", "version")).toContain(`hawser ${version} (node v22.`);
    expect(await run("sh", "-c", "command -v node || echo none")).toBe("none");
    expect(await run("find", "/", "-xdev", "-name", "*.tar.gz", "-size", "+1M")).toBe("");
    const check = "cd /usr/local/lib/hawser && sha256sum --check --strict --quiet SHA256SUMS";
    expect(await run("sh", "-c", check)).toBe("");
    expect(rootfs.diff_ids.slice(0, -1)).toEqual((await inspect("localhost/base-debian")).rootfs.diff_ids);
  },
  firstTimeMs,
);

test(
  "a base may have no shell, and nothing but glibc and libstdc++",
  async () => {
    const run = await build("libraries", await bareLibraries("amd64"));
    const { Entrypoint } = (await inspect("localhost/libraries")).config;
    await expect(run("/bin/sh", "-c", "true")).rejects.toThrow("/bin/sh");
    expect(await run(...Entrypoint, "version")).toContain(`hawser ${version} (node v22.`);
    expect(await run(...Entrypoint, "config", "check")).toBe("defaults: ok");
  },
  firstTimeMs,
);
