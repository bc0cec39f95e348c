// A containerd in this very process: the services that Hawser uses, kept in memory, over a real socket, with real
// folders for layers and files for blobs.
//
// It is as good as the contract that it passes together with the real ones (conformance/containerd.ts). What a real
// one cannot do on request is what it is for: any status at any step, before or after the step is done.

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { introspection, runtime } from "../../../src/containerd/methods.ts";
import { FakeContainerd, Status } from "../containerd.ts";
import { type ContentOptions, serveContent } from "./content.ts";
import { serveLeases } from "./leases.ts";
import { serveImages, serveLists, serveNamespaces } from "./listing.ts";
import { Metadata } from "./metadata.ts";
import { Serving } from "./serving.ts";
import { serveSnapshots } from "./snapshots.ts";

export interface MemoryOptions extends Partial<ContentOptions> {
  /** Where its folder is made. */
  readonly parent: string;
}

export class MemoryContainerd implements AsyncDisposable {
  /** Spools and staging directories that are below can be linked and renamed into its roots. */
  readonly root: string;
  readonly address: string;
  readonly metadata: Metadata;
  readonly serving: Serving;
  /** What becomes of a PullImage: the test does what a containerd would. */
  pullImage: () => Promise<Uint8Array> = async () => {
    throw new Status(status.UNIMPLEMENTED, "no image is pulled here");
  };
  readonly #server: FakeContainerd;

  private constructor(server: FakeContainerd, options: MemoryOptions) {
    this.root = server.folder;
    this.address = server.address;
    this.#server = server;
    this.metadata = new Metadata(server.folder);
    this.serving = new Serving(server);
    mkdirSync(join(this.root, "certs.d"));
    serveLeases(this.serving, this.metadata);
    serveContent(this.serving, this.metadata, { isolated: options.isolated ?? false });
    serveSnapshots(this.serving, this.metadata);
    serveImages(this.serving, this.metadata);
    serveNamespaces(this.serving, this.metadata);
    serveLists(this.serving, this.metadata);
    this.serving.later("/runtime.v1.ImageService/PullImage", () => this.pullImage());
    this.#serveFacts();
  }

  static async start(options: MemoryOptions): Promise<MemoryContainerd> {
    const containerd = new MemoryContainerd(await FakeContainerd.create(options.parent), options);
    await containerd.listen();
    return containerd;
  }

  /** Everything that it knows outlives {@link cut}. */
  async listen(): Promise<void> {
    await this.#server.listen();
  }

  cut(): void {
    this.#server.cut();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.metadata[Symbol.dispose]();
    await this.#server[Symbol.asyncDispose]();
  }

  /** As 1.6 tells it: roots by introspection, the settings of CRI by its Status. */
  #serveFacts(): void {
    const { contentRoot, snapshotterRoot } = this.metadata;
    this.serving.unary(introspection.version, () => ({ version: "v1.6.0-memory" }));
    this.serving.unary(introspection.plugins, () => ({
      plugins: [
        { type: "io.containerd.content.v1", id: "content", exports: { root: contentRoot } },
        { type: "io.containerd.snapshotter.v1", id: "overlayfs", exports: { root: snapshotterRoot } },
      ],
    }));
    const registry = { configPath: join(this.root, "certs.d") };
    const config = { containerd: { snapshotter: "overlayfs", discardUnpackedLayers: false }, registry };
    this.serving.unary(runtime.status, () => ({ info: { config: JSON.stringify(config) } }));
  }
}
