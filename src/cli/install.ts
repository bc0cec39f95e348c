// hawser install, hawser uninstall, and hawser upgrade without a workload: Hawser as a service of this node.

import { readFile } from "node:fs/promises";
import { type Config, loadConfig } from "../config.ts";
import { PullError } from "../errors.ts";
import type { Configuration } from "../install/configuration.ts";
import { install as installOn } from "../install/install.ts";
import { uninstall as removeFrom } from "../install/uninstall.ts";
import { upgrade as upgradeOn } from "../install/upgrade.ts";
import { type Command, type Context, parseOptions, UsageError } from "./command.ts";

export const install: Command = {
  name: "install",
  summary: "make this release a service of this node",
  help: `Usage: hawser install [OPTIONS]

Lays this release down in /opt/hawser, its units in /etc/systemd/system and a configuration in /etc/hawser, starts it, and
has it prove on this node's containerd that it works. If anything fails, all of it is taken back. Run it as root, from
the release: ./bin/hawser install.

Nothing that runs is restarted. kubelet uses Hawser once its configuration says so and it was restarted.

Options:
  --kubelet-config FILE            change kubelet's configuration (or with k3s and RKE2 a new .conf in its folder of
                                   drop-ins): imageServiceEndpoint. The file as it was is kept and put back by uninstall.
  --max-parallel-image-pulls N     in that file also serializeImagePulls: false and maxParallelImagePulls: N
  --restart-kubelet                restart kubelet, so that it takes effect at once
  --containerd SOCKET              containerd's socket (default: that of containerd, or of k3s or RKE2)
  --config FILE                    what to lay down in /etc/hawser; on a node with Hawser it replaces what was laid down
                                   before, and is read at once. What was there before Hawser stays.
  --upgrade                        replace another version that is installed, as "hawser upgrade" does
`,
  run: async (args, context) => {
    const options = {
      "kubelet-config": { type: "string" },
      "max-parallel-image-pulls": { type: "string" },
      "restart-kubelet": { type: "boolean" },
      containerd: { type: "string" },
      config: { type: "string" },
      upgrade: { type: "boolean" },
    } as const;
    const { values } = parseOptions(args, options, 0);
    const file = filled("--kubelet-config", values["kubelet-config"]);
    const config = filled("--config", values.config);
    const parallel = countOf(values["max-parallel-image-pulls"]);
    if (parallel !== undefined && file === undefined)
      throw new UsageError("--max-parallel-image-pulls goes with --kubelet-config");
    if (values["restart-kubelet"] && file === undefined)
      throw new UsageError("--restart-kubelet goes with --kubelet-config");
    const containerd = socketPath(values.containerd);
    await mustBeRoot();
    await installOn({
      ...(await common(context)),
      containerd,
      configuration: config === undefined ? undefined : await readConfiguration(config),
      upgrade: values.upgrade ?? false,
      kubelet: { file, parallel, restart: values["restart-kubelet"] ?? false },
    });
    return 0;
  },
};

export const uninstall: Command = {
  name: "uninstall",
  summary: "give kubelet back to containerd, and leave nothing of Hawser",
  help: `Usage: hawser uninstall [--restart-kubelet] [--force]

Puts kubelet's configuration back as it was, then removes everything that "hawser install" has made, the configuration in
/etc/hawser included unless it was there before. Images stay. While a running kubelet would still ask Hawser, nothing is
removed: restart kubelet, and run this again.

Options:
  --restart-kubelet   restart kubelet once its configuration is put back, and go on
  --force             remove it even though kubelet still asks it: pulls fail until kubelet is restarted
`,
  run: async (args, { stdout }) => {
    const options = { "restart-kubelet": { type: "boolean" }, force: { type: "boolean" } } as const;
    const { values } = parseOptions(args, options, 0);
    await mustBeRoot();
    await removeFrom({
      restartKubelet: values["restart-kubelet"] ?? false,
      force: values.force ?? false,
      say: (line) => stdout(`${line}\n`),
    });
    return 0;
  },
};

/** Has this release take the place of the installed one. */
export async function upgradeRelease(context: Context): Promise<number> {
  await mustBeRoot();
  await upgradeOn(await common(context));
  return 0;
}

/** Throws `invalid` with all that is wrong with it. */
async function readConfiguration(file: string): Promise<Configuration> {
  const { config, problems } = await loadConfig(file);
  const said = problems.map(({ path, message }) => (path ? `${path}: ${message}` : message));
  if (said.length > 0) throw new PullError("invalid", `${file}: ${said.join("; ")}`);
  return { text: await readFile(file, "utf8"), adminSocket: adminSocketOf(config) };
}

function adminSocketOf({ admin }: Config): string | undefined {
  return admin.listen === "off" ? undefined : admin.listen;
}

async function common({ version, environment, stdout, interrupted }: Context) {
  const { config } = await loadConfig(undefined);
  return {
    bundle: environment["HAWSER_BUNDLE"],
    version,
    adminSocket: adminSocketOf(config),
    say: (line: string) => stdout(`${line}\n`),
    signal: interrupted,
  };
}

// A promise, so that it fails like everything else here.
async function mustBeRoot(): Promise<void> {
  if (process.getuid?.() !== 0) throw new PullError("refused", "this changes the node: run it as root");
  // What is laid down is for everybody to read.
  process.umask(0o022);
}

function filled(option: string, value: string | undefined): string | undefined {
  if (value === "") throw new UsageError(`${option} takes the name of a file`);
  return value;
}

function socketPath(named: string | undefined): string | undefined {
  const path = named?.replace(/^unix:\/\//, "");
  if (path === undefined || path.startsWith("/")) return path;
  throw new UsageError(`--containerd takes the absolute path of a socket, not ${JSON.stringify(named)}`);
}

function countOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const count = Number(text);
  if (Number.isInteger(count) && count >= 2 && count <= 1000) return count;
  throw new UsageError(
    `--max-parallel-image-pulls takes a number from 2 to 1000, not ${JSON.stringify(text)}`,
  );
}
