// The containerd room put together: one channel, and everything that the face promises on top of it.

import type { CallOptions, ClientReadableStream, Metadata } from "@grpc/grpc-js";
import { PullError } from "../errors.ts";
import { Channel } from "./channel.ts";
import type { Containerd, ContainerdFacts, Labels, Lease } from "./containerd.ts";
import { createLease, sweepLeases } from "./lease.ts";
import { images } from "./methods.ts";
import { selfTest } from "./selftest.ts";
import { readFacts } from "./settings.ts";

export interface ContainerdOptions {
  /** Path of containerd's socket. */
  readonly address: string;
  readonly namespace: string;
  /** Containerd's configuration file, for the settings that 2.x does not tell over gRPC. */
  readonly configFile: string;
  /** Overrides the snapshotter that CRI is configured with. */
  readonly snapshotter: string | undefined;
}

/** Nothing is sent before the first call or {@link Containerd.watch}. */
export function createContainerd(options: ContainerdOptions): Containerd {
  return new ContainerdClient(options);
}

class ContainerdClient implements Containerd {
  readonly #channel: Channel;
  readonly #options: ContainerdOptions;
  #facts: ContainerdFacts | undefined;

  constructor(options: ContainerdOptions) {
    this.#options = options;
    this.#channel = new Channel(options);
  }

  async facts(signal: AbortSignal): Promise<ContainerdFacts> {
    this.#facts = await readFacts(this.#channel, this.#options, signal);
    return this.#facts;
  }

  async lease(labels: Labels): Promise<Lease> {
    if (this.#facts === undefined)
      throw new PullError("internal", "a lease was asked for before the facts were read");
    return await createLease(this.#channel, this.#facts.contentRoot, labels);
  }

  async hasImage(name: string): Promise<boolean> {
    try {
      await this.#channel.call(images.get, { name });
      return true;
    } catch (error) {
      if (error instanceof PullError && error.code === "not_found") return false;
      throw error;
    }
  }

  async sweepLeases(label: string, isDead: (value: string) => Promise<boolean>): Promise<number> {
    return await sweepLeases(this.#channel, label, isDead);
  }

  async selfTest(staging: string, signal: AbortSignal): Promise<void> {
    await selfTest(this.#channel, staging, signal);
  }

  forward(
    path: string,
    request: Buffer,
    metadata: Metadata,
    options: CallOptions,
  ): ClientReadableStream<Buffer> {
    return this.#channel.raw(path, request, metadata, options);
  }

  watch(listener: (connected: boolean) => void): Disposable {
    return this.#channel.watch(listener);
  }

  close(): void {
    this.#channel.close();
  }
}
