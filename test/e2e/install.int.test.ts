// Hawser on a node with systemd: installed from its bundle, used without a pause while it is killed and upgraded, and
// removed without a trace.

import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type FakeImage, FakeRegistry } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { testBundle } from "../harness/bundle.ts";
import { Callers } from "../harness/callers.ts";
import { CriClient } from "../harness/cri.ts";
import { inventoryOf, kubeletConfig, kubeletText, kubeletUnit, release } from "../harness/installation.ts";
import { PrivateNode } from "../harness/node.ts";
import { eventually } from "../harness/process.ts";

const socket = "run/hawser/hawser.sock";
const ours = '[metrics]\nlisten = "off"\n';

let fake: FakeRegistry;
let node: PrivateNode;
let bundle = "";
let version = "";

beforeAll(async () => {
  fake = await FakeRegistry.start();
  const { archive, name } = await testBundle();
  bundle = `/root/${name}`;
  version = /^hawser-(.*)-linux-/.exec(name)?.[1] ?? "";
  node = await PrivateNode.start((root) => {
    writeFileSync(join(root, "etc/systemd/system/kubelet.service"), kubeletUnit);
  });
  node.unpack(archive, "/root");
  // On a fresh machine its root and the bundle are made first.
}, 400_000);

afterAll(async () => {
  await node[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

let count = 0;

function put(): FakeImage {
  count += 1;
  const layers = [0, 1].map((index) => ({
    bytes: tarGz([dir(`${index}`), file(`${index}/noise`, randomBytes(100_000)), file(`n${count}`)]),
  }));
  return fake.put(`install/image-${count}:v1`, layers);
}

async function install(...args: readonly string[]): Promise<string> {
  return await node.ask(`${bundle}/bin/hawser`, "install", ...args);
}

describe("on a node that is left as it was found", () => {
  beforeEach(async () => {
    node.write(kubeletConfig, kubeletText);
    await node.ask("systemctl", "restart", "kubelet");
  });

  afterEach(async () => {
    await node.run("hawser", "uninstall", "--force");
    await node.ask("systemctl", "stop", "kubelet");
  });

  test("install, calls without a pause through kill -9 and an upgrade, uninstall: no call fails, nothing is left", {
    timeout: 300_000,
  }, async () => {
    node.write("/etc/hawser/hawser.toml", ours);
    await eventually(async () => await node.ask("ctr", "version"), "containerd answers");
    const before = await inventoryOf(node);
    const said = await install("--kubelet-config", kubeletConfig, "--max-parallel-image-pulls", "8");
    expect(said).toContain("its self-test has passed");
    expect(said).toContain("systemctl restart kubelet.service");
    expect(node.read(kubeletConfig)).toBe(
      kubeletText
        .replace("serializeImagePulls: true", "serializeImagePulls: false")
        .replace(
          "kind: KubeletConfiguration\n",
          "kind: KubeletConfiguration\nmaxParallelImagePulls: 8\nimageServiceEndpoint: unix:///run/hawser/hawser.sock\n",
        ),
    );
    await node.ask("systemctl", "restart", "kubelet");
    const images = Array.from({ length: 200 }, put);
    let asked = 0;
    const next = (): string => images[asked++ % images.length]?.reference ?? "";
    {
      await using callers = new Callers(node.at(socket), next);
      for (let round = 0; round < 4; round++) {
        const goal = callers.pulls + 3;
        await eventually(async () => expect(callers.pulls).toBeGreaterThan(goal), "pulls");
        await node.ask("pkill", "-9", "-f", "main.js puller");
        await eventually(async () => await node.ask("hawser", "status"), "pulls are accelerated again");
      }
      const newer = await release(node, bundle, "9.9.9");
      expect(await node.ask(`${newer}/bin/hawser`, "upgrade")).toContain(
        "version 9.9.9 serves in the place of",
      );
      expect(await node.ask("hawser", "version")).toContain("hawser 9.9.9");
      expect(await node.ask("journalctl", "--unit", "hawser", "--no-pager")).not.toMatch(/ error /);
      expect(readdirSync(node.at("/opt/hawser/versions"))).toEqual(["9.9.9"]);
      const goal = callers.pulls + 3;
      await eventually(async () => expect(callers.pulls).toBeGreaterThan(goal), "pulls");
      await callers.finish();
    }
    // kubelet runs with Hawser's socket: first it is given back, and nothing goes before it was restarted.
    const refused = await node.run("hawser", "uninstall");
    expect(refused).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(
        /^hawser: kubelet was started before .*systemctl restart kubelet\.service.*nothing was removed\n$/,
      ),
    });
    expect(node.read(kubeletConfig)).toBe(kubeletText);
    expect(await node.ask("hawser", "status")).toContain("pulls are accelerated");
    expect(await node.ask("hawser", "uninstall", "--restart-kubelet")).toContain("version 9.9.9 is removed");
    const after = await inventoryOf(node);
    expect([...after.keys()].filter((name) => !before.has(name))).toEqual([]);
    expect(after).toEqual(before);
  });

  test("what else was changed in kubelet's configuration stays when Hawser's change is taken back", async () => {
    node.write("/etc/hawser/hawser.toml", ours);
    await install("--kubelet-config", kubeletConfig, "--max-parallel-image-pulls", "4");
    const place = node.at(kubeletConfig);
    writeFileSync(place, `${readFileSync(place, "utf8")}maxPods: 42\n`);
    const said = await node.ask("hawser", "uninstall", "--force");
    expect(said).toContain("has its old settings again, and what else was changed in it");
    expect(node.read(kubeletConfig)).toBe(`${kubeletText}maxPods: 42\n`);
  });

  test("a drop-in of kubelet's is made, and goes again", async () => {
    node.write("/etc/hawser/hawser.toml", ours);
    node.write("/etc/kubelet.conf.d/10-other.conf", "");
    await install("--kubelet-config", "/etc/kubelet.conf.d/50-hawser.conf");
    expect(node.read("/etc/kubelet.conf.d/50-hawser.conf")).toBe(
      `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
imageServiceEndpoint: unix:///run/hawser/hawser.sock
`,
    );
    await node.ask("hawser", "uninstall", "--force");
    expect(readdirSync(node.at("/etc/kubelet.conf.d"))).toEqual(["10-other.conf"]);
  });

  test("an installation that fails is taken back: nothing is left, and kubelet's configuration is as it was", async () => {
    node.write("/etc/hawser/hawser.toml", ours);
    const before = await inventoryOf(node);
    const broken = await release(node, bundle, "9.9.7", (root) => {
      writeFileSync(join(root, "libexec/hawser-launch"), "#!/bin/sh\nexit 3\n");
    });
    const refused = await node.run(`${broken}/bin/hawser`, "install", "--kubelet-config", kubeletConfig);
    expect(refused).toMatchObject({
      status: 1,
      stdout: expect.stringContaining("taking back what was installed"),
      stderr: expect.stringMatching(/^hawser: systemctl enable --now \S+ \S+ failed: .*\n$/),
    });
    expect(await inventoryOf(node)).toEqual(before);
  });

  test("installed again where it was spoilt: it is made whole, and works, before kubelet is turned to it", async () => {
    node.write("/etc/hawser/hawser.toml", ours);
    await install();
    await node.ask("systemctl", "stop", "hawser.socket", "hawser.service");
    writeFileSync(node.at(`/opt/hawser/versions/${version}/libexec/hawser-launch`), "");
    const said = await install("--kubelet-config", kubeletConfig, "--restart-kubelet");
    expect(said).toMatch(
      /is installed already\n.*self-test has passed\n.*names Hawser now\nkubelet\.service was restarted$/s,
    );
    expect(await node.ask("hawser", "status")).toContain("pulls are accelerated");
  });

  test("a kubelet that does not come back: its configuration is put back, it runs, and nothing is left", async () => {
    node.write("/etc/hawser/hawser.toml", ours);
    const before = await inventoryOf(node);
    const fails = `[Service]\nExecCondition=\nExecStartPre=/bin/sh -c "! grep -q imageServiceEndpoint ${kubeletConfig}"\n`;
    node.write("/run/systemd/system/kubelet.service.d/fails.conf", fails);
    await node.ask("systemctl", "daemon-reload");
    const turn = ["--kubelet-config", kubeletConfig, "--restart-kubelet"];
    const refused = await node.run(`${bundle}/bin/hawser`, "install", ...turn);
    expect(refused.stderr).toMatch(/^hawser: .*kubelet.*\n$/);
    expect(refused.status).toBe(1);
    expect(node.read(kubeletConfig)).toBe(kubeletText);
    expect(await node.ask("systemctl", "is-active", "kubelet")).toBe("active");
    await node.ask("rm", "-r", "/run/systemd/system/kubelet.service.d");
    await node.ask("systemctl", "daemon-reload");
    expect(await inventoryOf(node)).toEqual(before);
  });

  test("a flag of kubelet's that says otherwise is named, and nothing is changed", async () => {
    const flag = kubeletUnit.replace("--config=", "--serialize-image-pulls=true --config=");
    node.write(
      "/run/systemd/system/kubelet.service.d/flag.conf",
      flag.replace("ExecStart=", "ExecStart=\nExecStart="),
    );
    await node.ask("systemctl", "daemon-reload");
    await node.ask("systemctl", "restart", "kubelet");
    const parallel = ["--kubelet-config", kubeletConfig, "--max-parallel-image-pulls", "8"];
    const refused = await node.run(`${bundle}/bin/hawser`, "install", ...parallel);
    expect(refused.stderr).toMatch(
      /^hawser: a flag or drop-in of kubelet says serializeImagePulls: true, .*\n$/,
    );
    expect(node.read(kubeletConfig)).toBe(kubeletText);
    await node.ask("rm", "-r", "/run/systemd/system/kubelet.service.d");
    await node.ask("systemctl", "daemon-reload");
  });

  test("a kubelet in a container is not the node's", async () => {
    node.write("/etc/hawser/hawser.toml", ours);
    const inside = ["unshare", "--pid", "--fork", "--mount-proc", "bash", "-c", "exec -a k3s sleep 1000"];
    await node.ask("systemd-run", "--quiet", "--unit=container", "--slice=kubepods.slice", ...inside);
    await eventually(async () => await node.ask("pgrep", "-f", "^k3s"), "the container");
    expect(await install("--kubelet-config", kubeletConfig, "--restart-kubelet")).toContain(
      "kubelet.service was restarted",
    );
    // The first process of its namespace heeds no other signal.
    await node.ask("systemctl", "kill", "--signal=KILL", "container");
  });

  test("an installation that is killed is taken back by the next one, or removed", async () => {
    node.write("/etc/hawser/hawser.toml", ours);
    const before = await inventoryOf(node);
    const killed = await node.run("env", "HAWSER_FAILPOINT=laid-down", `${bundle}/bin/hawser`, "install");
    expect(killed.status).not.toBe(0);
    expect(await node.ask("hawser", "version")).toContain(version);
    expect(await install()).toContain("an installation that was broken off is taken back first");
    expect(await node.ask("hawser", "uninstall")).toContain("is removed");
    expect(await inventoryOf(node)).toEqual(before);
  });
});

describe("once installed", () => {
  beforeAll(async () => {
    node.write("/etc/hawser/hawser.toml", ours);
    await install();
  });

  afterAll(async () => {
    await node.ask("hawser", "uninstall", "--force");
  });

  test("the unit's capabilities, mounts and filters are enough for every kind of entry", async () => {
    const image = fake.put("install/odd:v1", (await import("../harness/odd.ts")).oddLayers());
    using cri = new CriClient(node.at(socket));
    await cri.mustPull(image.reference);
    expect(await node.ask("hawser", "status")).toContain("pulls are accelerated");
    const log = await node.ask("journalctl", "--unit", "hawser", "--no-pager");
    expect(log).toMatch(/pull image=\S+odd:v1 result=ok path=accelerated/);
  });

  test("systemd finds nothing wrong with the units, and little exposed", async () => {
    expect(await node.run("systemd-analyze", "verify", "hawser.socket", "hawser.service")).toEqual({
      status: 0,
      stdout: "",
      stderr: "",
    });
    // From 0 to 100; containerd's own unit has 96, and a service that may do anything as well.
    const threshold = ["security", "--offline=yes", "--threshold=45", "hawser.service"];
    expect((await node.run("systemd-analyze", ...threshold)).status).toBe(0);
  });

  test("a release that does not serve: the installed one goes on, and no call fails", async () => {
    const broken = await release(node, bundle, "9.9.8", (root) => {
      writeFileSync(join(root, "libexec/hawser-launch"), "#!/bin/sh\nexit 3\n");
    });
    const images = Array.from({ length: 100 }, put);
    let asked = 0;
    await using callers = new Callers(
      node.at(socket),
      () => images[asked++ % images.length]?.reference ?? "",
    );
    const refused = await node.run(`${broken}/bin/hawser`, "upgrade");
    expect(refused).toMatchObject({
      status: 1,
      stdout: expect.stringContaining(`going back to version ${version}`),
      stderr: expect.stringMatching(
        /^hawser: the successor does not serve: it ended, and its own messages say why\n$/,
      ),
    });
    await callers.finish();
    expect(await node.ask("hawser", "status")).toContain(`hawser ${version}`);
    expect(readdirSync(node.at("/opt/hawser/versions"))).toEqual([version]);
  });
});

test.each([
  [
    ["install", "--kubelet-config", "/nowhere/config.yaml"],
    1,
    "/nowhere/config.yaml is not there: name kubelet's configuration",
  ],
  [["install", "--kubelet-config", "/etc/passwd"], 1, "/etc/passwd: "],
  [["install", "--containerd", "/run/nobody.sock"], 1, "containerd's socket /run/nobody.sock is not there"],
  [["install", "--containerd", "nobody.sock"], 2, "--containerd takes the absolute path of a socket"],
  [
    ["install", "--max-parallel-image-pulls", "4"],
    2,
    "--max-parallel-image-pulls goes with --kubelet-config",
  ],
  [
    ["install", "--kubelet-config", kubeletConfig, "--max-parallel-image-pulls", "1"],
    2,
    "takes a number from 2 to 1000",
  ],
  [["install", "--config", "/nowhere.toml"], 1, "/nowhere.toml: cannot be read: ENOENT"],
  [["install", "--config", "/etc/passwd"], 1, "/etc/passwd: "],
  [["agent", "--daemonset", "hawser"], 2, '--daemonset takes NAMESPACE/NAME, not "hawser"'],
  [["agent", "--daemonset", "images/hawser"], 1, "--daemonset needs a pod"],
  [["agent", "--port", "metrics"], 2, '--port takes a number up to 65535, not "metrics"'],
  [["install", "now"], 2, 'unexpected argument "now"'],
  [["upgrade"], 1, 'nothing is installed to be upgraded: "hawser install"'],
  [["uninstall"], 1, "nothing is installed: there is no /var/lib/hawser/install.json"],
  [["uninstall", "--all"], 2, "Unknown option '--all'"],
])("%j ends with exit code %i and one line", async (args, status, message) => {
  const ended = await node.run(`${bundle}/bin/hawser`, ...args);
  expect(ended).toMatchObject({ status, stderr: expect.stringMatching(/^hawser: /) });
  expect(ended.stderr).toContain(message);
  expect(ended.stderr.trim().split("\n")).toHaveLength(1);
  expect(
    await node.ask("find", "/opt", "/etc", "/var/lib/hawser", "/run", "-name", "*hawser*").catch(() => ""),
  ).toBe("");
});
