// Everything of Hawser that pulls, in this very process: client, site and puller as the daemon wires them, between a
// containerd and a registry that are fakes. Layers are unpacked in this thread, by the portable engine.
//
// A rig also stands in for the two others that act on containerd: the plugin that registers an image once its pull is
// done, and a client that pulls the same at the same time.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { createContainerd } from "../../src/containerd/client.ts";
import type { Containerd } from "../../src/containerd/containerd.ts";
import type { PullError } from "../../src/errors.ts";
import { inheritPortable } from "../../src/layer/inherit.ts";
import type { LayerEngine } from "../../src/layer/layer.ts";
import { unpackPortable } from "../../src/layer/portable.ts";
import { sha256 } from "../../src/oci/digest.ts";
import { mediaTypes } from "../../src/oci/media.ts";
import { createPuller, type Pulled, type Puller } from "../../src/pull/pull.ts";
import { type Site, SiteKeeper, type SiteState } from "../../src/pull/site.ts";
import type { Registry } from "../../src/registry/registry.ts";
import { Selinux } from "../../src/selinux.ts";
import { MemoryContainerd } from "../fakes/memory/containerd.ts";
import type { Caller } from "../fakes/memory/metadata.ts";
import { FakeRegistry } from "../fakes/registry.ts";
import { idleVitals } from "../fakes/trace.ts";
import { scratch } from "../harness/containerd.ts";
import { eventually } from "../harness/process.ts";
import { ample } from "../layer/staging.ts";
import { testRegistry } from "../registry/registries.ts";
import type { Pullable } from "./scenes.ts";

export const namespace = "k8s.io";

/** Whoever else pulls on this node; what it makes is held until {@link Rig.anotherLetsGo}. */
export const another = { namespace, lease: "another client's" } satisfies Caller;

export const off = new Selinux({ isOn: () => false, get: () => 0, set: () => 0 });

const engine: LayerEngine = {
  name: "portable",
  unpack: async (job, signal) => ({
    ...(await unpackPortable(job, () => signal.aborted)),
    elapsedMs: 1,
    caughtUpMs: 0,
    pausedMs: 0,
  }),
  inherit: inheritPortable,
  sync: async () => {},
  pause: () => {},
  close: async () => {},
};

export interface RigOptions {
  /** Records are made by Hawser, and not by what stands in for the plugin. */
  readonly direct?: boolean;
  /** Layers that are kept are streamed, since namespaces do not share content. */
  readonly isolated?: boolean;
  /** Bandwidth of what is fetched ahead of need. */
  readonly aheadBytesPerSecond?: number;
  /** What is done with the fake before Hawser sees it. */
  readonly prepare?: (fake: MemoryContainerd) => void | Promise<void>;
}

export class Rig implements AsyncDisposable {
  readonly fake: MemoryContainerd;
  readonly registry: FakeRegistry;
  readonly containerd: Containerd;
  readonly puller: Puller;
  /** What the site was, one after another: open, or why not. */
  readonly states: string[] = [];
  /** What was told of clearing up behind pulls. */
  readonly warnings: PullError[] = [];
  readonly #client: Registry;
  readonly #keeper: SiteKeeper;
  readonly #options: RigOptions;
  #state: SiteState | undefined;

  private constructor(fake: MemoryContainerd, registry: FakeRegistry, options: RigOptions) {
    this.#options = options;
    this.fake = fake;
    this.registry = registry;
    this.containerd = createContainerd({
      address: fake.address,
      namespace,
      configFile: "/nonexistent",
      snapshotter: undefined,
    });
    this.#client = testRegistry();
    this.puller = this.#makePuller();
    this.#keeper = new SiteKeeper({
      containerd: this.containerd,
      selinux: off,
      selfTest: ({ instance, selinux }, signal) =>
        this.containerd.selfTest(instance.staging, selinux, signal),
      changed: (state) => {
        this.#state = state;
        this.states.push(state.kind === "open" ? state.kind : state.reason);
      },
      swept: () => {},
      adopted: () => {},
      spools: { limits: { bytesMax: 2 ** 30, ageMaxMs: 3_600_000 }, changed: () => {} },
    });
  }

  /** Once the site is open and what the dead left has been swept behind that. */
  static async open(options: RigOptions = {}): Promise<Rig> {
    const { isolated = false, prepare } = options;
    const fake = await MemoryContainerd.start({ parent: scratch(), isolated });
    await prepare?.(fake);
    const rig = new Rig(fake, await FakeRegistry.start(), options);
    await eventually(async () => {
      expect(rig.states.at(-1)).toBe("open");
      // Once before it opens, and once more behind that.
      const { steps } = fake.serving;
      expect(steps.filter((step) => step === "Namespaces/List").length).toBeGreaterThan(1);
      expect(steps.slice(steps.lastIndexOf("Namespaces/List"))).toContain("Leases/List");
    }, "the opening of the site");
    return rig;
  }

  get site(): Site {
    if (this.#state?.kind !== "open") throw new Error("the site is closed");
    return this.#state.site;
  }

  async pull(image: Pullable): Promise<Pulled> {
    return await this.puller.pull(image.reference, this.site, undefined, new AbortController().signal);
  }

  /** From the pull to the end of all that follows, as without faults. */
  async mustPull(image: Pullable): Promise<void> {
    const pulled = await this.pull(image);
    if (pulled.failure) throw pulled.failure;
    this.register(image);
    await pulled[Symbol.asyncDispose]();
    await this.puller.settle();
  }

  /** What containerd's own pull does where everything is there: a record, and labels that hold the rest. */
  register({ reference, manifestDigest, configDigest, layers, chainIDs }: Pullable): void {
    const { images, blobs } = this.fake.metadata.within(namespace);
    const size = BigInt(blobs.get(manifestDigest)?.size ?? 0);
    images.set(reference, { labels: {}, mediaType: mediaTypes.ociManifest, digest: manifestDigest, size });
    const refs: Record<string, string> = { "containerd.io/gc.ref.content.config": configDigest };
    for (const [index, { digest }] of layers.entries())
      refs[`containerd.io/gc.ref.content.l.${index}`] = digest;
    Object.assign(blobs.get(manifestDigest)?.labels ?? {}, refs);
    const snapshot = { "containerd.io/gc.ref.snapshot.overlayfs": chainIDs.at(-1) };
    Object.assign(blobs.get(configDigest)?.labels ?? {}, snapshot);
  }

  /** As if the upper layer had never been unpacked, and its blob been written by somebody who does not label it. */
  forgetUpper({ chainIDs, layers, configDigest }: Pullable): void {
    const { blobs, snapshots } = this.fake.metadata.within(namespace);
    snapshots.delete(chainIDs.at(-1) ?? "");
    const snapshot = { "containerd.io/gc.ref.snapshot.overlayfs": chainIDs.at(-2) };
    Object.assign(blobs.get(configDigest)?.labels ?? {}, snapshot);
    delete blobs.get(layers.at(-1)?.digest ?? "")?.labels["containerd.io/uncompressed"];
  }

  /** The other client's lease goes, with all that it held, and a new one begins. */
  anotherLetsGo(): void {
    const { leases } = this.fake.metadata.within(namespace);
    leases.set(another.lease, { labels: {}, resources: new Map() });
  }

  /** What an image lacks once everything that nobody holds is collected. */
  lacks({ manifestDigest, configDigest, chainIDs, files }: Pullable): string[] {
    const { metadata } = this.fake;
    metadata.collect();
    const { blobs, snapshots } = metadata.of(namespace);
    const isRight = (digest: string): boolean =>
      blobs.has(digest) && sha256(readFileSync(metadata.blobPath(digest))) === digest;
    const hasTree = (chainID: string, index: number): boolean => {
      const snapshot = snapshots.get(chainID);
      if (snapshot?.kind !== "committed" || snapshot.parent !== (chainIDs[index - 1] ?? "")) return false;
      const { path, content } = files[index] ?? { path: "", content: Buffer.alloc(0) };
      const file = join(metadata.snapshotPath(snapshot.id), "fs", path);
      return existsSync(file) && readFileSync(file).equals(content);
    };
    return [
      ...[manifestDigest, configDigest].filter((digest) => !isRight(digest)),
      ...chainIDs.filter((chainID, index) => !hasTree(chainID, index)),
    ];
  }

  /** Layers that are not in the content store, whole and labelled. */
  notKept({ layers }: Pullable): string[] {
    const { metadata } = this.fake;
    const { blobs } = metadata.of(namespace);
    const isKept = (digest: string): boolean =>
      blobs.get(digest)?.labels["containerd.io/uncompressed"] === digest &&
      sha256(readFileSync(metadata.blobPath(digest))) === digest;
    return layers.map(({ digest }) => digest).filter((digest) => !isKept(digest));
  }

  /** What should have gone with the last pull. Spools that are parked, to be gone on with, are none of it. */
  leftovers(): string[] {
    const { leases, ingests, snapshots } = this.fake.metadata.of(namespace);
    const active = [...snapshots].filter(([, { kind }]) => kind !== "committed");
    const { staging, spool } = this.site.instance;
    const files = [staging, spool].flatMap((folder) =>
      readdirSync(folder)
        .filter((name) => name !== "parked")
        .map((name) => join(folder, name)),
    );
    const ours = [...leases.keys()].filter((id) => id !== another.lease);
    return [...ours, ...ingests.keys(), ...active.map(([key]) => key), ...files];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.puller.settle();
    await this.#keeper[Symbol.asyncDispose]();
    await this.#client.close();
    this.containerd.close();
    await this.registry[Symbol.asyncDispose]();
    await this.fake[Symbol.asyncDispose]();
  }

  #makePuller(): Puller {
    return createPuller({
      containerd: this.containerd,
      registry: this.#client,
      engine,
      keepLayers: () => true,
      registersDirectly: () => this.#options.direct ?? false,
      limits: {
        downloadsMax: 4,
        downloadsPerImageMax: 4,
        downloadsPerHostMax: 4,
        hosts: new Map(),
        unpacksMax: 2,
        unpacksPerImageMax: 2,
        areUnpacksTuned: false,
        layer: ample,
        cores: 2,
        ahead: { unpacksMax: 1, bytesPerSecond: this.#options.aheadBytesPerSecond },
        durable: false,
      },
      vitals: idleVitals,
      events: {
        stage: () => {},
        unpacked: () => {},
        inFlight: () => {},
        warn: (error) => void this.warnings.push(error),
      },
    });
  }
}
