// Facts: what containerd says of itself, and above all what makes Hawser leave every pull to it.

import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { createContainerd } from "../../src/containerd/client.ts";
import type { ContainerdFacts } from "../../src/containerd/containerd.ts";
import { introspection, runtime } from "../../src/containerd/methods.ts";
import { FakeContainerd } from "../fakes/containerd.ts";

let fake: FakeContainerd;

beforeEach(async () => {
  fake = await FakeContainerd.create();
});

afterEach(async () => {
  await fake[Symbol.asyncDispose]();
});

const usual = [
  { type: "io.containerd.content.v1", id: "content", exports: { root: "/root/content" } },
  { type: "io.containerd.snapshotter.v1", id: "overlayfs", exports: { root: "/root/overlayfs" } },
];

async function facts(
  version: string,
  options: { plugins?: typeof usual; config?: unknown; snapshotter?: string } = {},
): Promise<ContainerdFacts> {
  fake.answers(introspection.version, { version });
  fake.answers(introspection.plugins, { plugins: options.plugins ?? usual });
  if ("config" in options) {
    const { config } = options;
    const text = typeof config === "string" ? config : JSON.stringify(config);
    fake.answers(runtime.status, { info: config === undefined ? {} : { config: text } });
  }
  await fake.listen();
  const containerd = createContainerd({
    address: fake.address,
    namespace: "k8s.io",
    configFile: join(fake.folder, "config.toml"),
    snapshotter: options.snapshotter,
  });
  try {
    return await containerd.facts(new AbortController().signal);
  } finally {
    containerd.close();
  }
}

async function file(name: string, text: string): Promise<void> {
  await mkdir(join(fake.folder, "conf.d"), { recursive: true });
  await writeFile(join(fake.folder, name), text);
}

describe("1.x, by CRI Status", () => {
  test("roots, snapshotter, certs.d directories in order", async () => {
    const config = {
      containerd: { snapshotter: "overlayfs", discardUnpackedLayers: true },
      registry: { configPath: "/a:/b", mirrors: null, configs: null, auths: null, headers: null },
    };
    expect(await facts("v1.7.24", { config })).toEqual({
      version: "v1.7.24",
      contentRoot: "/root/content",
      snapshotterRoot: "/root/overlayfs",
      snapshotter: "overlayfs",
      registryConfigPath: ["/a", "/b"],
      discardUnpackedLayers: true,
      syncsLayers: false,
      takesRecords: true,
      pinnedImages: [],
      unfit: undefined,
    });
  });

  test("the sandbox image is pinned", async () => {
    const config = { sandboxImage: "registry.k8s.io/pause:3.6" };
    expect((await facts("1.7.24", { config })).pinnedImages).toEqual(["registry.k8s.io/pause:3.6"]);
  });

  test.each([
    ["1.5.18", false],
    ["1.6.20~ds1", true],
    ["v1.7.34", true],
  ])("records of ours on %s: %s", async (version, takesRecords) => {
    expect((await facts(version, { config: {} })).takesRecords).toBe(takesRecords);
  });

  test("layers that are synced, and snapshots that are labelled with their images", async () => {
    const config = { imagePullWithSyncFs: true, containerd: { disableSnapshotAnnotations: true } };
    expect(await facts("1.7.24", { config })).toMatchObject({ syncsLayers: true, unfit: undefined });
  });

  test("snapshots that are labelled with their images are left to containerd", async () => {
    const config = { containerd: { disableSnapshotAnnotations: false } };
    expect((await facts("1.6.20", { config })).unfit).toContain("disable_snapshot_annotations");
  });

  test.each([
    ["mirrors", { mirrors: { "docker.io": { endpoint: ["https://m"] } } }],
    ["configs", { configs: { "reg.example": { auth: { username: "u", password: "secret-word" } } } }],
    ["auths", { auths: { "https://reg.example": {} } }],
    ["headers", { headers: { "X-Team": ["a"] } }],
  ])("deprecated %s are named, and nothing of them is shown", async (name, registry) => {
    const { unfit } = await facts("1.6.20~ds1", { config: { registry } });
    expect(unfit).toContain(`deprecated kind (${name})`);
    expect(unfit).not.toContain("secret-word");
  });

  test("the User-Agent that containerd itself puts into the table of headers is no setting", async () => {
    const config = { registry: { headers: { "User-Agent": ["containerd/1.6.20"] } } };
    expect((await facts("1.6.20", { config })).unfit).toBeUndefined();
  });

  test.each([
    ["absent", undefined],
    ["no JSON", "{"],
  ])("settings that are %s are not taken for defaults", async (_name, config) => {
    await expect(facts("1.6.20", { config })).rejects.toMatchObject({ code: "unsupported" });
  });

  test("another snapshotter than overlayfs is left to containerd", async () => {
    const config = { containerd: { snapshotter: "stargz" } };
    expect((await facts("1.7.0", { config })).unfit).toContain("stargz");
  });

  test("the snapshotter of the configuration overrides", async () => {
    const config = { containerd: { snapshotter: "stargz" } };
    expect((await facts("1.7.0", { config, snapshotter: "overlayfs" })).unfit).toBeUndefined();
  });

  test("an overlayfs that is missing is said so", async () => {
    const plugins = usual.slice(0, 1);
    expect((await facts("1.7.0", { plugins, config: {} })).unfit).toContain("no overlayfs snapshotter");
  });

  test("an overlayfs that did not start is said so, with why", async () => {
    const plugins = usual.map((plugin) => ({ ...plugin, initErr: { code: 2, message: "no d_type" } }));
    expect((await facts("1.7.0", { plugins, config: {} })).unfit).toContain("no d_type");
  });

  test("a containerd that does not say where its content is cannot be worked with", async () => {
    await expect(facts("1.7.0", { plugins: [], config: {} })).rejects.toMatchObject({ code: "unsupported" });
  });
});

describe("2.x, by its files", () => {
  test("no file: the defaults of the version", async () => {
    const found = await facts("v2.2.7");
    expect(found.registryConfigPath).toEqual(["/etc/containerd/certs.d", "/etc/docker/certs.d"]);
    expect(found).toMatchObject({
      snapshotter: "overlayfs",
      discardUnpackedLayers: false,
      unfit: undefined,
    });
  });

  test.each([
    ["v2.0.11", false],
    ["v2.1.9", true],
    ["2.1.4", true],
    ["v2.11.0", false],
    ["v2.2.7", false],
  ])("records of ours on %s: %s", async (version, takesRecords) => {
    expect((await facts(version)).takesRecords).toBe(takesRecords);
  });

  test("no file, before 2.2: no certs.d at all", async () => {
    expect((await facts("v2.1.9")).registryConfigPath).toEqual([]);
  });

  test("imports are merged over the file, in the order of their names", async () => {
    await file(
      "config.toml",
      `version = 3
imports = ["conf.d/*.toml"]
[plugins."io.containerd.cri.v1.images"]
snapshotter = "native"
discard_unpacked_layers = true
[plugins."io.containerd.cri.v1.images".registry]
config_path = "/first"`,
    );
    const table = '[plugins."io.containerd.cri.v1.images"';
    await file("conf.d/10.toml", `version = 3\n${table}.registry]\nconfig_path = "/second"`);
    await file("conf.d/20.toml", `version = 3\n${table}]\nsnapshotter = "overlayfs"`);
    await file("conf.d/30.json", "not TOML, and not imported");
    expect(await facts("v2.2.7")).toMatchObject({
      snapshotter: "overlayfs",
      discardUnpackedLayers: true,
      registryConfigPath: ["/second"],
      unfit: undefined,
    });
  });

  test("files that import each other end", async () => {
    await file("config.toml", 'version = 3\nimports = ["conf.d/a.toml"]');
    await file("conf.d/a.toml", 'version = 3\nimports = ["../config.toml"]');
    expect((await facts("v2.2.7")).unfit).toBeUndefined();
  });

  test("a file of version 2 means what it meant to 1.x, deprecated mirrors included", async () => {
    await file(
      "config.toml",
      `version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
discard_unpacked_layers = true
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://mirror.example"]`,
    );
    const found = await facts("v2.0.11");
    expect(found.unfit).toContain("deprecated kind (mirrors)");
    expect(found.discardUnpackedLayers).toBe(true);
  });

  test.each([
    [2, '"io.containerd.grpc.v1.cri"'],
    [3, '"io.containerd.cri.v1.images"'],
  ])("layers that are synced, in version %d", async (version, table) => {
    await file("config.toml", `version = ${version}\n[plugins.${table}]\nimage_pull_with_sync_fs = true`);
    expect(await facts("v2.1.9")).toMatchObject({ syncsLayers: true, unfit: undefined });
  });

  test.each([
    [2, '"io.containerd.grpc.v1.cri".containerd'],
    [3, '"io.containerd.cri.v1.images"'],
  ])("snapshots that are labelled with their images, in version %d", async (version, table) => {
    await file(
      "config.toml",
      `version = ${version}\n[plugins.${table}]\ndisable_snapshot_annotations = false`,
    );
    expect((await facts("v2.1.9")).unfit).toContain("disable_snapshot_annotations");
  });

  test.each([
    [2, '"io.containerd.grpc.v1.cri"]\nsandbox_image = "example.com/pause:1"', ["example.com/pause:1"]],
    [
      3,
      '"io.containerd.cri.v1.images".pinned_images]\nsandbox = "example.com/pause:2"\nother = "example.com/other"',
      ["example.com/pause:2", "example.com/other"],
    ],
  ])("images that are pinned, in version %d", async (version, table, pinned) => {
    await file("config.toml", `version = ${version}\n[plugins.${table}`);
    expect((await facts("v2.1.9")).pinnedImages).toEqual(pinned);
  });

  test("a table that version 3 no longer reads says nothing", async () => {
    await file(
      "config.toml",
      'version = 3\n[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "zfs"',
    );
    expect((await facts("v2.2.7")).snapshotter).toBe("overlayfs");
  });

  test("a broken file is an error that shows none of it", async () => {
    await file("config.toml", 'version = 3\npassword = "secret-word" oops');
    const failure = facts("v2.2.7");
    await expect(failure).rejects.toMatchObject({ code: "unsupported" });
    await expect(failure).rejects.not.toThrow(/secret-word/);
  });

  test.each([
    ["an empty folder is no reason", [], undefined],
    ["a program in the folder is", ["check"], expect.stringContaining("image verifiers") as string],
  ])("image verifiers: %s", async (_name, programs, unfit) => {
    const verifier = { type: "io.containerd.image-verifier.v1", id: "bindir", exports: { root: "" } };
    const folder = join(fake.folder, "verifiers");
    const table = '[plugins."io.containerd.image-verifier.v1.bindir"]';
    await file("config.toml", `version = 3\n${table}\nbin_dir = "${folder}"`);
    await mkdir(folder);
    for (const program of programs) await writeFile(join(folder, program), "");
    expect((await facts("v2.2.7", { plugins: [...usual, verifier] })).unfit).toEqual(unfit);
  });
});
