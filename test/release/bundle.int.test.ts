// The bundle as it is shipped: what is in it, and that it runs and pulls on a bare Debian that has nothing else.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { root as checkout } from "../../config/release/place.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { buildTestBundle, type TestBundle, testBundle } from "../harness/bundle.ts";
import { PrivateContainerd, scratch } from "../harness/containerd.ts";
import { BareRoot } from "../harness/debian.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { pushImage } from "../harness/images.ts";
import { PrivateRegistry } from "../harness/registry.ts";

/** Modules, a Debian and a Node are fetched when they are asked for first. */
const firstTimeMs = 600_000;
/** Where nobody expects it, with a space. */
const place = "/srv/some where";

let bundle: TestBundle;
let debian: BareRoot;
/** The bundle's top as seen from within, and from here. */
let within = "";
let top = "";

beforeAll(async () => {
  bundle = await testBundle();
  debian = await BareRoot.make();
  within = `${place}/${bundle.name}`;
  top = join(debian.path, within);
  mkdirSync(join(debian.path, place));
  execFileSync("tar", ["-xzf", bundle.archive, "-C", join(debian.path, place)]);
}, firstTimeMs);

afterAll(() => {
  debian[Symbol.dispose]();
});

/** Runs a program in the bare Debian and returns what it printed. */
function output(command: string, ...args: string[]): string {
  const { status, stdout, stderr } = debian.run(command, ...args);
  expect([status, stderr], `${command} ${args.join(" ")}`).toEqual([0, ""]);
  return stdout;
}

function filesIn(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => relative(folder, join(entry.parentPath, entry.name)))
    .sort();
}

describe("what it is", () => {
  test(
    "the same sources give the same bytes",
    async () => {
      const out = mkdtempSync(join(tmpdir(), "again-"));
      try {
        await buildTestBundle("amd64", out);
        const [again] = readdirSync(out);
        const digest = (path: string): string =>
          createHash("sha256").update(readFileSync(path)).digest("hex");
        expect(again).toBe(`${bundle.name}.tar.gz`);
        expect(digest(join(out, again ?? ""))).toBe(digest(bundle.archive));
      } finally {
        rmSync(out, { recursive: true });
      }
    },
    firstTimeMs,
  );

  test("one folder, sorted, of root's, of one time, and only programs can be run", () => {
    const listed = execFileSync("tar", ["-tvzf", bundle.archive, "--full-time"], {
      encoding: "utf8",
      env: { TZ: "UTC" },
    });
    const lines = listed.trimEnd().split("\n");
    const paths = lines.map((line) => line.split(/\s+/).slice(5).join(" "));
    expect(lines.length).toBeGreaterThan(80);
    expect(paths.filter((path) => !path.startsWith(`${bundle.name}/`))).toEqual([]);
    // A slash sorts before every other character: each folder's names in order, and its files behind it.
    const key = (path: string): string => path.replace(/\/$/, "").replaceAll("/", "\0");
    expect(paths.map(key)).toEqual(paths.map(key).sort());
    const shape = /^(drwxr-xr-x|-rw-r--r--|-rwxr-xr-x) 0\/0 +\d+ 1980-01-01 00:00:00 /;
    expect(lines.filter((line) => !shape.test(line))).toEqual([]);
    const programs = lines
      .filter((line) => line.startsWith("-rwx"))
      .map((line) => line.split("/").slice(2).join("/"));
    expect(programs).toEqual(["bin/hawser", "lib/node", "libexec/hawser-launch"]);
  });

  test("what a node needs is in it, and what only developers read is not", () => {
    const files = filesIn(top);
    const shallow = files.filter((path) => !path.startsWith("lib/hawser/"));
    expect(shallow).toEqual([
      "LICENSE",
      "SHA256SUMS",
      "THIRD-PARTY-NOTICES",
      "bin/hawser",
      "lib/libisal.so.2",
      "lib/node",
      "libexec/hawser-launch",
      "share/hawser.toml",
      "share/systemd/hawser.service",
      "share/systemd/hawser.socket",
    ]);
    const folders = new Set(files.map((path) => /^lib\/hawser\/([^/]+)/.exec(path)?.[1]));
    expect(folders).toEqual(new Set([undefined, "dist", "native", "node_modules", "package.json"]));
    expect(
      files.filter((path) =>
        /\.(ts|map|gyp|cc|bare)$|(?<!LICENSE)\.md$|\/\.|\/(vitest|typescript)\//.test(path),
      ),
    ).toEqual([]);
    expect(readdirSync(join(top, "lib/hawser/node_modules"))).toEqual(["piscina"]);
  });

  test("every file is in SHA256SUMS, and is what it says", () => {
    const listed = readFileSync(join(top, "SHA256SUMS"), "utf8").trimEnd().split("\n");
    const paths = listed.map((line) => line.replace(/^[0-9a-f]{64} {2}/, ""));
    expect(paths).toEqual(filesIn(top).filter((path) => path !== "SHA256SUMS"));
    output("sh", "-c", `cd '${within}' && sha256sum --check --strict --quiet SHA256SUMS`);
  });

  test("nothing in it tells where it was made", () => {
    const files = filesIn(top).filter((path) => path !== "lib/node");
    const texts = files.map((path) => [path, readFileSync(join(top, path), "latin1")] as const);
    expect(texts.length).toBeGreaterThan(60);
    for (const trace of [checkout, "/hawser-release/", "_resolved", tmpdir()])
      expect(
        texts.filter(([, text]) => text.includes(trace)).map(([path]) => path),
        trace,
      ).toEqual([]);
  });

  test("the licence of everything that others wrote is in it", () => {
    const notices = readFileSync(join(top, "THIRD-PARTY-NOTICES"), "utf8");
    expect(notices).toMatch(/^Node\.js \d+\.\d+\.\d+ \(lib\/node\)$/m);
    expect(notices).toMatch(/^ISA-L \(lib\/libisal\.so\.2\), of Debian's libisal2 \d/m);
    expect(notices).toMatch(/^zstd \(in hawser\.node\), of Debian's libzstd-dev \d/m);
    // Each file of the program names the modules that it was made of.
    const dist = join(top, "lib/hawser/dist");
    const sources = filesIn(dist).map((path) => readFileSync(join(dist, path), "utf8"));
    const names = sources.flatMap((text) =>
      [...text.matchAll(/^\s*\/\/ node_modules\/((?:@[^/\n]+\/)?[^/\n]+)\//gm)].map(([, name]) => name),
    );
    const modules = [...new Set([...names, ...readdirSync(join(top, "lib/hawser/node_modules"))])];
    expect(modules.length).toBeGreaterThan(20);
    expect(modules).toEqual(expect.arrayContaining(["undici", "@grpc/grpc-js", "piscina"]));
    const titles = modules.map((folder) => {
      const text = readFileSync(join(checkout, "node_modules", folder ?? "", "package.json"), "utf8");
      const { name, version, license } = JSON.parse(text) as Record<string, string>;
      return `${name} ${version} (${license})`;
    });
    expect(titles.filter((title) => !notices.includes(`\n${title}\n====`))).toEqual([]);
    // Texts, and not names alone.
    expect(
      notices.match(/Permission is hereby granted|Redistribution and use in source/g)?.length,
    ).toBeGreaterThan(30);
  });
});

describe("on a bare Debian", () => {
  test("which has no Node", () => {
    expect(debian.run("sh", "-c", "command -v node nodejs").stdout).toBe("");
    expect(debian.run("find", "/usr", "-name", "libisal*").stdout).toBe("");
  });

  test("it starts through links, relative and absolute, and from anywhere, and is told where it is", () => {
    const version = new RegExp(`^${within}\\nhawser \\d+\\.\\d+\\.\\d+ \\(node v22\\.\\d+\\.\\d+\\)\\n$`);
    const say = "--import=data:text/javascript,console.log(process.env.HAWSER_BUNDLE)";
    const start = (...command: string[]): string =>
      output("env", `NODE_OPTIONS=${say}`, "HAWSER_BUNDLE=/elsewhere", ...command);
    mkdirSync(join(debian.path, "/opt/hawser"), { recursive: true });
    symlinkSync(`../..${within}`, join(debian.path, "opt/hawser/current"));
    symlinkSync("/opt/hawser/current/bin/hawser", join(debian.path, "usr/local/bin/hawser"));
    symlinkSync("hawser", join(debian.path, "usr/local/bin/tow"));
    for (const name of [`${within}/bin/hawser`, "/opt/hawser/current/bin/hawser", "hawser", "tow"])
      expect(start(name, "version"), name).toMatch(version);
    for (const command of [
      "./bin/hawser",
      "cd bin && ./hawser",
      "cd bin && sh hawser",
      "cd bin && sh ../bin/hawser",
    ])
      expect(start("sh", "-c", `cd '${within}' && ${command} version`), command).toMatch(version);
    expect(start("sh", "-c", "cd /usr/local/bin && sh tow version")).toMatch(version);
    expect(output("hawser", "config", "show")).toMatch(
      /^cri\.listen +"\/run\/hawser\/hawser\.sock" +default$/m,
    );
    const { status, stderr } = debian.run("hawser", "two words", "");
    expect([status, stderr]).toEqual([2, 'hawser: there is no command "two words" (see "hawser --help")\n']);
  });

  test("the addon loads with its own libisal, and inflates", () => {
    const program = `
      const addon = require("${within}/lib/hawser/native/build/hawser.node");
      const { realpathSync } = require("node:fs");
      const { gzipSync, zstdCompressSync } = require("node:zlib");
      const content = Buffer.alloc(300_000, "content");
      for (const [inflater, packed] of [
        [addon.createGzip(), gzipSync(content)],
        [addon.createZstd(), zstdCompressSync(content)],
      ]) {
        const [output, counts] = [Buffer.alloc(400_000), new Float64Array(2)];
        const status = addon.inflate(inflater, packed, 0, packed.length, output, 0, output.length, counts);
        console.log(status, counts[0] === packed.length, output.subarray(0, counts[1]).equals(content));
      }
      const { sharedObjects } = process.report.getReport();
      console.log(...sharedObjects.filter((path) => path.includes("isal")).map((path) => realpathSync(path)));`;
    const lines = output(`${within}/lib/node`, "-e", program).split("\n");
    expect(lines).toEqual(["1 true true", "1 true true", `${within}/lib/libisal.so.2`, ""]);
  });

  test("every file of the program finds what it imports", () => {
    const dist = join(top, "lib/hawser/dist");
    // The program and its worker do something when they are loaded; other tests run them.
    const files = filesIn(dist).filter((path) => path !== "main.js" && path !== "worker.js");
    expect(files.length).toBeGreaterThan(30);
    const program = `
      const loaded = await Promise.all(process.argv.slice(1).map((path) => import("${within}/lib/hawser/dist/" + path)));
      console.log(loaded.length);`;
    expect(output(`${within}/lib/node`, "--input-type=module", "-e", program, ...files)).toBe(
      `${files.length}\n`,
    );
  });

  test("the daemon pulls, with nothing but what is in the bundle and in every Debian", async () => {
    await using registry = await PrivateRegistry.start();
    await using containerd = await PrivateContainerd.start();
    // containerd's root, the configuration and the socket, at the same place on both sides.
    using _shown = debian.bind(scratch());
    const image = await pushImage(registry, "release/image:v1", [
      { bytes: tarGz([file("etc/hello", "from a bundle", { mode: 0o4750 })]) },
    ]);
    await using daemon = await PrivateHawser.start({
      containerd: containerd.address,
      command: debian.command(`${within}/bin/hawser`),
    });
    const id = await daemon.cri.mustPull(image.reference);
    expect(id).toBe(image.config.digest);
    expect(await daemon.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1');
    const snapshots = join(containerd.snapshotterRoot, "snapshots");
    // Those of the self-test may not have been collected yet.
    const unpacked = readdirSync(snapshots)
      .map((snapshot) => join(snapshots, snapshot, "fs/etc/hello"))
      .filter((path) => existsSync(path));
    const found = unpacked.map((path) => [readFileSync(path, "utf8"), statSync(path).mode & 0o7777]);
    expect(found).toEqual([["from a bundle", 0o4750]]);
    // The front's and the puller's.
    const mapped = [daemon.pid, ...daemon.children()]
      .flatMap((pid) => readFileSync(`/proc/${pid}/maps`, "utf8").split("\n"))
      .flatMap((line) => /\s(\/\S.*)$/.exec(line)?.[1] ?? [])
      .map((path) => path.replace(debian.path, ""));
    const ours = new Set(
      mapped.filter((path) => path.startsWith(`${within}/`)).map((path) => relative(within, path)),
    );
    expect(ours).toEqual(new Set(["lib/node", "lib/libisal.so.2", "lib/hawser/native/build/hawser.node"]));
    const others = new Set(
      mapped.filter((path) => !path.startsWith(`${within}/`)).map((path) => path.replace(/^.*\//, "")),
    );
    const system = /^(ld-linux-x86-64|lib(c|m|dl|pthread|stdc\+\+|gcc_s)|libnss_\w+|libresolv)\.so\.[\d.]+$/;
    expect([...others].filter((name) => !system.test(name))).toEqual([]);
    expect(others).toContain("libc.so.6");
  });
});
