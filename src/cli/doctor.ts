// hawser doctor: what is good, slow or broken on this node, and what to do about it.

import { statSync } from "node:fs";
import { type Loaded, loadConfig } from "../config.ts";
import type { DoctorOptions, RegistryTarget, Report } from "../doctor/doctor.ts";
import { examine } from "../doctor/examine.ts";
import { isBroken, renderJson, renderReport, renderSum } from "../doctor/report.ts";
import { PullError } from "../errors.ts";
import { hostStreamsOf, streamsOf } from "../limits.ts";
import { parseReference } from "../oci/reference.ts";
import { type Command, type Context, parseOptions, UsageError } from "./command.ts";
import { readLogin } from "./login.ts";

export const doctor: Command = {
  name: "doctor",
  summary: "look at this node, and say what is slow or broken and what to do",
  help: `Usage: hawser doctor [--registry HOST[/REPOSITORY[:TAG]]] [OPTIONS]

Looks at Hawser, containerd, certs.d, kubelet, crictl, disk, limits, proxies and units of this node, and with --registry
at a registry. It changes nothing. Each line says

  ok        as it should be
  slow      works, but speed or safety is lost
  broken    pulls fail, or Hawser cannot do what it is there for
  unknown   could not be found out

and what to do where something is to be done. Exit code 1 if anything is broken, else 0; 137 if something hangs that
cannot be given up, such as a file system. Run it as root.

Options:
  --registry REGISTRY    try this registry: name, connection, TLS, authorization, and with a repository also ranges and
                         rate of its largest layer (counts as a pull there, and reads at most 100 MiB for each host)
  --creds-stdin          read "user:password" for that registry from standard input
  --kubelet-config FILE  kubelet's configuration (default: where the running kubelet says, or the usual places)
  --config FILE          Hawser's configuration (default /etc/hawser/hawser.toml, which need not exist)
  --json                 one JSON document instead of lines

Examples:
  hawser doctor
  hawser doctor --registry registry.example.com/team/app:v1
`,
  run: async (args, context) => {
    const options = {
      registry: { type: "string" },
      "creds-stdin": { type: "boolean" },
      "kubelet-config": { type: "string" },
      config: { type: "string" },
      json: { type: "boolean" },
    } as const;
    const { values } = parseOptions(args, options, 0);
    const named = values.registry === undefined ? undefined : parseTarget(values.registry);
    if (values["creds-stdin"] && named === undefined) throw new UsageError("--creds-stdin needs --registry");
    const login = values["creds-stdin"] ? await readLogin(context.interrupted) : undefined;
    const loaded = await loadConfig(values.config);
    const registry = named && { ...named, credentials: login };
    const asked = optionsOf(loaded, context, registry, values["kubelet-config"]);
    const reports: Report[] = [];
    for await (const report of examine(asked, context.interrupted)) {
      reports.push(report);
      if (!values.json)
        context.stdout(`${reports.length > 1 ? "\n" : ""}${renderReport(report, context.isColoured)}`);
    }
    context.stdout(values.json ? renderJson(reports, context.version) : `\n${renderSum(reports)}`);
    const code = isBroken(reports) || context.interrupted.aborted ? 1 : 0;
    // A file system that hangs holds a thread, which every exit would wait for; only this ends it.
    if (reports.some(({ isStuck }) => isStuck)) process.kill(process.pid, "SIGKILL");
    return code;
  },
};

function optionsOf(
  { config, file, problems }: Loaded,
  { version, packageFile, environment }: Context,
  registry: RegistryTarget | undefined,
  kubeletConfig: string | undefined,
): DoctorOptions {
  const { containerd, cri, download, metrics, unpack } = config;
  return {
    version,
    madeAt: statSync(packageFile).mtime,
    root: "/",
    containerd: {
      address: containerd.address,
      namespace: containerd.namespace,
      configFile: containerd.config_file,
      snapshotter: containerd.snapshotter === "auto" ? undefined : containerd.snapshotter,
    },
    socket: cri.listen,
    metrics: metrics.listen === "off" ? undefined : metrics.listen,
    configuration: {
      file,
      problems: problems.map(({ path, message }) => (path === "" ? message : `${path}: ${message}`)),
    },
    engine: unpack.engine === "portable" ? "portable" : "native",
    configPath: config.registry.config_path === "auto" ? undefined : config.registry.config_path,
    // Enough to see whether several are faster than one.
    streams: Math.min(8, streamsOf(config)),
    hostStreams: hostStreamsOf(config),
    connectTimeoutMs: download.connect_timeout,
    registry,
    kubeletConfig,
    environment,
  };
}

/** `reg.example.com`, or an image there. Without a host, an image is on Docker Hub, as in a pod. */
function parseTarget(text: string): Omit<RegistryTarget, "credentials"> {
  try {
    if (text.includes("/")) {
      const reference = parseReference(text);
      return { host: reference.host, reference };
    }
    // A host alone is one that would be taken for one in front of a repository.
    const { host } = parseReference(`${text}/x`);
    if (host === text || text === "docker.io") return { host, reference: undefined };
  } catch (error) {
    throw new UsageError(PullError.from(error).message);
  }
  throw new UsageError(
    `expected HOST[/REPOSITORY[:TAG]], such as registry.example.com, not ${JSON.stringify(text)}`,
  );
}
