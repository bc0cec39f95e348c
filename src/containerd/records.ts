// What containerd says of images, and how it is told of one: records, labels, snapshots, and CRI's own view of them.
//
// Nothing here is under a lease. What is found may be gone in the next moment, and what a record leads to has to be
// there, with the labels that keep it, before the record is made.

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Digest } from "../oci/digest.ts";
import type { ImageSchema } from "../proto/gen/containerd_pb.js";
import { type Channel, unlessMissing } from "./channel.ts";
import type { CriImage, ImageRecord, Labels, Records } from "./containerd.ts";
import { mergeLabels } from "./content.ts";
import { content, criImages, images, snapshots } from "./methods.ts";
import { snapshotter } from "./snapshots.ts";

export class ContainerdRecords implements Records {
  readonly #channel: Channel;

  constructor(channel: Channel) {
    this.#channel = channel;
  }

  async image(name: string): Promise<ImageRecord | undefined> {
    const found = await unlessMissing(this.#channel.call(images.get, { name }));
    const target = found?.image?.target;
    if (!found?.image || !target) return undefined;
    const { mediaType, digest, size } = target;
    return {
      target: { mediaType, digest: digest as Digest, size: Number(size) },
      labels: found.image.labels,
    };
  }

  async createImage(name: string, record: ImageRecord): Promise<void> {
    await this.#channel.call(images.create, { image: messageOf(name, record) });
  }

  async replaceImage(name: string, record: ImageRecord): Promise<void> {
    await this.#channel.call(images.update, { image: messageOf(name, record) });
  }

  async removeImage(name: string): Promise<void> {
    await unlessMissing(this.#channel.call(images.delete, { name }));
  }

  async contentLabels(digest: Digest): Promise<Labels | undefined> {
    return (await unlessMissing(this.#channel.call(content.info, { digest })))?.info?.labels;
  }

  async labelContent(digest: Digest, labels: Labels): Promise<void> {
    await mergeLabels(this.#channel, digest, labels);
  }

  async hasSnapshot(chainID: Digest): Promise<boolean> {
    return (
      (await unlessMissing(this.#channel.call(snapshots.stat, { snapshotter, key: chainID }))) !== undefined
    );
  }

  async status(name: string): Promise<CriImage | undefined> {
    const { image } = await this.#channel.call(criImages.status, { image: { image: name } });
    return image && { id: image.id, tags: image.repoTags, digests: image.repoDigests };
  }
}

function messageOf(name: string, { target, labels }: ImageRecord): MessageInitShape<typeof ImageSchema> {
  const { mediaType, digest, size } = target;
  return { name, labels, target: { mediaType, digest, size: BigInt(size) } };
}
