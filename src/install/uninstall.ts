// hawser uninstall: gives kubelet back to containerd first, then takes everything away that an installation has made.
//
// Nothing goes for as long as a kubelet that runs would ask Hawser: its pulls would fail. What Hawser has in containerd
// and beside its files goes as well; images that it has pulled are containerd's, and stay.

import { rm } from "node:fs/promises";
import { createContainerd } from "../containerd/client.ts";
import { PullError } from "../errors.ts";
import { removeTraces } from "../pull/traces.ts";
import { restartKubelet, restoreKubelet, whyInUse } from "./kubelet.ts";
import { takeLock } from "./lock.ts";
import { Maker } from "./maker.ts";
import { places, unitNames } from "./places.ts";
import { type Installation, Record } from "./record.ts";
import { mustBeBooted, systemctl } from "./systemd.ts";

export interface UninstallOptions {
  readonly restartKubelet: boolean;
  /** Even though kubelet still asks Hawser. */
  readonly force: boolean;
  readonly say: (line: string) => void;
}

export async function uninstall({
  restartKubelet: isToRestart,
  force,
  say,
}: UninstallOptions): Promise<void> {
  mustBeBooted();
  await using _lock = await takeLock();
  const record = await Record.read();
  // Of a container that was killed on its way.
  await rm(places.incoming, { recursive: true, force: true });
  if (record === undefined)
    throw new PullError("not_found", `nothing is installed: there is no ${places.record}`);
  const restored = await restoreKubelet(record);
  if (restored !== undefined) say(restored);
  if (isToRestart && record.now.kubelet !== undefined) say(`${await restartKubelet(record)} was restarted`);
  const use = await whyInUse(record.now.kubelet);
  if (use !== undefined && !force) {
    const todo = 'then "hawser uninstall" again, or have it done with --restart-kubelet';
    throw new PullError("unavailable", `${use}, ${todo}; nothing was removed`);
  }
  await takeAway(record, say);
  say(`version ${record.now.version} is removed`);
}

/** Everything but kubelet's configuration. What was broken off is gone on with by the next call. */
export async function takeAway(record: Record, say: (line: string) => void): Promise<void> {
  await record.set({ phase: "removing" });
  const maker = new Maker(record);
  // The socket first, so that nothing starts the service again.
  for (const name of unitNames) await stop(name);
  await cleanContainerd(record.now.containerd, say);
  await maker.unmake();
  await systemctl("daemon-reload");
  await systemctl("reset-failed", ...unitNames).catch(() => {});
  await rm(places.runtime, { recursive: true, force: true });
  // The record is in it.
  await rm(places.state, { recursive: true, force: true });
}

/** A unit that was never laid down is no reason to stop here. */
async function stop(name: string): Promise<void> {
  const state = await systemctl("show", "--property=LoadState", "--value", name);
  if (state !== "not-found") await systemctl("disable", "--now", name);
}

async function cleanContainerd(
  { address }: Installation["containerd"],
  say: (line: string) => void,
): Promise<void> {
  const options = { address, namespace: "k8s.io", snapshotter: undefined, configFile: "/dev/null" };
  const containerd = createContainerd(options);
  try {
    await removeTraces(containerd, await containerd.facts(AbortSignal.timeout(10_000)));
  } catch (error) {
    const { message } = PullError.from(error);
    say(
      `containerd may keep leases of Hawser for up to a day, and folders named io.hawser beside its own: ${message}`,
    );
  } finally {
    containerd.close();
  }
}
