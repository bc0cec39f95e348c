// What becomes of what a pull has made: of the blobs behind its layers when it ends well, and of everything when it fails.
//
// What is committed stays held for containerd's own attempt, which fetches no layer whose snapshot is there; what is
// unfinished is stopped; and bytes that nobody is likely to ask for again give their room back.

import type { ErrorCode, PullError } from "../errors.ts";
import type { ImageOptions } from "./image.ts";
import type { Keep } from "./journal.ts";
import type { Layer } from "./layer.ts";
import type { PlannedLayer } from "./plan.ts";
import type { Share } from "./sharing.ts";

/** What a pull that failed holds. */
export interface Made {
  readonly image: Pick<ImageOptions, "ahead" | "containerd" | "keepLayers" | "reference" | "site">;
  /** Those that it has finished. */
  readonly layers: readonly Share<Layer>[];
  /** Layers that were not there when it began. */
  readonly missing: readonly PlannedLayer[];
  /** How it wants blobs kept; undefined when it does not. */
  readonly keep: Keep | undefined;
}

/** Failures after which the same bytes are likely to be asked for again, and not by containerd alone. */
const resumable: ReadonlySet<ErrorCode> = new Set(["cancelled", "unavailable", "slow"]);

/** Says what is wanted with the blobs of finished layers. */
export async function finishBlobs(layers: readonly Share<Layer>[], keep: Keep | undefined): Promise<void> {
  for (const share of layers) await (await share.result).finishBlob(keep);
}

/** Gives back what is unfinished; returns the others. */
export async function stopUnfinished(layers: readonly Share<Layer>[]): Promise<readonly Share<Layer>[]> {
  const finished = new Set<Share<Layer>>();
  for (const share of layers) {
    share.result.then(
      () => finished.add(share),
      () => {},
    );
  }
  // The handlers of promises that are settled already have run after one turn of the event loop.
  await new Promise((resolve) => {
    setImmediate(resolve);
  });
  const unfinished = layers.filter((share) => !finished.has(share));
  await Promise.all(unfinished.map((share) => share[Symbol.asyncDispose]()));
  return [...finished];
}

/** Gives back the room of what is of no use to containerd's own attempt. */
export async function clearUp({ image, layers, missing }: Made, { code }: PullError): Promise<void> {
  const { keepLayers, site, ahead } = image;
  if (!keepLayers && !resumable.has(code)) await dropBlobs(layers);
  const { spools } = site;
  if (code === "exhausted" && ahead === undefined) await spools.drop();
  else if (!resumable.has(code)) await spools.drop(missing.map(({ descriptor }) => descriptor.digest));
}

/**
 * What becomes of the blobs behind the committed layers once containerd has made its own attempt: for an image that it
 * made they are kept as if we had made it. Otherwise they stay parked only where another attempt may get further.
 */
export async function finishBroken({ image, layers, keep }: Made, { code }: PullError): Promise<void> {
  if (layers.length === 0 || code === "cancelled") return;
  const record = await image.containerd.records.image(image.reference.name).catch(() => undefined);
  if (record) await finishBlobs(layers, keep);
  else if (!resumable.has(code)) await finishBlobs(layers, undefined);
}

/** Nobody needs the blob of a committed layer where layers are not kept. */
async function dropBlobs(layers: readonly Share<Layer>[]): Promise<void> {
  await finishBlobs(layers, undefined);
  const own = layers.filter((share) => !share.isShared());
  await Promise.all(own.map(async (share) => (await share.result).dropBlob()));
}
