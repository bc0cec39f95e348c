// hawser upgrade: another version takes the place of the installed one while calls go on.
//
// The new bundle is laid down beside the old one and the link to the present one is turned over. The daemon that runs
// then starts its successor, which takes the socket at once and has to prove that it works; else everything turns back.

import { readFile, rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { PullError } from "../errors.ts";
import { askAdmin } from "../front/client.ts";
import { type Bundle, isReleased, openBundle, placeOf, unitOf } from "./bundle.ts";
import { type Configuration, type Replaced, replaceConfiguration } from "./configuration.ts";
import { askStatus, mustAccelerate } from "./health.ts";
import { takeLock } from "./lock.ts";
import { Maker } from "./maker.ts";
import { startOf } from "./moment.ts";
import { places, unitNames } from "./places.ts";
import { Record } from "./record.ts";
import { mainPid, mustBeBooted, systemctl } from "./systemd.ts";

export interface UpgradeOptions {
  readonly bundle: string | undefined;
  readonly version: string;
  readonly adminSocket: string | undefined;
  /** To be laid down with the new version, which may not know the keys of the former one's, nor the other way round. */
  readonly configuration?: Configuration | undefined;
  readonly say: (line: string) => void;
  readonly signal: AbortSignal;
}

const service = "hawser.service";
/** Until the daemon that was succeeded has ended: ten seconds for its pulls, and as much again for all else. */
const leaveMs = 60_000;

export async function upgrade(options: UpgradeOptions): Promise<void> {
  mustBeBooted();
  await using _lock = await takeLock();
  const bundle = await openBundle(options.bundle, options.version);
  const record = await Record.read();
  if (record === undefined)
    throw new PullError("not_found", 'nothing is installed to be upgraded: "hawser install"');
  const { phase } = record.now;
  if (phase !== "installed" && phase !== "upgrading")
    throw new PullError(
      "invalid",
      `the installation was broken off (${phase}): "hawser install" or "hawser uninstall"`,
    );
  if (record.now.version === bundle.version && phase === "installed")
    options.say(`version ${bundle.version} is installed already`);
  else await upgradeTo(bundle, record, options);
}

/** For whoever has the lock, and a record of what is installed or was being upgraded. */
export async function upgradeTo(bundle: Bundle, record: Record, options: UpgradeOptions): Promise<void> {
  const { say } = options;
  const { version } = bundle;
  const former = record.now.version;
  await record.set({ phase: "upgrading" });
  const maker = new Maker(record);
  const units = await readUnits();
  let replaced: Replaced | undefined;
  try {
    await maker.tree(placeOf(version), bundle.root, async (path) => await isReleased(path, version));
    const { configuration } = options;
    replaced = configuration && (await replaceConfiguration(maker, record, configuration, say));
    await turn(maker, bundle, {
      ...options,
      nextSocket: replaced ? replaced.adminSocket : options.adminSocket,
    });
  } catch (error) {
    say(`going back to version ${former}: ${PullError.from(error).message}`);
    await replaced?.undo();
    await turnBack(maker, former, units, options);
    if (former !== version) await maker.unmake(({ path }) => path === placeOf(version));
    await record.set({ phase: "installed" });
    throw error;
  }
  await record.set({ phase: "installed", version });
  await maker.unmake(({ path }) => path.startsWith(`${places.versions}/`) && path !== placeOf(version));
  say(`version ${version} serves in the place of ${former}`);
}

async function turn(maker: Maker, bundle: Bundle, sockets: Succession): Promise<void> {
  for (const name of unitNames) await maker.file(`${places.units}/${name}`, await unitOf(bundle, name));
  await maker.link(places.current, `versions/${bundle.version}`);
  await systemctl("daemon-reload");
  await succeed(sockets, bundle.version);
}

async function turnBack(
  maker: Maker,
  former: string,
  units: ReadonlyMap<string, string>,
  options: UpgradeOptions,
): Promise<void> {
  for (const [name, text] of units) await maker.file(`${places.units}/${name}`, text);
  await maker.link(places.current, `versions/${former}`);
  await systemctl("daemon-reload");
  const { adminSocket } = options;
  const serving = adminSocket === undefined ? undefined : await askStatus(adminSocket);
  // Where the successor never served, the one that ran before still does.
  if (typeof serving === "object" && serving.version === former) return;
  const { signal } = new AbortController();
  await succeed({ adminSocket, nextSocket: adminSocket, signal }, former);
}

/** Where a daemon is asked for a successor, and where that is asked what it does; undefined where there is no such socket. */
interface Succession {
  readonly adminSocket: string | undefined;
  readonly nextSocket: string | undefined;
  readonly signal: AbortSignal;
}

/** Has `version` serve: the daemon that runs starts it as its successor; where none does, systemd starts it. */
export async function succeed(
  { adminSocket, nextSocket, signal }: Succession,
  version: string,
): Promise<void> {
  const pid = await mainPid(service);
  const isDaemon = await isServing(pid);
  // One whose configuration was changed behind its back listens where it did before.
  const isHeard = adminSocket !== undefined && typeof (await askStatus(adminSocket)) === "object";
  if (isDaemon && isHeard) await askAdmin(adminSocket, "POST", "/succeed");
  else if (isDaemon) await systemctl("kill", "--kill-who=main", "--signal=SIGUSR2", service);
  else {
    // The starts of a version that did not keep running are not held against this one.
    await rm(`${places.runtime}/starts`, { force: true });
    await systemctl("restart", service);
  }
  if (nextSocket !== undefined) await mustAccelerate(nextSocket, version, signal);
  if (isDaemon) await untilGone(pid);
}

/** False for systemd-socket-proxyd, which stands in for a daemon that did not keep running. */
async function isServing(pid: number): Promise<boolean> {
  const command = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
  return command.split("\0").includes("serve");
}

/** Its files may go once it has ended. */
async function untilGone(pid: number): Promise<void> {
  const start = startOf(pid)?.seconds;
  for (const until = performance.now() + leaveMs; startOf(pid)?.seconds === start; ) {
    if (start === undefined) return;
    if (performance.now() > until)
      throw new PullError("unavailable", `process ${pid}, of the version before, does not end`);
    await sleep(100);
  }
}

async function readUnits(): Promise<Map<string, string>> {
  const texts = unitNames.map(
    async (name): Promise<[string, string]> => [name, await readFile(`${places.units}/${name}`, "utf8")],
  );
  return new Map(await Promise.all(texts));
}
