// containerd's own unpacking of a layer, asked for directly: its diff service applies an archive to a snapshot.

import { type MessageInitShape } from "@bufbuild/protobuf";
import { Metadata, type ServiceError } from "@grpc/grpc-js";
import { Channel } from "../../src/containerd/channel.ts";
import { putContent } from "../../src/containerd/content.ts";
import { leases, snapshots } from "../../src/containerd/methods.ts";
import { removeSnapshot, snapshotter } from "../../src/containerd/snapshots.ts";
import { type Digest, sha256 } from "../../src/oci/digest.ts";
import type { MountSchema } from "../../src/proto/gen/containerd_pb.js";
import { PrivateContainerd } from "./containerd.ts";
import { fields, message, textOf } from "./cri.ts";
import type { Release } from "./versions.ts";

/** What became of an archive. */
export interface Applied extends AsyncDisposable {
  /** containerd's words, when it refused it. */
  readonly error: string | undefined;
  /** Digest of the uncompressed stream. */
  readonly diffID: string;
  /** The layer's own tree; half of one after a refusal. */
  readonly root: string;
  /** Roots of the layers below, nearest first. */
  readonly lowers: readonly string[];
  /** Makes it the parent of later ones. */
  commit(name: string): Promise<void>;
}

export interface Blob {
  readonly bytes: Buffer;
  readonly mediaType: string;
}

const diffApply = "/containerd.services.diff.v1.Diff/Apply";
const namespace = "k8s.io";

export class Applier implements AsyncDisposable {
  readonly #containerd: PrivateContainerd;
  readonly #channel: Channel;
  readonly #lease: string;
  #count = 0;

  private constructor(containerd: PrivateContainerd, channel: Channel, lease: string) {
    this.#containerd = containerd;
    this.#channel = channel;
    this.#lease = lease;
  }

  static async start(release: Release): Promise<Applier> {
    const containerd = await PrivateContainerd.start({ release });
    const channel = new Channel({ address: containerd.address, namespace });
    const { lease } = await channel.call(leases.create, { id: "applier", labels: {} });
    return new Applier(containerd, channel, lease?.id ?? "");
  }

  /** On top of a committed layer, or as the bottom one. */
  async apply({ bytes, mediaType }: Blob, parent = ""): Promise<Applied> {
    const digest = sha256(bytes);
    const descriptor = { mediaType, digest, size: bytes.length };
    await putContent(this.#channel, this.#lease, descriptor, bytes, {});
    this.#count += 1;
    const key = `apply-${this.#count}`;
    const scope = { lease: this.#lease };
    const request = { snapshotter, key, parent, labels: {} };
    const { mounts } = await this.#channel.call(snapshots.prepare, request, scope);
    const [mount] = mounts;
    if (mount === undefined) throw new Error("no mount");
    const option = (name: string): string | undefined =>
      mount.options.find((text) => text.startsWith(`${name}=`))?.slice(name.length + 1);
    const outcome = await this.#diff(mediaType, digest, bytes.length, mount);
    return {
      ...outcome,
      root: option("upperdir") ?? mount.source,
      lowers: option("lowerdir")?.split(":") ?? [],
      commit: async (name) => {
        const commit = { snapshotter, name, key, labels: {} };
        await this.#channel.call(snapshots.commit, commit, scope);
      },
      [Symbol.asyncDispose]: async () => await removeSnapshot(this.#channel, scope, key),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#channel.call(leases.delete, { id: this.#lease, sync: true });
    this.#channel.close();
    await this.#containerd[Symbol.asyncDispose]();
  }

  async #diff(
    mediaType: string,
    digest: Digest,
    size: number,
    {
      type,
      source,
      options,
    }: Required<Pick<MessageInitShape<typeof MountSchema>, "type" | "source" | "options">>,
  ): Promise<{ readonly error: string | undefined; readonly diffID: string }> {
    const mount = message([1, type], [2, source], ...options.map((text) => [4, text] as const));
    const descriptor = message([1, mediaType], [2, digest], [3, size]);
    const metadata = new Metadata();
    metadata.set("containerd-namespace", namespace);
    metadata.set("containerd-lease", this.#lease);
    return await new Promise((resolve) => {
      let diffID = "";
      const call = this.#channel.raw(
        diffApply,
        Buffer.from(message([1, descriptor], [2, mount])),
        metadata,
        {},
      );
      call.on("data", (bytes: Buffer) => {
        diffID = textOf(fields(fields(bytes).get(1)?.[0] as Uint8Array), 2);
      });
      call.on("error", ({ details }: ServiceError) => resolve({ error: details, diffID }));
      call.on("end", () => resolve({ error: undefined, diffID }));
    });
  }
}
