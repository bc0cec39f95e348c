// hawser install: lays a bundle down as a service of this node, has it prove that it works, and turns kubelet to it.
//
// Everything that can be found wrong beforehand is; what goes wrong later is taken back. kubelet's configuration is the
// last thing to change, behind the proof, and nothing that runs already is restarted unless that is asked for.

import { PullError } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import { type Bundle, isReleased, openBundle, placeOf, unitOf } from "./bundle.ts";
import { type Configuration, replaceConfiguration } from "./configuration.ts";
import { mustAccelerate } from "./health.ts";
import {
  changeKubelet,
  hasRead,
  type Planned,
  planKubelet,
  restartCommand,
  restartKubelet,
  restoreKubelet,
  whyInUse,
} from "./kubelet.ts";
import { takeLock } from "./lock.ts";
import { Maker } from "./maker.ts";
import { configFor, dropInFor, findContainerd } from "./node.ts";
import { endpoint, places, unitNames } from "./places.ts";
import { Record } from "./record.ts";
import { mustBeBooted, systemctl } from "./systemd.ts";
import { takeAway } from "./uninstall.ts";
import { succeed, upgradeTo } from "./upgrade.ts";

export interface InstallOptions {
  /** Root of the bundle that is running; undefined when it is none. */
  readonly bundle: string | undefined;
  readonly version: string;
  /** Socket of containerd; found where it is undefined. */
  readonly containerd: string | undefined;
  readonly kubelet: KubeletWish;
  /** To be laid down, and to replace what an installation has laid down; found right beforehand. */
  readonly configuration: Configuration | undefined;
  /** Whether a version that is installed may be replaced. */
  readonly upgrade: boolean;
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
  const isNew = record === undefined;
  if (record === undefined) record = await layDown(bundle, options);
  else await bringUp(bundle, record, options);
  try {
    await turnKubelet(record, planned, options);
  } catch (error) {
    if (isNew) await undo(record, say);
    throw error;
  }
}

/** What is installed becomes what was asked for, and has to prove that it works before kubelet is turned to it. */
async function bringUp(bundle: Bundle, record: Record, options: InstallOptions): Promise<void> {
  const { version, phase } = record.now;
  const { say } = options;
  const isSame = version === bundle.version;
  if (!isSame && !options.upgrade)
    throw new PullError(
      "exists",
      `version ${version} is installed; "hawser upgrade" replaces it with ${bundle.version}`,
    );
  if (!isSame || phase !== "installed") {
    await upgradeTo(bundle, record, options);
    return;
  }
  say(`version ${version} is installed already`);
  const maker = new Maker(record);
  const isWhole = async (path: string): Promise<boolean> => await isReleased(path, version);
  await maker.tree(placeOf(version), bundle.root, isWhole);
  await layUnits(maker, bundle);
  await prove(options.adminSocket, options);
  await reconfigure(maker, record, options);
}

/** By a successor of the daemon that runs: no call fails, and no key is left for a restart. */
async function reconfigure(maker: Maker, record: Record, options: InstallOptions): Promise<void> {
  const { configuration, say, signal, adminSocket } = options;
  const replaced = configuration && (await replaceConfiguration(maker, record, configuration, say));
  if (replaced === undefined) return;
  const { version } = record.now;
  try {
    await succeed({ adminSocket, nextSocket: replaced.adminSocket, signal }, version);
  } catch (error) {
    say("putting the former configuration back");
    await replaced.undo();
    await succeed({ adminSocket: replaced.adminSocket, nextSocket: adminSocket, signal }, version).catch(
      () => {},
    );
    throw error;
  }
}

async function layUnits(maker: Maker, bundle: Bundle): Promise<void> {
  for (const name of unitNames) await maker.file(`${places.units}/${name}`, await unitOf(bundle, name));
  await systemctl("daemon-reload");
  await systemctl("enable", "--now", ...unitNames);
}

async function prove(
  adminSocket: string | undefined,
  { version, say, signal }: InstallOptions,
): Promise<void> {
  if (adminSocket !== undefined) await mustAccelerate(adminSocket, version, signal);
  say(adminSocket === undefined ? "the daemon runs" : "the daemon runs, and its self-test has passed");
}

/** kubelet first, and nothing more where it would still ask Hawser. */
async function undo(record: Record, say: (line: string) => void): Promise<void> {
  const restored = await restoreKubelet(record).catch((error: unknown) => PullError.from(error).message);
  if (restored !== undefined) say(restored);
  if ((await whyInUse(record.now.kubelet)) === undefined) await takeBack(record, say);
}

/** Never throws: why it is taken back is what counts. */
async function takeBack(record: Record, say: (line: string) => void): Promise<void> {
  say("taking back what was installed");
  try {
    await takeAway(record, say);
  } catch (error) {
    say(`that stopped halfway (${PullError.from(error).message}): "hawser uninstall" goes on with it`);
  }
}

async function layDown(bundle: Bundle, options: InstallOptions): Promise<Record> {
  const { say, configuration } = options;
  const containerd = await findContainerd(options.containerd);
  say(`containerd answers at ${containerd.address}, with its content in ${containerd.content}`);
  const record = Record.begin({ version: bundle.version, containerd });
  const maker = new Maker(record);
  try {
    await record.set({});
    await maker.tree(placeOf(bundle.version), bundle.root, async () => false);
    await maker.link(places.current, `versions/${bundle.version}`);
    await maker.link(places.command, `${places.current}/bin/hawser`);
    const dropIn = dropInFor(containerd);
    if (dropIn !== undefined) await maker.file(places.dropIn, dropIn);
    const isNew = await maker.fileUnlessThere(places.config, configFor(containerd, configuration?.text));
    if (!isNew) say(`${places.config} is there already and stays as it is`);
    say(`version ${bundle.version} is in ${placeOf(bundle.version)}, its units in ${places.units}`);
    failpoint("laid-down");
    await layUnits(maker, bundle);
    await prove(isNew && configuration ? configuration.adminSocket : options.adminSocket, options);
    await record.set({ phase: "installed" });
    return record;
  } catch (error) {
    await takeBack(record, say);
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
  if (isSame && (await hasRead(record.now.kubelet))) return;
  if (kubelet.restart) say(`${await restartKubelet(record)} was restarted`);
  else say(`kubelet reads that when it starts: ${await restartCommand()}`);
}
