// hawser install: lays a bundle down as a service of this node, has it prove that it works, and turns kubelet to it.
//
// Everything that can be found wrong beforehand is; what goes wrong later is taken back. kubelet's configuration is the
// last thing to change, behind the proof, and nothing that runs already is restarted unless that is asked for.

import { PullError } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import { type Bundle, openBundle, placeOf, unitOf } from "./bundle.ts";
import { mustAccelerate } from "./health.ts";
import { changeKubelet, type Planned, planKubelet, restartCommand, restartKubelet } from "./kubelet.ts";
import { takeLock } from "./lock.ts";
import { Maker } from "./maker.ts";
import { configFor, dropInFor, findContainerd } from "./node.ts";
import { endpoint, places, unitNames } from "./places.ts";
import { Record } from "./record.ts";
import { mustBeBooted, systemctl } from "./systemd.ts";
import { takeAway } from "./uninstall.ts";

export interface InstallOptions {
  /** Root of the bundle that is running; undefined when it is none. */
  readonly bundle: string | undefined;
  readonly version: string;
  /** Socket of containerd; found where it is undefined. */
  readonly containerd: string | undefined;
  readonly kubelet: KubeletWish;
  /** The daemon's admin socket; undefined when it has none, so that it cannot be asked. */
  readonly adminSocket: string | undefined;
  readonly say: (line: string) => void;
  readonly signal: AbortSignal;
}

interface KubeletWish {
  /** Its configuration, to be changed; undefined when that is only to be explained. */
  readonly file: string | undefined;
  /** maxParallelImagePulls, with serializeImagePulls: false; undefined leaves both as they are. */
  readonly parallel: number | undefined;
  readonly restart: boolean;
}

export async function install(options: InstallOptions): Promise<void> {
  const { say, kubelet } = options;
  mustBeBooted();
  await using _lock = await takeLock();
  const bundle = await openBundle(options.bundle, options.version);
  const planned = kubelet.file === undefined ? undefined : await planKubelet(kubelet.file, kubelet.parallel);
  let record = await Record.read();
  if (record !== undefined && record.now.phase !== "installed" && record.now.phase !== "upgrading") {
    say("an installation that was broken off is taken back first");
    await takeAway(record, say);
    record = undefined;
  }
  if (record !== undefined && record.now.version !== bundle.version)
    throw new PullError(
      "exists",
      `version ${record.now.version} is installed; "hawser upgrade" replaces it with ${bundle.version}`,
    );
  if (record === undefined) record = await layDown(bundle, options);
  else say(`version ${bundle.version} is installed already`);
  await turnKubelet(record, planned, options);
}

async function layDown(bundle: Bundle, options: InstallOptions): Promise<Record> {
  const { say, adminSocket, signal } = options;
  const containerd = await findContainerd(options.containerd);
  say(`containerd answers at ${containerd.address}, with its content in ${containerd.content}`);
  const record = Record.begin({ version: bundle.version, containerd });
  const maker = new Maker(record);
  try {
    await record.set({});
    await maker.tree(placeOf(bundle.version), bundle.root);
    await maker.link(places.current, `versions/${bundle.version}`);
    await maker.link(places.command, `${places.current}/bin/hawser`);
    const dropIn = dropInFor(containerd);
    if (dropIn !== undefined) await maker.file(places.dropIn, dropIn);
    const isNew = await maker.fileUnlessThere(places.config, configFor(containerd));
    if (!isNew) say(`${places.config} is there already and stays as it is`);
    for (const name of unitNames) await maker.file(`${places.units}/${name}`, await unitOf(bundle, name));
    say(`version ${bundle.version} is in ${placeOf(bundle.version)}, its units in ${places.units}`);
    failpoint("laid-down");
    await systemctl("daemon-reload");
    await systemctl("enable", "--now", ...unitNames);
    if (adminSocket !== undefined) await mustAccelerate(adminSocket, bundle.version, signal);
    say(adminSocket === undefined ? "the daemon runs" : "the daemon runs, and its self-test has passed");
    await record.set({ phase: "installed" });
    return record;
  } catch (error) {
    say("taking back what was installed");
    await takeAway(record, say);
    throw error;
  }
}

async function turnKubelet(
  record: Record,
  planned: Planned | undefined,
  { say, kubelet }: InstallOptions,
): Promise<void> {
  if (planned === undefined) {
    say(
      `to have kubelet use it, set imageServiceEndpoint: ${endpoint} in kubelet's configuration and restart kubelet;`,
    );
    say('"hawser install --kubelet-config FILE" makes that change; "hawser doctor" names the file');
    return;
  }
  const isSame = planned.newText === planned.oldText;
  if (!isSame) await changeKubelet(record, planned);
  say(isSame ? `${planned.file} names Hawser already` : `${planned.file} names Hawser now`);
  if (kubelet.restart) say(`${await restartKubelet()} was restarted`);
  else say(`kubelet reads that when it starts: ${await restartCommand()}`);
}
