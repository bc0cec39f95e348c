// "hawser load" as it ships, on every containerd: archives go in, pods start from what comes of them, and no registry is
// there. The oracle is containerd's own import.

import { spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readdirSync, readlinkSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ArchiveImage, digestOf, dockerArchive, layoutOf, ociArchive } from "../fakes/archive.ts";
import { FakeRegistry } from "../fakes/registry.ts";
import { dir, file, tar, tarGz } from "../fakes/tar.ts";
import { packZstd } from "../fakes/zstd.ts";
import { PrivateContainerd, scratch } from "../harness/containerd.ts";
import { fields, textOf } from "../harness/cri.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { busyboxLayers } from "../harness/images.ts";
import { implicit, oddLayers } from "../harness/odd.ts";
import { settled } from "../harness/parity.ts";
import { eventually } from "../harness/process.ts";
import { readContent, readImages, readLayers, readSnapshots } from "../harness/state.ts";
import { differences } from "../harness/tree.ts";
import { containerdRelease, minors } from "../harness/versions.ts";

const program = fileURLToPath(new URL("../../dist/main.js", import.meta.url));
const pauseName = "registry.example.com/pause:1";

let folder = "";

beforeAll(() => {
  folder = mkdtempSync(join(scratch(), "load-"));
});

afterAll(() => {
  rmSync(folder, { recursive: true });
});

interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** Starts "hawser load". */
function begin(containerd: Pick<PrivateContainerd, "root" | "address">, args: readonly string[], more = "") {
  const config = join(folder, `load-${randomBytes(4).toString("hex")}.toml`);
  const { root, address } = containerd;
  writeFileSync(config, `[containerd]\naddress = "${address}"\nconfig_file = "${root}/config.toml"\n${more}`);
  const child = spawn(process.execPath, [program, "load", "--config", config, ...args]);
  const exit = new Promise<number | null>((resolve) => {
    child.once("exit", resolve);
  });
  const ended = async (): Promise<Ended> => {
    const [code, out, err] = await Promise.all([exit, text(child.stdout), text(child.stderr)]);
    return { code, out, err };
  };
  return { child, ended: ended() };
}

/** Runs it to its end; what there is of input goes in by a pipe. */
async function load(
  containerd: PrivateContainerd,
  args: readonly string[],
  input: Readable = Readable.from([]),
  more = "",
): Promise<Ended> {
  const { child, ended } = begin(containerd, args, more);
  input.pipe(child.stdin);
  return await ended;
}

/** Until it has a file of its own, which what comes through a pipe goes into. */
async function untilReading(pid: number | undefined): Promise<void> {
  const descriptors = `/proc/${pid}/fd`;
  await eventually(async () => {
    const open = readdirSync(descriptors).map((name) => readlinkSync(join(descriptors, name)));
    expect(open.some((path) => path.endsWith("/archive (deleted)"))).toBe(true);
  }, "the reading of the archive");
}

function write(name: string, bytes: Buffer): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

/** The id that CRI knows this name by; empty when it knows none. */
async function idOf({ cri }: PrivateContainerd, name: string): Promise<string> {
  const [image] = fields(await cri.imageStatus(name)).get(1) ?? [];
  return image instanceof Uint8Array ? textOf(fields(image), 1) : "";
}

/** An image that runs, and has a layer of its own. */
function appOf(name: string): ArchiveImage {
  const own = tar([dir("own"), file("own/name", name)]);
  return {
    layers: [...busyboxLayers().map(({ bytes }) => bytes), own],
    annotations: { "io.containerd.image.name": `registry.example.com/${name}` },
    platform: { os: "linux", architecture: process.arch === "arm64" ? "arm64" : "amd64" },
    tags: [`registry.example.com/${name}`],
  };
}

const pause: ArchiveImage = {
  layers: busyboxLayers().map(({ bytes }) => bytes),
  config: { config: { Entrypoint: ["/bin/busybox", "sleep", "1000000"] } },
  tags: [pauseName],
};

describe.each(minors)("on containerd %s", (minor) => {
  let containerd: PrivateContainerd;

  beforeAll(async () => {
    containerd = await PrivateContainerd.start({
      release: containerdRelease(minor),
      sandboxImage: pauseName,
    });
  });

  afterAll(async () => {
    await containerd[Symbol.asyncDispose]();
  });

  test("a pod starts from what was loaded, its sandbox's image included, with no registry", async () => {
    const docker = write(`pod-${minor}.tar`, dockerArchive([pause, appOf("team/app:1")]));
    const { code, out, err } = await load(containerd, [docker]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out.split("\n").map((line) => line.split("  ")[0])).toEqual([
      pauseName,
      "registry.example.com/team/app:1",
      "",
    ]);
    const id = await idOf(containerd, "registry.example.com/team/app:1");
    expect(out).toContain(id);
    expect(await containerd.run(id, ["/bin/cat", "/own/name"])).toBe("team/app:1\n");
    await settled(containerd);
  });

  test("content, snapshots and trees are what containerd's own import makes of the archive", async () => {
    const image: ArchiveImage = {
      ...appOf("team/odd:1"),
      // Those of a type that says how they are packed, which is all that an archive's are here.
      layers: oddLayers().flatMap(({ mediaType, bytes }) => (mediaType === undefined ? [bytes] : [])),
    };
    const archive = write(`odd-${minor}.tar`, ociArchive([image]));
    await using ours = await PrivateContainerd.start({ release: containerdRelease(minor) });
    await using theirs = await PrivateContainerd.start({ release: containerdRelease(minor) });
    theirs.ctr("images", "import", "--snapshotter", "overlayfs", archive);
    expect((await load(ours, [archive])).code).toBe(0);
    await settled(ours);
    // Newer ones keep the archive's index.json until it is collected.
    const documents = new Set((await readContent(ours)).map((line) => line.split(" ")[0]));
    const content = (await readContent(theirs)).filter((line) => documents.has(line.split(" ")[0]));
    expect(await readContent(ours)).toEqual(content);
    expect(await readSnapshots(ours)).toEqual(await readSnapshots(theirs));
    const [left, right] = [await readLayers(theirs), await readLayers(ours)];
    expect(left.size).toBeGreaterThan(1);
    for (const [chainID, tree] of left)
      expect(differences(tree, right.get(chainID) ?? new Map(), implicit), chainID).toEqual([]);
    const name = "registry.example.com/team/odd:1";
    expect(await idOf(ours, name)).toBe(await idOf(theirs, name));
    const [manifest] = layoutOf([image]).manifests;
    expect(await idOf(ours, `registry.example.com/team/odd@${manifest?.digest}`)).toBe(
      await idOf(ours, name),
    );
  });

  test("a name that is taken stands for what was loaded last, which outlasts garbage collection", async () => {
    const name = "registry.example.com/team/again:1";
    const versions = ["one", "two"].map((version): ArchiveImage => {
      const { layers } = appOf(`team/again-${version}:1`);
      return { layers, tags: [name] };
    });
    const ids: string[] = [];
    for (const [nth, version] of versions.entries()) {
      const ended = await load(containerd, [write(`again-${minor}-${nth}.tar`, dockerArchive([version]))]);
      expect(ended).toMatchObject({ code: 0, err: "" });
      ids.push(await idOf(containerd, name));
    }
    const [former = "", latter = ""] = ids;
    expect(former).not.toBe(latter);
    const before = await readContent(containerd);
    // Has everything collected that nothing holds.
    await containerd.cri.removeImage(former);
    containerd.ctr("images", "rm", "--sync", former);
    const after = await readContent(containerd);
    expect(after.length).toBeLessThan(before.length);
    expect(await containerd.run(latter, ["/bin/cat", "/own/name"])).toBe("team/again-two:1\n");
  });
});

describe("an archive", () => {
  let containerd: PrivateContainerd;

  beforeAll(async () => {
    containerd = await PrivateContainerd.start();
  });

  afterAll(async () => {
    await containerd[Symbol.asyncDispose]();
  });

  test("is read in whatever it is packed, from a file and from a pipe", async () => {
    const packings = {
      plain: (bytes: Buffer) => bytes,
      gzip: (bytes: Buffer) => gzipSync(bytes),
      zstd: (bytes: Buffer) => packZstd(bytes),
    };
    for (const [packing, pack] of Object.entries(packings)) {
      const name = `registry.example.com/packed/${packing}:1`;
      const bytes = pack(dockerArchive([{ layers: [tar([file(packing)])], tags: [name] }]));
      const ended =
        packing === "gzip"
          ? await load(containerd, ["-"], Readable.from([bytes.subarray(0, 3), bytes.subarray(3)]))
          : await load(containerd, [write(`${packing}.tar`, bytes)]);
      expect(ended, name).toMatchObject({ code: 0, err: "" });
      expect(await idOf(containerd, name)).toMatch(/^sha256:/);
    }
    await settled(containerd);
  });

  test("that another containerd has exported is loaded", async () => {
    const name = "registry.example.com/team/exported:1";
    const image = { ...appOf("team/exported:1") };
    await load(containerd, [write("export-from.tar", ociArchive([image]))]);
    const exported = join(folder, "exported.tar");
    containerd.exportTo(exported, name);
    await using other = await PrivateContainerd.start();
    expect(await load(other, [exported])).toMatchObject({ code: 0, err: "" });
    expect(await idOf(other, name)).toBe(await idOf(containerd, name));
  });

  test("of several images with several names each has all of them, and layers that they share are one", async () => {
    const shared = tarGz([file("shared", randomBytes(1000))]);
    const images = ["one", "two", "three", "four", "five"].map((name) => ({
      layers: [shared, tar([file(name)]), shared],
      tags: [`registry.example.com/many/${name}:1`, `registry.example.com/many/${name}:2`],
    }));
    const ended = await load(containerd, [write("many.tar", dockerArchive(images)), "--json"]);
    expect(ended.out).not.toContain("error");
    expect(ended).toMatchObject({ code: 0, err: "" });
    const lines = ended.out.trim().split("\n");
    const told = lines.map((line) => JSON.parse(line) as { name: string; id: string; seconds: number });
    expect(told.map(({ name }) => name).sort()).toEqual(images.flatMap(({ tags }) => tags).sort());
    for (const { name, id, seconds } of told) {
      expect(await idOf(containerd, name)).toBe(id);
      expect(seconds).toBeGreaterThan(0);
    }
    await settled(containerd);
  });

  test("of one image for several platforms has this node's part of it loaded, under the name that is said", async () => {
    const own = process.arch === "arm64" ? "arm64" : "amd64";
    const images = [own, "s390x"].map((architecture) => ({
      layers: [tar([file(architecture)])],
      platform: { os: "linux", architecture },
    }));
    const archive = write("platforms.tar", ociArchive(images));
    const name = "registry.example.com/platforms:1";
    expect(await load(containerd, [archive, "--name", name])).toMatchObject({ code: 0, err: "" });
    const config = await idOf(containerd, name);
    const { entries } = layoutOf(images);
    const wanted = entries.find(({ name: path }) => path === `blobs/sha256/${config.slice(7)}`);
    expect(String(wanted?.content)).toContain(`"architecture":"${own}"`);
    expect(String(wanted?.content)).toContain(digestOf(tar([file(own)])));
  });

  test("with an image that cannot be loaded has the others loaded, and each failure told in one line", async () => {
    const wrong = digestOf(Buffer.from("something else"));
    const images: ArchiveImage[] = [
      { layers: [tar([file("right")])], tags: ["registry.example.com/mixed/right:1"] },
      { layers: [tarGz([file("lie")])], tags: ["registry.example.com/mixed/lie:1"], diffIDs: [wrong] },
      { layers: [tar([file("bad name")])], tags: ["Registry.example.com/UPPER:1"] },
      { layers: [tar([file("no name")])], tags: null },
      { layers: [], tags: ["registry.example.com/mixed/empty:1"] },
      { layers: [tar([file("few")])], tags: ["registry.example.com/mixed/few:1"], diffIDs: [] },
      { layers: [tar([file("former")])], tags: ["twice:1"] },
      { layers: [tar([file("latter")])], tags: ["docker.io/library/twice:1"] },
    ];
    const { code, out, err } = await load(containerd, [write("mixed.tar", dockerArchive(images))]);
    expect(code).toBe(1);
    const told = out.trim().split("\n").sort();
    expect(told.map((line) => line.split("  ")[0])).toEqual([
      "docker.io/library/twice:1",
      "registry.example.com/mixed/right:1",
    ]);
    expect(told[1]).toMatch(/ {2}sha256:[0-9a-f]{64} {2}\d+\.\d\d s$/);
    const latest = (await readContent(containerd)).some((line) =>
      line.includes(digestOf(tar([file("latter")]))),
    );
    expect(latest).toBe(true);
    const lines = err.trim().split("\n").sort();
    expect(lines).toHaveLength(5);
    expect(lines.splice(2, 1)[0]).toContain("mixed/few:1: an image of 1 layers with 0 diffIDs");
    expect(lines[0]).toContain("cannot load Registry.example.com/UPPER:1");
    expect(lines[0]).toContain("must be lowercase");
    expect(lines[1]).toContain("cannot load registry.example.com/mixed/empty:1: an image without layers");
    expect(lines[2]).toContain("cannot load registry.example.com/mixed/lie:1");
    expect(lines[2]).toContain(wrong);
    expect(lines[3]).toMatch(/cannot load sha256:[0-9a-f]{64}: the archive gives it no name \(--name /);
    expect(await idOf(containerd, "registry.example.com/mixed/lie:1")).toBe("");
    await settled(containerd);
  });

  test("whose files are not what they are called has nothing of them loaded", async () => {
    const image = appOf("team/forged:1");
    const { entries } = layoutOf([image]);
    const forgeries = {
      manifest: (content: Buffer) => content.lastIndexOf("}"),
      layer: (content: Buffer) => content.indexOf("team/forged:1"),
    };
    for (const [kind, placeIn] of Object.entries(forgeries)) {
      const forged = entries.map(({ name, content: given = "" }) => {
        const content = Buffer.from(given);
        const isIt = kind === "manifest" ? content.includes('"layers":[{') : content.includes("own/name");
        if (isIt && content[0] !== 0x1f) content[placeIn(content)] = 0x20;
        return file(name, content);
      });
      const { code, out, err } = await load(containerd, [write(`forged-${kind}.tar`, tar(forged))]);
      expect({ code, out }, kind).toEqual({ code: 1, out: "" });
      expect(err, kind).toMatch(
        /^hawser: cannot load registry\.example\.com\/team\/forged:1: .*sha256:.*\n$/,
      );
      expect(await idOf(containerd, "registry.example.com/team/forged:1"), kind).toBe("");
    }
    await settled(containerd);
  });

  test("that claims a digest for another image is not believed", async () => {
    const image = { ...appOf("team/claimed:1") };
    const other = `registry.example.com/team/claimed@${digestOf(Buffer.from("another image"))}`;
    const archive = ociArchive([{ ...image, annotations: { "org.opencontainers.image.ref.name": other } }]);
    const { code, err } = await load(containerd, [write("claimed.tar", archive)]);
    expect(code).toBe(1);
    expect(err).toContain("by this name");
    expect((await readImages(containerd)).some((line) => line.includes(other))).toBe(false);
  });

  test("that is none, or cannot be had, is told in one line that says what to do", async () => {
    const named = write("named.tar", dockerArchive([appOf("team/a:1"), appOf("team/b:1")]));
    const cases: [args: string[], expected: RegExp][] = [
      [[join(folder, "absent.tar")], /absent\.tar: it cannot be opened: ENOENT$/],
      [[folder], /it is a folder, not an archive \(tar -C FOLDER -cf FILE \. makes one\)$/],
      [
        [write("other.tar", tar([file("README", "hello")]))],
        /it holds no images: there is neither an index\.json/,
      ],
      [[named, "--name", "registry.example.com/one:1"], /it holds 2 images, and a name is for one$/],
    ];
    for (const [args, expected] of cases) {
      const { code, out, err } = await load(containerd, args);
      expect({ code, out }, String(args)).toEqual({ code: 1, out: "" });
      expect(err.split("\n"), err).toHaveLength(2);
      expect(err.trim()).toMatch(expected);
      expect(err).toMatch(/^hawser: /);
    }
    await settled(containerd);
  });

  test("for which the disk has too little left is not loaded, and the key that says so is named", async () => {
    const archive = write("disk.tar", dockerArchive([appOf("team/disk:1")]));
    const packed = write("disk.tar.gz", gzipSync(dockerArchive([appOf("team/disk:1")])));
    const more = '[prewarm]\nmin_free_disk = "1024TiB"\n';
    for (const path of [archive, packed]) {
      const { code, err } = await load(containerd, [path], undefined, more);
      expect(code).toBe(1);
      expect(err).toContain("prewarm.min_free_disk");
    }
    expect(await idOf(containerd, "registry.example.com/team/disk:1")).toBe("");
    await settled(containerd);
  });

  test("is let go of when the command is interrupted in the middle of a layer, and no byte of it stays", async () => {
    const large = tar([file("zeros", Buffer.alloc(400_000_000))]);
    const archive = write(
      "large.tar",
      dockerArchive([{ layers: [large], tags: ["registry.example.com/large:1"] }]),
    );
    const { child, ended } = begin(containerd, [archive], '[prewarm]\nmin_free_disk = "1MiB"\n');
    const spools = join(containerd.root, "root/io.hawser/spool");
    await eventually(async () => {
      const sizes = readdirSync(spools, { recursive: true, encoding: "utf8" }).map(
        (name) => statSync(join(spools, name)).size,
      );
      expect(Math.max(...sizes)).toBeGreaterThan(10_000_000);
    }, "bytes in the spool");
    child.kill("SIGINT");
    const { code, err } = await ended;
    expect(code).toBe(1);
    expect(err).toMatch(/^hawser: .*large\.tar: interrupted\n$/);
    expect(readdirSync(spools)).toEqual([]);
    await settled(containerd);
  });

  test("that is a pipe whose other end nobody opens is let go of as well", async () => {
    const pipe = join(folder, "pipe");
    spawnSync("mkfifo", [pipe]);
    const { child, ended } = begin(containerd, [pipe]);
    await untilReading(child.pid);
    child.kill("SIGINT");
    expect((await ended).code).toBe(1);
  });

  test("with layers that are there as another image's brings along what the content store lacks of it", async () => {
    await using registry = await FakeRegistry.start();
    const layer = tar([file("packed otherwise")]);
    const image = registry.put("team/packed:v1", [{ bytes: gzipSync(layer) }]);
    await containerd.cri.mustPull(image.reference);
    const name = "registry.example.com/packed-otherwise:1";
    const archive = write("packed-otherwise.tar", dockerArchive([{ layers: [layer], tags: [name] }]));
    expect(await load(containerd, [archive])).toMatchObject({ code: 0, err: "" });
    await settled(containerd);
    expect(containerd.ctr("images", "check")).toMatch(new RegExp(`^${name} .*complete \\(2/2\\)`, "m"));
  });

  test("is let go of when the command is interrupted, and nothing stays behind", async () => {
    const { child, ended } = begin(containerd, ["-"]);
    // A pipe that does not end: it reads until it is interrupted.
    child.stdin.write(dockerArchive([appOf("team/interrupted:1")]).subarray(0, 4096));
    await untilReading(child.pid);
    child.kill("SIGINT");
    child.stdin.end();
    const { code, err } = await ended;
    expect(code).toBe(1);
    expect(err).toContain("interrupted");
    await settled(containerd);
  });

  test("without containerd is not loaded, and its address is named", async () => {
    const archive = write("alone.tar", dockerArchive([appOf("team/alone:1")]));
    const absent = { root: folder, address: join(folder, "absent.sock") };
    const { code, err } = await begin(absent, [archive]).ended;
    expect(err).toMatch(/^hawser: .*alone\.tar: .*absent\.sock.*\n$/);
    expect(code).toBe(1);
  });
});

test("beside a daemon: a pull of an image with layers that were loaded fetches none of them", async () => {
  await using containerd = await PrivateContainerd.start();
  await using registry = await FakeRegistry.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const layer = tar([file("beside")]);
  const image = registry.put("team/beside:1", [{ bytes: gzipSync(layer) }]);
  const archive = write("beside.tar", dockerArchive([{ layers: [layer], tags: ["example.com/beside:1"] }]));
  expect(await load(containerd, [archive])).toMatchObject({ code: 0, err: "" });
  await hawser.cri.mustPull(image.reference);
  expect(image.layers.flatMap(({ digest }) => registry.rangesOf(digest))).toEqual([]);
});
