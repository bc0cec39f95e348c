// kubelet and crictl: every setting in each of its states, wherever it stands.

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { checkCrictl } from "../../src/doctor/crictl.ts";
import type { DoctorOptions, Finding } from "../../src/doctor/doctor.ts";
import { checkKubelet } from "../../src/doctor/kubelet.ts";
import { all, lines, MadeUpNode } from "./node.ts";

let node: MadeUpNode;

beforeEach(() => {
  node = new MadeUpNode();
});

afterEach(() => {
  node[Symbol.dispose]();
});

const file = "/var/lib/kubelet/config.yaml";
const hawser = "unix:///run/hawser/hawser.sock";
const containerd = "unix:///run/containerd/containerd.sock";

async function kubelet(options: Partial<DoctorOptions> = {}): Promise<Finding[]> {
  return await all(checkKubelet(node.context(options)));
}

/** The finding about one setting of a file with these lines. */
async function about(what: string, ...settings: readonly string[]): Promise<string | undefined> {
  node.write(file, `kind: KubeletConfiguration\n${settings.join("\n")}\n`);
  return lines(await kubelet()).find((line) => line.split(" ").slice(1).join(" ").startsWith(`${what}:`));
}

describe("each setting", () => {
  test.each([
    ["image endpoint", [`imageServiceEndpoint: ${hawser}`], `ok image endpoint: ${hawser}, which is Hawser`],
    [
      "image endpoint",
      ["imageServiceEndpoint: unix:///var/run/hawser/hawser.sock"],
      "ok image endpoint: unix:///var/run/hawser/hawser.sock, which is Hawser",
    ],
    [
      "image endpoint",
      [],
      `slow image endpoint: not set: kubelet asks containerd for images -> set imageServiceEndpoint: ${hawser} in ${file} and restart kubelet`,
    ],
    [
      "image endpoint",
      [`containerRuntimeEndpoint: ${containerd}`],
      `slow image endpoint: ${containerd}, which is not Hawser -> set imageServiceEndpoint: ${hawser} in ${file} and restart kubelet`,
    ],
    [
      "runtime endpoint",
      [`containerRuntimeEndpoint: ${containerd}`],
      `ok runtime endpoint: ${containerd}, the containerd that Hawser works with`,
    ],
    ["runtime endpoint", [], undefined],
    [
      "runtime endpoint",
      [`containerRuntimeEndpoint: ${hawser}`],
      `slow runtime endpoint: ${hawser}: containers, too, are run through Hawser -> set containerRuntimeEndpoint: ${containerd} in ${file}`,
    ],
    [
      "runtime endpoint",
      ["containerRuntimeEndpoint: unix:///run/crio/crio.sock"],
      "slow runtime endpoint: unix:///run/crio/crio.sock, which is another runtime than Hawser's containerd (/run/containerd/containerd.sock) -> set containerd.address in Hawser's configuration to kubelet's runtime",
    ],
    [
      "serializeImagePulls",
      ["serializeImagePulls: false"],
      "ok serializeImagePulls: false: images are pulled side by side",
    ],
    [
      "serializeImagePulls",
      ["serializeImagePulls: true"],
      `slow serializeImagePulls: true: one image at a time, the others wait -> set serializeImagePulls: false in ${file}`,
    ],
    [
      "serializeImagePulls",
      [],
      `slow serializeImagePulls: not set, so true: one image at a time, the others wait -> set serializeImagePulls: false in ${file}`,
    ],
    [
      "maxParallelImagePulls",
      ["serializeImagePulls: false"],
      "ok maxParallelImagePulls: not set: as many as are asked for",
    ],
    ["maxParallelImagePulls", [], undefined],
    [
      "maxParallelImagePulls",
      ["serializeImagePulls: false", "maxParallelImagePulls: 5"],
      "ok maxParallelImagePulls: 5",
    ],
    [
      "maxParallelImagePulls",
      ["serializeImagePulls: false", "maxParallelImagePulls: 1"],
      `slow maxParallelImagePulls: 1: one image at a time, the others wait -> leave maxParallelImagePulls out, or set 4 or more in ${file}`,
    ],
    [
      "maxParallelImagePulls",
      ["serializeImagePulls: false", "maxParallelImagePulls: 0"],
      `broken maxParallelImagePulls: 0: kubelet does not start with this -> set a number above 0 in ${file}, or leave maxParallelImagePulls out`,
    ],
    [
      "maxParallelImagePulls",
      ["maxParallelImagePulls: many"],
      `broken maxParallelImagePulls: many: kubelet does not start with this -> set a number above 0 in ${file}, or leave maxParallelImagePulls out`,
    ],
    [
      "maxParallelImagePulls",
      ["maxParallelImagePulls: 5"],
      `broken maxParallelImagePulls: 5 while serializeImagePulls is true: kubelet does not start with this -> set serializeImagePulls: false in ${file}`,
    ],
    [
      "registryPullQPS",
      [],
      "ok registryPullQPS: 5 pulls a second, 10 at once; kubelet fails those beyond it",
    ],
    ["registryPullQPS", ["registryPullQPS: 0"], "ok registryPullQPS: 0: not limited"],
    [
      "registryPullQPS",
      ["registryPullQPS: 1", "registryBurst: 2"],
      `slow registryPullQPS: 1 pulls a second, 2 at once; kubelet fails those beyond it -> set registryPullQPS: 5 or more, or 0 for no limit in ${file}`,
    ],
    [
      "registryPullQPS",
      ["registryPullQPS: -1"],
      `broken registryPullQPS: -1: kubelet does not start with this -> set 0 or more in ${file}`,
    ],
  ])("%s of %j", async (what, settings, expected) => {
    expect(await about(what, ...settings)).toBe(expected);
  });

  test("images in one containerd and containers in another runtime cannot work", async () => {
    const line = await about(
      "runtime endpoint",
      `imageServiceEndpoint: ${hawser}`,
      "containerRuntimeEndpoint: /run/crio/crio.sock",
    );
    expect(line).toMatch(/^broken runtime endpoint: /);
  });
});

describe("where settings stand", () => {
  const endpoint = async (options: Partial<DoctorOptions> = {}): Promise<string[]> =>
    lines(await kubelet(options)).slice(0, 2);
  const set = `imageServiceEndpoint: ${hawser}\n`;
  const isHawser = `ok image endpoint: ${hawser}, which is Hawser`;

  test("nowhere", async () => {
    expect(lines(await kubelet())).toEqual([
      "unknown configuration: no kubelet and no configuration of one was found -> name its configuration with --kubelet-config FILE",
    ]);
    node.process(7, { command: ["/usr/bin/kubelet"] });
    expect((await kubelet())[0]?.finding).toBe("runs, but no configuration of it was found");
  });

  test.each([
    "/var/lib/kubelet/config.yaml",
    "/etc/kubernetes/kubelet/config.json",
    "/home/kubernetes/kubelet-config.yaml",
    "/var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf",
    "/var/lib/rancher/rke2/agent/etc/kubelet.conf.d/10-x.conf",
  ])("%s", async (path) => {
    node.write(path, path.endsWith("json") ? JSON.stringify({ imageServiceEndpoint: hawser }) : set);
    expect(await endpoint()).toEqual([`ok configuration: ${path}`, isHawser]);
  });

  test("the file that is named, and no other", async () => {
    node.write("/var/lib/kubelet/config.yaml", set);
    node.write("/somewhere.yaml", "a: b\n");
    const [configuration, image] = await endpoint({ kubeletConfig: "/somewhere.yaml" });
    expect(configuration).toBe("ok configuration: /somewhere.yaml");
    expect(image).toContain("in /somewhere.yaml and restart kubelet");
  });

  test("the running kubelet's own, with drop-ins and flags over it, in this order", async () => {
    node.write("/var/lib/kubelet/config.yaml", "registryPullQPS: 1\n");
    node.write("/own.yaml", "imageServiceEndpoint: /a\nregistryPullQPS: 2\nserializeImagePulls: true\n");
    node.write("/drop/20.conf", "registryPullQPS: 4\nserializeImagePulls: false\n");
    node.write("/drop/10.conf", "registryPullQPS: 3\n");
    node.write("/drop/30.yaml", "registryPullQPS: 9\n");
    const command = [
      "/usr/bin/kubelet",
      "--config=/own.yaml",
      "--config-dir",
      "/drop",
      `--image-service-endpoint=${hawser}`,
    ];
    node.process(41, { command });
    const found = lines(await kubelet());
    expect(found.slice(0, 2)).toEqual([
      "ok configuration: /own.yaml, then /drop/10.conf, then /drop/20.conf, then flags of process 41",
      isHawser,
    ]);
    expect(found.join("\n")).toContain("ok serializeImagePulls: false");
    expect(found.join("\n")).toContain("registryPullQPS: 4 pulls a second");
  });

  test("k3s hands flags on to the kubelet inside of it", async () => {
    const command = ["/usr/local/bin/k3s", "server", `--kubelet-arg=image-service-endpoint=${hawser}`];
    node.process(42, { command: [...command, "--kubelet-arg", "serialize-image-pulls=false"] });
    expect((await endpoint())[1]).toBe(isHawser);
    expect(lines(await kubelet()).join("\n")).toContain("ok serializeImagePulls: false");
  });

  test("a flag's value is no flag", async () => {
    const command = ["/usr/bin/kubelet", "--container-runtime-endpoint", containerd];
    node.process(43, { command: [...command, "--node-labels=image-service-endpoint=/x"] });
    expect((await endpoint())[1]).toContain(`${containerd}, which is not Hawser`);
  });

  test("what cannot be read is said, with its file", async () => {
    node.write(file, "{not json");
    await expect(kubelet()).rejects.toThrow(`${file}: line 1: Flow map must end with a }`);
    await expect(kubelet({ kubeletConfig: "/none.yaml" })).rejects.toThrow(
      "/none.yaml cannot be read: there is no such file",
    );
  });
});

describe("crictl", () => {
  test.each([
    [`image-endpoint: ${hawser}\n`, `ok image endpoint: ${hawser}, which is Hawser (/etc/crictl.yaml)`],
    [`runtime-endpoint: ${hawser}\n`, `ok image endpoint: ${hawser}, which is Hawser (/etc/crictl.yaml)`],
    [
      `runtime-endpoint: ${containerd}\nimage-endpoint: ""\n`,
      `slow image endpoint: ${containerd} in /etc/crictl.yaml: "crictl pull" goes past Hawser -> set image-endpoint: ${hawser} in /etc/crictl.yaml`,
    ],
    [
      "timeout: 10\n",
      `slow image endpoint: not set in /etc/crictl.yaml: "crictl pull" goes past Hawser -> set image-endpoint: ${hawser} in /etc/crictl.yaml`,
    ],
  ])("%j", async (text, expected) => {
    node.write("/etc/crictl.yaml", text);
    expect(lines(await all(checkCrictl(node.context())))).toEqual([expected]);
  });

  test("none, and RKE2's", async () => {
    const none = "unknown image endpoint: there is no /etc/crictl.yaml; crictl asks containerd by itself";
    expect(lines(await all(checkCrictl(node.context())))).toEqual([none]);
    node.write("/var/lib/rancher/rke2/agent/etc/crictl.yaml", `image-endpoint: ${hawser}\n`);
    expect((await all(checkCrictl(node.context())))[0]?.state).toBe("ok");
  });

  test("what cannot be read is said, with its file", async () => {
    node.write("/etc/crictl.yaml", "{");
    await expect(all(checkCrictl(node.context()))).rejects.toThrow("/etc/crictl.yaml: line 1: Flow map");
  });
});
