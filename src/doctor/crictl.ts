// crictl: which socket it asks for images, so that whoever looks into a node by hand sees what kubelet gets.

import { PullError } from "../errors.ts";
import { readTopLevel } from "../yaml.ts";
import type { Context, Finding } from "./doctor.ts";
import { plainPath, socketOf } from "./processes.ts";

const usualFiles = [
  "/etc/crictl.yaml",
  "/var/lib/rancher/k3s/agent/etc/crictl.yaml",
  "/var/lib/rancher/rke2/agent/etc/crictl.yaml",
];

export async function* checkCrictl({ tree, options }: Context): AsyncGenerator<Finding> {
  const what = "image endpoint";
  for (const file of usualFiles) {
    const text = await tree.readIfThere(file);
    if (text === undefined) continue;
    const values = read(file, text);
    const endpoint = values.get("image-endpoint") || values.get("runtime-endpoint") || "";
    if (socketOf(endpoint) === plainPath(options.socket)) {
      yield { state: "ok", what, finding: `${endpoint}, which is Hawser (${file})` };
      return;
    }
    const asked = endpoint === "" ? "not set" : endpoint;
    const finding = `${asked} in ${file}: "crictl pull" goes past Hawser`;
    yield { state: "slow", what, finding, todo: `set image-endpoint: unix://${options.socket} in ${file}` };
    return;
  }
  yield { state: "unknown", what, finding: `there is no ${usualFiles[0]}; crictl asks containerd by itself` };
}

function read(file: string, text: string): Map<string, string> {
  try {
    return readTopLevel(text);
  } catch (error) {
    throw new PullError("unsupported", `${file}: ${PullError.from(error).message}`);
  }
}
