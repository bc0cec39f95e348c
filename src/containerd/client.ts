// The containerd room put together: one channel, and everything that the face promises on top of it.

import type { CallOptions, ClientReadableStream, Metadata } from "@grpc/grpc-js";
import { PullError } from "../errors.ts";
import type { Selinux } from "../selinux.ts";
import { Channel } from "./channel.ts";
import type { Containerd, ContainerdFacts, Holds, Inspection, Labels, Lease, Records } from "./containerd.ts";
import { ContainerdHolds } from "./holds.ts";
import { createLease, type Held, sweepLeases } from "./lease.ts";
import { ContainerdRecords } from "./records.ts";
import { selfTest, sweepSelfTests } from "./selftest.ts";
import { inspect, readFacts } from "./settings.ts";

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

/** Asks once and reads only; throws `unavailable` while containerd is down. */
export async function inspectContainerd(
  options: ContainerdOptions,
  signal: AbortSignal,
): Promise<Inspection> {
  const channel = new Channel(options);
  try {
    return await inspect(channel, options, signal);
  } finally {
    channel.close();
  }
}

class ContainerdClient implements Containerd {
  readonly records: Records;
  readonly holds: Holds;
  readonly #channel: Channel;
  readonly #options: ContainerdOptions;
  readonly #held: Held = new Set();
  #facts: ContainerdFacts | undefined;

  constructor(options: ContainerdOptions) {
    this.#options = options;
    this.#channel = new Channel(options);
    this.records = new ContainerdRecords(this.#channel);
    this.holds = new ContainerdHolds(this.#channel);
  }

  async facts(signal: AbortSignal): Promise<ContainerdFacts> {
    this.#facts = await readFacts(this.#channel, this.#options, signal);
    return this.#facts;
  }

  async lease(labels: Labels): Promise<Lease> {
    if (this.#facts === undefined)
      throw new PullError("internal", "a lease was asked for before the facts were read");
    return await createLease(this.#channel, this.#facts.contentRoot, labels, this.#held);
  }

  async sweep(label: string, self: string, isDead: (instance: string) => Promise<boolean>): Promise<number> {
    const isOver = async (instance: string): Promise<boolean> =>
      instance === self || (await isDead(instance));
    await sweepSelfTests(this.#channel, this.#held, isOver);
    return await sweepLeases(this.#channel, label, this.#held, isOver);
  }

  async selfTest(staging: string, selinux: Selinux, signal: AbortSignal): Promise<void> {
    await selfTest(this.#channel, staging, selinux, this.#held, signal);
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
