// hawser install: lays a bundle down as a service of this node, has it prove that it works, and turns kubelet to it.
//
// Everything that can be found wrong beforehand is; what goes wrong later is taken back. kubelet's configuration is the
// last thing to change, behind the proof, and nothing that runs already is restarted unless that is asked for.

import { readFile } from "node:fs/promises";
import { PullError } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import { askAdmin } from "../front/client.ts";
import { type Bundle, openBundle, placeOf, unitOf } from "./bundle.ts";
import { mustAccelerate } from "./health.ts";
import {
  changeKubelet,
  hasRead,
  type Planned,
  planKubelet,
  restartCommand,
  restartKubelet,
} from "./kubelet.ts";
import { takeLock } from "./lock.ts";
import { Maker } from "./maker.ts";
import { configFor, dropInFor, findContainerd } from "./node.ts";
import { endpoint, places, unitNames } from "./places.ts";
import { Record } from "./record.ts";
import { mustBeBooted, systemctl } from "./systemd.ts";
import { takeAway } from "./uninstall.ts";
import { upgradeTo } from "./upgrade.ts";

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

export interface Configuration {
  readonly text: string;
  /** What it names; undefined when it has none. */
  readonly adminSocket: string | undefined;
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
  if (record === undefined) record = await layDown(bundle, options);
  else await bringUp(bundle, record, options);
  await turnKubelet(record, planned, options);
}

/** What is installed becomes what was asked for. */
async function bringUp(bundle: Bundle, record: Record, options: InstallOptions): Promise<void> {
  const { version, phase } = record.now;
  const { say } = options;
  if (version === bundle.version && phase === "installed") say(`version ${version} is installed already`);
  else if (version === bundle.version || options.upgrade) await upgradeTo(bundle, record, options);
  else
    throw new PullError(
      "exists",
      `version ${version} is installed; "hawser upgrade" replaces it with ${bundle.version}`,
    );
  if (options.configuration !== undefined) await configure(record, options.configuration, options);
}

/** The daemon that runs has to take the new configuration, or the old one is put back. */
async function configure(
  record: Record,
  { text: given }: Configuration,
  { adminSocket, say }: InstallOptions,
): Promise<void> {
  const text = configFor(record.now.containerd, given);
  const old = await readFile(places.config, "utf8").catch(() => "");
  if (old === text) return;
  if (!record.now.made.some(({ path }) => path === places.config)) {
    say(`${places.config} was there before Hawser and stays as it is`);
    return;
  }
  const maker = new Maker(record);
  await maker.file(places.config, text);
  try {
    const messages = await reload(adminSocket);
    say(`${places.config} was replaced: ${messages.join("; ")}`);
  } catch (error) {
    await maker.file(places.config, old);
    throw error;
  }
}

async function reload(adminSocket: string | undefined): Promise<readonly string[]> {
  if (adminSocket !== undefined)
    return ((await askAdmin(adminSocket, "POST", "/reload")) as { readonly messages: string[] }).messages;
  await systemctl("reload", "hawser.service");
  return ["the daemon was told, and says in its log what became of it"];
}

async function layDown(bundle: Bundle, options: InstallOptions): Promise<Record> {
  const { say, configuration, signal } = options;
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
    const isNew = await maker.fileUnlessThere(places.config, configFor(containerd, configuration?.text));
    if (!isNew) say(`${places.config} is there already and stays as it is`);
    for (const name of unitNames) await maker.file(`${places.units}/${name}`, await unitOf(bundle, name));
    say(`version ${bundle.version} is in ${placeOf(bundle.version)}, its units in ${places.units}`);
    failpoint("laid-down");
    await systemctl("daemon-reload");
    await systemctl("enable", "--now", ...unitNames);
    const { adminSocket } = isNew && configuration ? configuration : options;
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
  if (isSame && (await hasRead(record.now.kubelet))) return;
  if (kubelet.restart) say(`${await restartKubelet()} was restarted`);
  else say(`kubelet reads that when it starts: ${await restartCommand()}`);
}
