// The agent on a node with systemd, where it sees what a privileged container with the node's process ids sees: a DaemonSet
// comes, changes, is replaced and goes, and the node follows.

import { randomBytes } from "node:crypto";
import { copyFileSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { type Answer, FakeCluster } from "../fakes/cluster.ts";
import { FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { testBundle } from "../harness/bundle.ts";
import { CriClient } from "../harness/cri.ts";
import { inventoryOf, kubeletConfig, kubeletText, kubeletUnit, release } from "../harness/installation.ts";
import { type Ended, PrivateNode } from "../harness/node.ts";
import { eventually, freePort } from "../harness/process.ts";

/** A container: it has folders of its own where the node has its programs and state, and an account of its pod. */
const container = `
for own in /opt /run; do mount -t tmpfs tmpfs $own; done
mkdir -p /run/secrets/kubernetes.io
cp -r /root/account /run/secrets/kubernetes.io/serviceaccount
program=$1
shift
exec "$program" agent "$@"
`;
const settings = '[metrics]\nlisten = "off"\n';

let fake: FakeRegistry;
let cluster: FakeCluster;
let node: PrivateNode;
let bundle = "";
let version = "";
let port = 0;

beforeAll(async () => {
  fake = await FakeRegistry.start();
  cluster = await FakeCluster.start();
  const { archive, name } = await testBundle();
  bundle = `/root/${name}`;
  version = /^hawser-(.*)-linux-/.exec(name)?.[1] ?? "";
  node = await PrivateNode.start((root) => {
    writeFileSync(`${root}/etc/systemd/system/kubelet.service`, kubeletUnit);
  });
  node.unpack(archive, "/root");
  node.write("/root/account/token", cluster.token);
  copyFileSync(cluster.authority, node.at("/root/account/ca.crt"));
  // A file of a ConfigMap is a link.
  node.write("/root/config/..data/hawser.toml", settings);
  symlinkSync("..data/hawser.toml", node.at("/root/config/hawser.toml"));
  await eventually(async () => await node.ask("ctr", "version"), "containerd answers");
}, 400_000);

beforeEach(async () => {
  cluster.answer = "there";
  port = await freePort();
  node.write("/root/config/..data/hawser.toml", settings);
  node.write(kubeletConfig, kubeletText);
  await node.ask("systemctl", "restart", "kubelet");
});

afterEach(async () => {
  await node.run("hawser", "uninstall", "--force");
  await node.ask("systemctl", "stop", "kubelet");
});

afterAll(async () => {
  await node[Symbol.asyncDispose]();
  await cluster[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

/** A pod from its start to its end. */
function pod(program: string, ...more: readonly string[]): Promise<Ended> {
  const api = ["KUBERNETES_SERVICE_HOST=127.0.0.1", `KUBERNETES_SERVICE_PORT=${cluster.port}`];
  const args = ["--daemonset", "images/hawser", "--listen", "127.0.0.1", "--port", `${port}`];
  const own = [
    "--config",
    "/root/config/hawser.toml",
    "--kubelet-config",
    kubeletConfig,
    "--restart-kubelet",
  ];
  return node.run(
    "env",
    ...api,
    "unshare",
    "--mount",
    "sh",
    "-ec",
    container,
    "sh",
    program,
    ...args,
    ...own,
    ...more,
  );
}

async function scrape(path: string): Promise<{ readonly status: number; readonly text: string }> {
  const answer = await fetch(`http://127.0.0.1:${port}${path}`);
  return { status: answer.status, text: await answer.text() };
}

async function untilReady(): Promise<void> {
  await eventually(
    async () => expect(await scrape("/healthz")).toEqual({ status: 200, text: "ok\n" }),
    "ready",
  );
}

/** As kubelet does it: the pod is told to end, and waited for. */
async function end(running: Promise<Ended>, answer: Answer): Promise<Ended> {
  cluster.answer = answer;
  await node.ask("pkill", "-TERM", "-f", "main.js agent");
  return await running;
}

async function kubeletPid(): Promise<string> {
  return await node.ask("systemctl", "show", "--property=MainPID", "--value", "kubelet");
}

test("a DaemonSet comes, changes, is replaced and goes, and the node is as it was before", {
  timeout: 240_000,
}, async () => {
  const before = await inventoryOf(node);
  const kubelet = await kubeletPid();
  const first = pod(`${bundle}/bin/hawser`);
  await untilReady();
  expect(await node.ask("hawser", "status")).toContain(`hawser ${version}`);
  expect(node.read(kubeletConfig)).toContain("imageServiceEndpoint: unix:///run/hawser/hawser.sock");
  expect(node.read("/etc/hawser/hawser.toml")).toBe(settings);
  const turned = await kubeletPid();
  expect(turned).not.toBe(kubelet);
  const image = fake.put("agent/image:v1", [{ bytes: tarGz([file("noise", randomBytes(1000))]) }]);
  using cri = new CriClient(node.at("run/hawser/hawser.sock"));
  await cri.mustPull(image.reference);
  expect((await scrape("/metrics")).text).toContain('hawser_pulls_total{result="ok",path="accelerated"} 1\n');

  // The pod alone is replaced.
  expect(await end(first, "there")).toMatchObject({ status: 0, stdout: /the node's service stays/ });
  expect(await node.ask("hawser", "status")).toContain("pulls are accelerated");
  const second = pod(`${bundle}/bin/hawser`);
  await untilReady();
  expect(await kubeletPid()).toBe(turned);
  expect((await end(second, "there")).stdout).toContain(`version ${version} is installed already`);

  // Another version, with another configuration.
  const newer = await release(node, bundle, "9.9.9");
  const more = '[log]\nlevel = "debug"\n[prewarm]\ndirectory = "/var/lib/hawser/images"\n';
  node.write("/root/config/..data/hawser.toml", `${settings}${more}`);
  node.write("/root/images/list", `# for everybody\n${image.reference}\n`);
  const third = pod(`${newer}/bin/hawser`, "--images", "/root/images");
  await untilReady();
  expect(await node.ask("hawser", "status")).toContain("hawser 9.9.9");
  expect(node.read("/etc/hawser/hawser.toml")).toContain('level = "debug"');
  expect(await kubeletPid()).toBe(turned);

  // What the cluster wants on each node, and wants no more.
  const warm = new RegExp(`^warm +${image.reference} .*by directory$`, "m");
  const listed = async (): Promise<string> => await node.ask("hawser", "prewarm", "list");
  await eventually(async () => expect(await listed()).toMatch(warm), "the image is warm");
  node.write("/root/images/list", "");
  await eventually(async () => expect(await listed()).not.toContain(image.reference), "it is wanted no more");

  const { status, stdout } = await end(third, "gone");
  expect(stdout).toContain("version 9.9.9 is removed");
  expect(status).toBe(0);
  expect(await kubeletPid()).not.toBe(turned);
  expect(node.read(kubeletConfig)).toBe(kubeletText);
  const after = await inventoryOf(node);
  expect([...after.keys()].filter((name) => !before.has(name))).toEqual([]);
  expect(after).toEqual(before);
});

test("an account that could ask and no longer may was deleted with the rest; an API in doubt changes nothing", {
  timeout: 120_000,
}, async () => {
  const first = pod(`${bundle}/bin/hawser`);
  await untilReady();
  expect(await end(first, "broken")).toMatchObject({
    status: 0,
    stderr: expect.stringContaining("when in doubt the service stays"),
  });
  cluster.answer = "forbidden";
  const second = pod(`${bundle}/bin/hawser`);
  await untilReady();
  expect(await end(second, "forbidden")).toMatchObject({
    status: 0,
    stderr: expect.stringContaining("its end will not be noticed"),
    stdout: expect.stringContaining("the node's service stays"),
  });
  cluster.answer = "there";
  const third = pod(`${bundle}/bin/hawser`);
  await untilReady();
  expect((await end(third, "unauthorized")).stdout).toContain("is removed");
});

test("what a pod was at when it was killed goes on to its end, and its successor finds it done", async () => {
  const before = await inventoryOf(node);
  const killed = pod(`${bundle}/bin/hawser`);
  await eventually(async () => await node.ask("test", "-e", "/var/lib/hawser/install.json"), "the beginning");
  expect(node.read("/var/lib/hawser/install.json")).toContain('"phase": "installing"');
  await node.ask("pkill", "-KILL", "-f", "main.js agent");
  await killed;
  await eventually(async () => await node.ask("hawser", "status"), "pulls are accelerated");
  const unit = ["show", "--property=ActiveState", "--value", "hawser-agent-change"];
  await eventually(async () => expect(await node.ask("systemctl", ...unit)).toBe("inactive"), "its end");
  const next = pod(`${bundle}/bin/hawser`);
  await untilReady();
  expect((await end(next, "gone")).stdout).toContain("is installed already");
  expect(await inventoryOf(node)).toEqual(before);
});

test("a daemon that does not accelerate makes its pod unready, and says why", async () => {
  const running = pod(`${bundle}/bin/hawser`);
  await untilReady();
  await node.ask("systemctl", "stop", "containerd");
  await eventually(async () => {
    expect(await scrape("/healthz")).toEqual({ status: 503, text: "containerd does not answer\n" });
  }, "unready");
  await node.ask("systemctl", "start", "containerd");
  await untilReady();
  await end(running, "there");
});

test.each<[string, () => readonly string[], string]>([
  [
    "a configuration that is wrong",
    () => {
      node.write("/root/config/..data/hawser.toml", "[download]\nchunk_size = 1\n");
      return [];
    },
    "download.chunk_size",
  ],
  [
    "a file of kubelet's that is not there",
    () => ["--kubelet-config", "/nowhere.yaml"],
    "/nowhere.yaml is not there",
  ],
])("%s makes the pod unready with one line, and leaves nothing", async (_, prepare, line) => {
  const before = await inventoryOf(node);
  const running = pod(`${bundle}/bin/hawser`, ...prepare());
  await eventually(async () => {
    const { status, text } = await scrape("/healthz");
    expect(text).toContain(line);
    expect(status).toBe(503);
  }, "unready");
  const { status, stderr } = await end(running, "there");
  expect(stderr).toMatch(/^hawser: .* \(tried again in 10 s\)\n$/);
  expect(status).toBe(0);
  expect(readFileSync(node.at(kubeletConfig), "utf8")).toBe(kubeletText);
  expect(await inventoryOf(node)).toEqual(before);
});

test("a release that does not work, taken out again: the version before it goes as well", {
  timeout: 120_000,
}, async () => {
  const before = await inventoryOf(node);
  const first = pod(`${bundle}/bin/hawser`);
  await untilReady();
  await end(first, "there");
  const broken = await release(node, bundle, "9.9.8", (root) => {
    writeFileSync(`${root}/libexec/hawser-launch`, "#!/bin/sh\nexit 3\n");
  });
  const second = pod(`${broken}/bin/hawser`);
  await eventually(async () => {
    const { status, text } = await scrape("/healthz");
    expect(text).toContain("does not serve");
    expect(status).toBe(503);
  }, "unready");
  expect(await node.ask("hawser", "status")).toContain(`hawser ${version}`);
  expect((await end(second, "gone")).stdout).toContain("is removed");
  expect(await inventoryOf(node)).toEqual(before);
});

test("a DaemonSet that was never found is not missed", async () => {
  cluster.answer = "gone";
  const running = pod(`${bundle}/bin/hawser`);
  await untilReady();
  const { stdout, stderr } = await end(running, "gone");
  expect(stderr).toContain("there is no DaemonSet images/hawser");
  expect(stdout).toContain("the node's service stays");
});
