// One image on its way: from a reference to committed snapshots and stored metadata, so that containerd's own
// PullImage of the same reference finds everything and fetches no layer.
//
// Resolve (always, with the caller's credentials: it is also the access check, KEP-2535), plan, then every missing
// layer side by side. What was reached is held until the image is disposed of, whether the pull succeeded or not.

import type { Containerd, Labels } from "../containerd/containerd.ts";
import { PullError } from "../errors.ts";
import type { Reference } from "../oci/reference.ts";
import type { Repository, Resolved } from "../registry/registry.ts";
import { instanceLabel } from "./instance.ts";
import { type Layer, whileNotAborted } from "./layer.ts";
import { type LeaseShare, shareLease } from "./lease.ts";
import { countPresent, type Plan, plan } from "./plan.ts";
import type { PullEvents } from "./pull.ts";
import type { Share } from "./sharing.ts";
import type { Site } from "./site.ts";
import type { LayerRequest, Work } from "./work.ts";

export interface ImageOptions {
  readonly reference: Reference;
  /** Name under which the limits per image are counted. */
  readonly name: string;
  readonly site: Site;
  readonly containerd: Containerd;
  readonly repository: Repository;
  readonly work: Work;
  readonly keepLayers: boolean;
  readonly events: PullEvents;
}

export class Image implements AsyncDisposable {
  /** Why not everything is in place; see Pulled.failure. */
  failure: PullError | undefined;
  readonly #options: ImageOptions;
  readonly #layers: Share<Layer>[] = [];
  #lease: LeaseShare | undefined;

  private constructor(options: ImageOptions) {
    this.#options = options;
  }

  /** Never rejects; the outcome is in {@link failure}. */
  static async pull(options: ImageOptions, signal: AbortSignal): Promise<Image> {
    const image = new Image(options);
    try {
      await image.#run(signal);
    } catch (error) {
      image.failure = PullError.from(error);
      await image.#stop();
    }
    return image;
  }

  /** Gives everything back: kept layers are adopted, the rest is dropped, and the lease is deleted last. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#layers.map((layer) => layer[Symbol.asyncDispose]()));
    await this.#lease?.[Symbol.asyncDispose]();
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { site, containerd, repository } = this.#options;
    const resolved = await this.#resolve(signal);
    const lease = shareLease(await containerd.lease({ [instanceLabel]: site.instance.id }));
    this.#lease = lease;
    const planned = await plan(resolved, repository, lease.lease, site.facts.contentRoot, signal);
    const metadata = planned.metadata.map((blob) => lease.lease.putContent(blob.descriptor, blob.bytes, {}));
    await Promise.all([...metadata, this.#complete(planned, lease, signal)]);
    if (this.#options.keepLayers) await this.#keep();
  }

  async #resolve(signal: AbortSignal): Promise<Resolved> {
    const { reference, containerd, repository, events } = this.#options;
    const began = performance.now();
    const known = await containerd.hasImage(reference.name);
    const resolved = await repository.resolve(known, signal);
    events.stage("resolve", (performance.now() - began) / 1000);
    return resolved;
  }

  async #complete({ layers }: Plan, lease: LeaseShare, signal: AbortSignal): Promise<void> {
    const { name, work, repository, site } = this.#options;
    const present = await countPresent(layers, lease.lease);
    let parent: LayerRequest["parent"];
    for (const [index, layer] of layers.entries()) {
      let committed: Promise<unknown> = Promise.resolve();
      if (index >= present) {
        const share = work.layer({ layer, index, parent, image: name, repository, lease, site });
        this.#layers.push(share);
        committed = share.result;
      }
      parent = { chainID: layer.chainID, committed };
    }
    await whileNotAborted(Promise.all(this.#layers.map((share) => share.result)), signal);
  }

  async #keep(): Promise<void> {
    const { host, repository } = this.#options.reference;
    const source = `containerd.io/distribution.source.${host.replace(/:\d+$/, "")}`;
    const labels: Labels = { [source]: repository };
    for (const share of this.#layers) await (await share.result).keepBlob(labels);
  }

  /** After a failure: stops what is unfinished and gives up every spool, but keeps what is committed under its lease. */
  async #stop(): Promise<void> {
    const unfinished = new Set(this.#layers);
    for (const share of this.#layers) {
      share.result.then(
        () => unfinished.delete(share),
        () => {},
      );
    }
    // The handlers of promises that are settled already have run after one turn of the event loop.
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
    await Promise.all([...unfinished].map((share) => share[Symbol.asyncDispose]()));
    const finished = this.#layers.filter((share) => !unfinished.has(share));
    await Promise.all(finished.map(async (share) => (await share.result).dropBlob()));
  }
}
