// Disk: room and inodes, as kubelet counts them.

import { afterEach, beforeEach, expect, test } from "vitest";
import { introspection, runtime } from "../../src/containerd/methods.ts";
import { checkDisk, type Room } from "../../src/doctor/disk.ts";
import { FakeContainerd } from "../fakes/containerd.ts";
import { Volume } from "../harness/volume.ts";
import { all, lines, MadeUpNode, oneMount } from "./node.ts";

let fake: FakeContainerd;
let node: MadeUpNode;

beforeEach(async () => {
  fake = await FakeContainerd.create();
  node = new MadeUpNode(fake.folder);
});

afterEach(async () => {
  await fake[Symbol.asyncDispose]();
});

const gib = 1024 ** 3;
const roomy: Room = { freeBytes: 50 * gib, sizeBytes: 100 * gib, freeInodes: 90, inodes: 100 };
const never = new AbortController().signal;
const containerd = {
  address: "/containerd.sock",
  namespace: "k8s.io",
  configFile: "/c.toml",
  snapshotter: undefined,
};
const prune = "remove images that are not used (crictl rmi --prune), or enlarge the disk";

async function listen(content = "/var/c/content", overlayfs = "/var/c/overlayfs"): Promise<void> {
  const plugins = [
    { type: "io.containerd.content.v1", id: "content", exports: { root: content } },
    { type: "io.containerd.snapshotter.v1", id: "overlayfs", exports: { root: overlayfs } },
  ];
  fake.answers(introspection.version, { version: "1.7.24" });
  fake.answers(introspection.plugins, { plugins });
  fake.answers(runtime.status, { info: { config: "{}" } });
  await fake.listen();
}

async function found(room: Partial<Room> = {}): Promise<string[]> {
  await listen();
  const measure = async (): Promise<Room> => await Promise.resolve({ ...roomy, ...room });
  return lines(await all(checkDisk(node.context({ containerd }), never, measure)));
}

test("room for all, on one file system", async () => {
  expect(await found()).toEqual([
    "ok content: /var/c/content: 50.0 of 100.0 GiB free",
    "ok snapshots: /var/c/overlayfs, on the same file system as content",
    "ok spool: /var/c/io.hawser/spool, on the same file system as content",
  ]);
});

test.each([
  [{ freeBytes: 15 * gib }, ["ok content: /var/c/content: 15.0 of 100.0 GiB free"]],
  [
    { freeBytes: 14 * gib },
    [
      `slow content: /var/c/content: 14.0 of 100.0 GiB free: kubelet deletes images when less than 15 % are free -> ${prune}`,
    ],
  ],
  [
    { freeBytes: 1.9 * gib },
    [`broken content: /var/c/content: 1.9 of 100.0 GiB free, too little for a large image -> ${prune}`],
  ],
  [
    { freeInodes: 4 },
    [
      "ok content: /var/c/content: 50.0 of 100.0 GiB free",
      `slow content inodes: /var/c/content: 4 of 100 inodes free -> ${prune}`,
    ],
  ],
  [
    { freeInodes: 0 },
    [
      "ok content: /var/c/content: 50.0 of 100.0 GiB free",
      `broken content inodes: /var/c/content: 0 of 100 inodes free -> ${prune}`,
    ],
  ],
  [{ freeInodes: 0, inodes: 0 }, ["ok content: /var/c/content: 50.0 of 100.0 GiB free"]],
])("%j", async (room, expected) => {
  const text = await found(room);
  expect(text.slice(0, expected.length)).toEqual(expected);
  expect(text).toHaveLength(expected.length + 2);
});

test("each file system is measured, and one that is read-only is said", async () => {
  const snapshots = "30 22 254:1 / /var/c/overlayfs ro,relatime shared:1 - xfs /dev/vdb rw\n";
  node.write("/proc/self/mountinfo", oneMount + snapshots);
  expect(await found()).toEqual([
    "ok content: /var/c/content: 50.0 of 100.0 GiB free",
    "broken snapshots: /var/c/overlayfs is mounted read-only -> look for the file system's errors in the kernel's log, then remount /var/c/overlayfs",
    "ok spool: /var/c/io.hawser/spool, on the same file system as content",
  ]);
});

test("a real one, of which the folder is not there yet", async () => {
  using volume = new Volume({ mebibytes: 64, inodes: 100 });
  // The whole node is this one's root, so that paths of it are paths of this machine.
  const real = new MadeUpNode(volume.path);
  await listen("/content/not/there", "/overlayfs");
  const context = { ...node.context({ containerd }), tree: real.context().tree };
  const text = lines(await all(checkDisk(context, never)));
  expect(text[0]).toMatch(/^broken content: \/content\/not\/there: 0\.1 of 0\.1 GiB free, too little/);
});
