// The wiring of "hawser load": what the daemon has to pull with, for one archive, in a process of its own.
//
// Nothing of a running daemon is needed, so that a node can be filled before it has one; where there is one, the two are
// to each other what two daemons are, but that this one takes over nothing and leaves nothing: what it needed of the
// archive is in the archive.

import { join } from "node:path";
import { Files } from "./archive/files.ts";
import { type Loaded, load } from "./archive/load.ts";
import type { SourceOptions } from "./archive/source.ts";
import type { Config } from "./config.ts";
import { createContainerd } from "./containerd/client.ts";
import type { Containerd } from "./containerd/containerd.ts";
import { PullError, whileNotAborted } from "./errors.ts";
import type { LayerEngine } from "./layer/layer.ts";
import { keepLayersOf, limitsOf, spareOf } from "./limits.ts";
import { loadNative } from "./native.ts";
import { createPuller, type Puller } from "./pull/pull.ts";
import { type Site, SiteKeeper, type SiteState } from "./pull/site.ts";
import { volumeOf } from "./pull/space.ts";
import type { Registry } from "./registry/registry.ts";
import { Selinux } from "./selinux.ts";
import { vitals } from "./vitals.ts";
import { makeEngine } from "./works.ts";

export interface LoaderOptions {
  readonly config: Config;
  readonly archive: SourceOptions["source"];
  /** What its one image is to be called. */
  readonly name: string | undefined;
  /** Told of each image. */
  readonly loaded: (outcome: Loaded) => void;
  /** Told of what went wrong in clearing up. */
  readonly warn: (error: PullError) => void;
}

/** Throws what keeps all of it from being loaded. */
export async function loadArchive(options: LoaderOptions, signal: AbortSignal): Promise<void> {
  const { config, warn } = options;
  const engine = makeEngine(config);
  const { address, namespace, config_file, snapshotter } = config.containerd;
  const containerd = createContainerd({
    address,
    namespace,
    configFile: config_file,
    snapshotter: snapshotter === "auto" ? undefined : snapshotter,
  });
  const puller = makePuller(options, containerd, engine);
  let settle = (_state: SiteState): void => {};
  const opened = new Promise<SiteState>((resolve) => {
    settle = resolve;
  });
  const keeper = new SiteKeeper({
    containerd,
    selinux: new Selinux(),
    selfTest: ({ instance, selinux }, until) => containerd.selfTest(instance.staging, selinux, until),
    changed: (state) => settle(state),
    swept: (outcome) => {
      if (typeof outcome !== "number") warn(outcome);
    },
    adopted: (_digest, failure) => {
      if (failure) warn(failure);
    },
    spools: {
      limits: { bytesMax: config.content.spool_max_size, ageMaxMs: config.content.spool_max_age },
      changed: () => {},
    },
    inherits: false,
  });
  try {
    const state = await whileNotAborted(opened, signal);
    if (state.kind !== "open")
      throw new PullError("unavailable", `nothing can be loaded: ${state.detail} (${address})`);
    await loadInto(state.site, puller, options, signal);
  } finally {
    await puller.settle();
    await keeper[Symbol.asyncDispose]();
    await engine.close();
    containerd.close();
  }
}

async function loadInto(
  site: Site,
  puller: Puller,
  { archive, config, name, loaded }: LoaderOptions,
  signal: AbortSignal,
): Promise<void> {
  const native = loadNative();
  if (native.kind === "missing") throw new PullError("unavailable", native.reason);
  const spare = spareOf(config);
  const { staging } = site.instance;
  const mustHaveRoom = async (): Promise<void> => {
    const volume = await volumeOf(staging);
    if (volume.freeBytes >= spare(volume)) return;
    throw new PullError("exhausted", `the archive leaves less of ${staging} free than prewarm.min_free_disk`);
  };
  const scratch = join(staging, "archive");
  await using files = await Files.open(
    { source: archive, scratch, native: native.binding, mustHaveRoom },
    signal,
  );
  try {
    await load({ files, puller, site, spare, name, loaded }, signal);
  } finally {
    // What was broken off reads from the archive until it has ended.
    await puller.settle();
    await site.spools.drop();
  }
}

function makePuller({ config, warn }: LoaderOptions, containerd: Containerd, engine: LayerEngine): Puller {
  return createPuller({
    containerd,
    registry: noRegistry,
    engine,
    keepLayers: keepLayersOf(config),
    registersDirectly: () => false,
    limits: limitsOf(config),
    vitals,
    events: { stage: () => {}, unpacked: () => {}, inFlight: () => {}, warn },
  });
}

/** All bytes come from the archive. */
const noRegistry: Registry = {
  repository: ({ name }) => {
    throw new PullError("internal", `${name} was asked of a registry`);
  },
  close: async () => {},
};
