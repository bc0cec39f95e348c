// containerd: every finding in each of its states, asked over a real socket.

import { symlinkSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { introspection, runtime } from "../../src/containerd/methods.ts";
import { checkContainerd, testedMinors } from "../../src/doctor/containerd.ts";
import type { DoctorOptions } from "../../src/doctor/doctor.ts";
import { FakeContainerd } from "../fakes/containerd.ts";
import { allMinors } from "../harness/versions.ts";
import { all, hostUids, lines, MadeUpNode } from "./node.ts";

let fake: FakeContainerd;
let node: MadeUpNode;

beforeEach(async () => {
  fake = await FakeContainerd.create();
  node = new MadeUpNode(fake.folder);
  node.process(12, {
    command: ["/usr/bin/containerd"],
    listens: ["/containerd.sock"],
    files: { uid_map: hostUids },
  });
});

afterEach(async () => {
  await fake[Symbol.asyncDispose]();
});

interface MadeUpPlugin {
  readonly type: string;
  readonly id: string;
  readonly exports?: Record<string, string>;
  readonly initErr?: { readonly code: number; readonly message: string };
}

const content = { type: "io.containerd.content.v1", id: "content", exports: { root: "/var/c/content" } };
const overlayfs = {
  type: "io.containerd.snapshotter.v1",
  id: "overlayfs",
  exports: { root: "/var/c/overlayfs" },
};
const cri = { type: "io.containerd.grpc.v1", id: "cri" };

const containerd = {
  address: "/containerd.sock",
  namespace: "k8s.io",
  configFile: "/etc/containerd/config.toml",
  snapshotter: undefined,
};

interface Said {
  readonly version?: string;
  readonly plugins?: readonly MadeUpPlugin[];
  readonly config?: unknown;
  readonly options?: Partial<DoctorOptions>;
}

/** What is found on a node whose containerd says this. */
async function found(said: Said = {}): Promise<string[]> {
  const { version = "1.7.24", plugins = [content, overlayfs, cri], config = {}, options = {} } = said;
  fake.answers(introspection.version, { version });
  fake.answers(introspection.plugins, { plugins: [...plugins] });
  fake.answers(runtime.status, { info: { config: JSON.stringify(config) } });
  await fake.listen();
  return lines(await all(checkContainerd(node.context({ containerd, ...options }))));
}

const passes = "every pull goes through to containerd";

test("a containerd that is as it should be", async () => {
  const config = {
    containerd: { snapshotter: "overlayfs" },
    registry: { configPath: "/etc/containerd/certs.d" },
  };
  expect(await found({ config })).toEqual([
    "ok socket: /containerd.sock answers",
    "ok version: 1.7.24",
    "ok CRI plugin: runs",
    "ok snapshotter: overlayfs",
    "ok registry settings: config_path is /etc/containerd/certs.d",
    "ok discard_unpacked_layers: false: compressed layers are kept",
    "ok overlayfs: started, so kernel and file system (d_type) fit it",
    "ok user namespace: containerd runs in the host's",
    "ok SELinux: is off",
    "ok content: /var/c/content, on one mount with the spool",
    "ok snapshots: /var/c/overlayfs, on one mount with staging",
  ]);
});

describe("its socket", () => {
  const only = async (): Promise<string[]> => lines(await all(checkContainerd(node.context({ containerd }))));

  test("is not there", async () => {
    expect(await only()).toEqual([
      "broken socket: /containerd.sock: there is no such file -> start containerd, or set containerd.address to its socket",
    ]);
  });

  test("is left of a dead one", async () => {
    node.write("/containerd.sock", "");
    expect((await only())[0]).toMatch(/^broken socket: \/containerd\.sock: nobody listens there/);
  });

  test("is elsewhere, as with k3s", async () => {
    await fake.listen();
    node.folder("/run/k3s/containerd");
    symlinkSync(fake.address, join(fake.folder, "run/k3s/containerd/containerd.sock"));
    const address = "/run/containerd/containerd.sock";
    const options = { containerd: { ...containerd, address } };
    expect(lines(await all(checkContainerd(node.context(options))))).toEqual([
      `broken socket: ${address}: there is no such file -> set containerd.address = "/run/k3s/containerd/containerd.sock", where a containerd answers`,
    ]);
  });
});

describe("its version", () => {
  test("the tested ones are those that tests run against", () => {
    expect(testedMinors).toEqual(allMinors);
  });

  test.each([
    ["v2.1.9", "ok version: v2.1.9"],
    ["1.6.20~ds1", "ok version: 1.6.20~ds1"],
    [
      "v2.2.7",
      "unknown version: v2.2.7, which is not tested (tested are 1.6, 1.7, 2.1); the daemon's self-test decides",
    ],
    [
      "1.5.18",
      "slow version: 1.5.18, which Hawser does not know (tested are 1.6, 1.7, 2.1) -> look at the hawser lines for whether pulls are accelerated",
    ],
  ])("%s", async (version, expected) => {
    expect(await found({ version })).toContain(expected);
  });
});

describe("the file that Hawser reads the settings of 2.x from", () => {
  const file = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
  const broken = `broken configuration: containerd was started with ${file}, and Hawser reads /etc/containerd/config.toml -> set containerd.config_file = "${file}"`;
  const ok = "ok configuration: /etc/containerd/config.toml";

  test.each([
    [["containerd"], ok],
    [["containerd", "--config", "/etc/containerd/config.toml"], ok],
    [["containerd", "-c", file, "-a", "/run/x"], broken],
    [["containerd", `--config=${file}`], broken],
  ])("%j", async (command, expected) => {
    node.write("/proc/12/cmdline", command.map((word) => `${word}\0`).join(""));
    expect(await found({ version: "v2.1.9" })).toContain(expected);
  });

  test("1.x tells its settings itself", async () => {
    node.write("/proc/12/cmdline", ["containerd", "-c", file, ""].join("\0"));
    expect((await found()).join("\n")).not.toContain("configuration:");
  });

  test("a process that is not to be seen", async () => {
    node.write("/proc/net/unix", "");
    expect(await found({ version: "v2.1.9" })).toContain(
      "unknown configuration: /etc/containerd/config.toml; containerd's process was not found",
    );
  });
});

test.each([
  [
    "CRI did not start",
    { plugins: [content, overlayfs, { ...cri, initErr: { code: 2, message: "no CNI" } }] },
    "broken CRI plugin: did not start: no CNI -> put containerd's configuration right and restart it",
  ],
  [
    "half of CRI did not start",
    {
      plugins: [
        content,
        overlayfs,
        { type: "io.containerd.cri.v1", id: "images", initErr: { code: 2, message: "bad" } },
        cri,
      ],
    },
    "broken CRI plugin: did not start: bad -> put containerd's configuration right and restart it",
  ],
  [
    "CRI is disabled",
    { plugins: [content, overlayfs] },
    'broken CRI plugin: is disabled, so kubelet cannot use this containerd -> take "cri" out of disabled_plugins in containerd\'s configuration and restart it',
  ],
  [
    "another snapshotter",
    { config: { containerd: { snapshotter: "stargz" } } },
    `slow snapshotter: stargz, and only overlayfs is accelerated: ${passes} -> use overlayfs where pulls are to be accelerated`,
  ],
  [
    "overlayfs on a file system without d_type",
    {
      plugins: [content, cri, { ...overlayfs, initErr: { code: 2, message: "/x does not support d_type" } }],
    },
    `slow overlayfs: did not start: /x does not support d_type: ${passes} -> put containerd's root on ext4, or on XFS made with ftype=1`,
  ],
  [
    "no overlayfs",
    { plugins: [content, cri] },
    `slow overlayfs: is not there: ${passes} -> enable containerd's overlayfs snapshotter`,
  ],
  [
    "deprecated settings",
    { config: { registry: { configs: { "reg.example": { auth: { password: "secret-word" } } } } } },
    `slow registry settings: of the deprecated kind (configs), which only containerd reads: ${passes} -> move them into hosts.toml files below config_path`,
  ],
  ["no certs.d", {}, "ok registry settings: config_path is not set: no mirrors"],
  [
    "layers are dropped",
    { config: { containerd: { discardUnpackedLayers: true } } },
    "ok discard_unpacked_layers: true: compressed layers go once they are unpacked",
  ],
  [
    "no content",
    { plugins: [overlayfs, cri] },
    `broken content: containerd does not say where it is: ${passes}`,
  ],
] as const)("%s", async (_name, said, expected) => {
  const text = await found(said);
  expect(text).toContain(expected);
  expect(text.join("\n")).not.toContain("secret-word");
});

test("settings that cannot be read", async () => {
  node.write("/etc/containerd/config.toml", 'version = 3\npassword = "secret-word" oops');
  const text = (await found({ version: "v2.1.9" })).join("\n");
  expect(text).toContain(`slow settings: containerd's settings in ${fake.folder}/etc/containerd/config.toml`);
  expect(text).not.toContain("secret-word");
  expect(text).not.toContain("snapshotter:");
});

test("image verifiers", async () => {
  node.write("/verifiers/check", "");
  const folder = join(fake.folder, "verifiers");
  const table = `[plugins."io.containerd.image-verifier.v1.bindir"]\nbin_dir = "${folder}"`;
  node.write("/etc/containerd/config.toml", `version = 3\n${table}\n`);
  const verifier = { type: "io.containerd.image-verifier.v1", id: "bindir" };
  const images = { type: "io.containerd.cri.v1", id: "images" };
  expect(await found({ version: "v2.1.9", plugins: [content, overlayfs, images, verifier] })).toContain(
    `slow image verifiers: 1 in use, which judge only containerd's own pulls: ${passes} -> take them out if pulls are to be accelerated`,
  );
});

describe("namespaces and labels", () => {
  test("a user namespace", async () => {
    node.write("/proc/12/uid_map", "         0     100000      65536\n");
    expect(await found()).toContain(
      `slow user namespace: containerd runs in one of its own: ${passes} -> run containerd as the host's root where pulls are to be accelerated`,
    );
  });

  test("a process that is not to be seen", async () => {
    const options = { containerd: { ...containerd, address: "/containerd.sock" } };
    node.write("/proc/net/unix", "");
    expect(await found({ options })).toContain("unknown user namespace: containerd's process was not found");
  });

  test.each([
    ["1\n", "enforcing"],
    ["0\n", "permissive"],
  ])("SELinux %j", async (text, mode) => {
    node.write("/sys/fs/selinux/enforce", text);
    expect(await found()).toContain(`slow SELinux: is ${mode}, and layers are not labelled yet: ${passes}`);
  });
});

describe("mounts", () => {
  const at = (id: number, point: string): string =>
    `${id} 22 254:0 ${point} ${point} rw shared:1 - ext4 /dev/vda rw\n`;

  test("content of its own", async () => {
    node.write("/proc/self/mountinfo", at(22, "/") + at(30, "/var/c/content"));
    expect(await found()).toContain(
      "slow content: /var/c/content is another mount than the spool: layers that are kept are copied instead of linked -> give the daemon one mount over /var/c",
    );
  });

  test("staging of its own, as the daemon sees it and this shell does not", async () => {
    node.process(77, {
      command: ["/opt/hawser/lib/node", "dist/main.js", "serve"],
      listens: ["/run/hawser/hawser.sock"],
      files: { mountinfo: at(50, "/") + at(51, "/var/c/overlayfs/io.hawser") },
    });
    expect(await found()).toContain(
      `broken snapshots: /var/c/overlayfs/snapshots is another mount than staging (/var/c/overlayfs/io.hawser): ${passes} -> make one mount of all below /var/c/overlayfs`,
    );
  });

  test("roots behind a symbolic link are where it leads", async () => {
    node.folder("/data/c/overlayfs");
    node.folder("/var");
    symlinkSync("../data/c", join(fake.folder, "var/c"));
    node.write("/proc/self/mountinfo", at(22, "/") + at(30, "/data/c/overlayfs/snapshots"));
    expect((await found()).join("\n")).toContain("broken snapshots: ");
  });
});
