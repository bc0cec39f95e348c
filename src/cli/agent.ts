// hawser agent: what a DaemonSet of config/kubernetes runs on every node.

import { runAgent } from "../agent/agent.ts";
import { Cluster, type DaemonSetName } from "../agent/cluster.ts";
import { onNode } from "../agent/node.ts";
import { loadConfig } from "../config.ts";
import { PullError } from "../errors.ts";
import { places } from "../install/places.ts";
import { type Command, type Context, parseOptions, UsageError } from "./command.ts";

const account = "/var/run/secrets/kubernetes.io/serviceaccount";

export const agent: Command = {
  name: "agent",
  summary: "have the node that this container runs on use this release, as a DaemonSet does",
  help: `Usage: hawser agent [OPTIONS]

For a privileged container that shares the node's process ids. Installs this release as a service of the node, or upgrades
it, and then relays the service's metrics until it is told to end. If its DaemonSet is gone by then, kubelet is given back
to containerd and nothing of Hawser stays on the node; else everything stays.

Options:
  --kubelet-config FILE, --max-parallel-image-pulls N, --restart-kubelet, --containerd SOCKET
                              of "hawser install", with files of the node
  --config FILE               of "hawser install", with a file of this container
  --images FOLDER             of this container: its files name images, one on a line, for the node to fetch ahead of need
  --daemonset NAMESPACE/NAME  whose pod this is; without it nothing is ever taken away
  --listen ADDRESS            where /metrics and /healthz are served (default: nowhere)
  --port N                    at that address (default 9464)
`,
  run: async (args, context) => {
    const options = {
      "kubelet-config": { type: "string" },
      "max-parallel-image-pulls": { type: "string" },
      "restart-kubelet": { type: "boolean" },
      containerd: { type: "string" },
      config: { type: "string" },
      images: { type: "string" },
      daemonset: { type: "string" },
      listen: { type: "string" },
      port: { type: "string", default: "9464" },
    } as const;
    const { values } = parseOptions(args, options, 0);
    // Kubernetes has no way to leave an option out, so an empty one is none.
    const given = (name: "kubelet-config" | "max-parallel-image-pulls" | "containerd"): string[] =>
      values[name] ? [`--${name}`, values[name]] : [];
    const restart = values["restart-kubelet"] ? ["--restart-kubelet"] : [];
    const ofKubelet = [...given("kubelet-config"), ...given("max-parallel-image-pulls"), ...restart];
    const owner = values.daemonset === undefined ? undefined : ownerOf(values.daemonset, context);
    const port = portOf(values.port);
    await runAgent({
      bundle: context.environment["HAWSER_BUNDLE"],
      installing: [...given("containerd"), ...(values["kubelet-config"] ? ofKubelet : [])],
      removing: restart,
      config: values.config,
      images: values.images,
      owner,
      listen: values.listen === undefined ? undefined : { host: values.listen, port },
      adminSocket,
      say: (line) => context.stdout(`${line}\n`),
      warn: (line) => context.stderr(`hawser: ${line}\n`),
      signal: context.interrupted,
    });
    return 0;
  },
};

/** Read each time: the node's configuration is changed while this runs. */
async function adminSocket(): Promise<string | undefined> {
  const { config } = await loadConfig(onNode(places.config));
  return config.admin.listen === "off" ? undefined : config.admin.listen;
}

function ownerOf(text: string, { environment }: Context) {
  const [, namespace, name] = /^([a-z0-9-]+)\/([a-z0-9.-]+)$/.exec(text) ?? [];
  if (namespace === undefined || name === undefined)
    throw new UsageError(`--daemonset takes NAMESPACE/NAME, not ${JSON.stringify(text)}`);
  const host = environment["KUBERNETES_SERVICE_HOST"];
  const port = environment["KUBERNETES_SERVICE_PORT"];
  if (!host || !port)
    throw new PullError("invalid", "--daemonset needs a pod: KUBERNETES_SERVICE_HOST and _PORT are not set");
  const daemonSet: DaemonSetName = { namespace, name };
  return { cluster: new Cluster({ host, port, account }), daemonSet };
}

function portOf(text: string): number {
  const port = Number(text);
  if (Number.isInteger(port) && port >= 0 && port <= 65_535) return port;
  throw new UsageError(`--port takes a number up to 65535, not ${JSON.stringify(text)}`);
}
