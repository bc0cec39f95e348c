// What tests of installations have in common: a kubelet to turn, releases of other versions, and what is on a node.

import { createHash } from "node:crypto";
import { cpSync, lstatSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { PrivateNode } from "./node.ts";

export const kubeletConfig = "/var/lib/kubelet/config.yaml";
export const kubeletText = `# made by kubeadm
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
serializeImagePulls: true # slow
`;
/** A process that is called kubelet and has its flags; what kubelet asks is asked by the tests. */
export const kubeletUnit = `[Service]
ExecStart=/bin/bash -c "exec -a kubelet bash -c 'while :; do sleep 1000; done' kubelet --config=${kubeletConfig}"
`;

/** What is on the node, but for what its other programs write all the time. */
export async function inventoryOf(node: PrivateNode): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  const passing =
    /^\/(?:proc|sys|dev|tmp|root|var\/log|var\/lib\/systemd|var\/lib\/containerd\/io\.containerd\.[^/]*|run\/(?!hawser).*)$/;
  const walk = (path: string): void => {
    for (const name of readdirSync(node.at(path))) {
      const own = join(path, name);
      if (passing.test(own)) continue;
      const status = lstatSync(node.at(own));
      const { mode, uid, gid, size } = status;
      // Programs and libraries are Debian's.
      const isRead = status.isFile() && !own.startsWith("/usr/");
      const content = isRead
        ? createHash("sha256")
            .update(readFileSync(node.at(own)))
            .digest("hex")
        : status.isSymbolicLink()
          ? readlinkSync(node.at(own))
          : "";
      found.set(own, [mode.toString(8), uid, gid, status.isDirectory() ? "" : size, content].join(" "));
      if (status.isDirectory()) walk(own);
    }
  };
  walk("/");
  // containerd's own folders, for what Hawser has beside its files.
  for (const folder of readdirSync(node.at("/var/lib/containerd")))
    for (const name of readdirSync(node.at(`/var/lib/containerd/${folder}`)))
      if (name.includes("hawser")) found.set(`${folder}/${name}`, "");
  found.set("leases", await node.ask("ctr", "--namespace", "k8s.io", "leases", "list", "--quiet"));
  // containerd's own begins with the first pull.
  const namespaces = (await node.ask("ctr", "namespaces", "list", "--quiet")).split("\n");
  found.set("namespaces", namespaces.filter((name) => name !== "k8s.io").join(" "));
  found.set("units", (await node.run("systemctl", "list-unit-files", "--no-legend", "hawser*")).stdout);
  return found;
}

/** A release of another version, made of the bundle in a folder of the node; `change` may spoil it. */
export async function release(
  node: PrivateNode,
  bundle: string,
  other: string,
  change: (root: string) => void = () => {},
): Promise<string> {
  const folder = `/root/hawser-${other}`;
  const root = node.at(folder);
  cpSync(node.at(bundle), root, { recursive: true, verbatimSymlinks: true });
  const path = join(root, "lib/hawser/package.json");
  writeFileSync(path, readFileSync(path, "utf8").replace(/"version": "[^"]+"/, `"version": "${other}"`));
  change(root);
  const sums = await node.ask(
    "sh",
    "-c",
    `cd ${folder} && find . -type f ! -name SHA256SUMS -printf '%P\\n' | sort | xargs sha256sum`,
  );
  writeFileSync(join(root, "SHA256SUMS"), `${sums}\n`);
  return folder;
}
