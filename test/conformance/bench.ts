// What a contract is tested on: a containerd, Hawser's client of it, and containerd's own client to see what came of it.

import { createHash, randomBytes } from "node:crypto";
import { access } from "node:fs/promises";
import { join } from "node:path";
import { createContainerd } from "../../src/containerd/client.ts";
import type { Containerd, ContainerdFacts, Lease } from "../../src/containerd/containerd.ts";
import type { Descriptor } from "../../src/oci/descriptor.ts";
import { chainIDs, type Digest, sha256 } from "../../src/oci/digest.ts";

/** A containerd, whether it is one or not. */
export interface Tested extends AsyncDisposable {
  /** On one file system with its roots, and ours to put things in. */
  readonly root: string;
  readonly address: string;
  readonly contentRoot: string;
  readonly snapshotterRoot: string;
  /** Output of containerd's own client, in the namespace of CRI. */
  ctr(...args: readonly string[]): Promise<string>;
  /** Ends as by kill -9. */
  kill(): Promise<void>;
  startAgain(): Promise<void>;
}

export interface TestedOptions {
  /** Namespaces do not share content. */
  readonly isolated: boolean;
}

export type Start = (options: TestedOptions) => Promise<Tested>;

export class Bench implements AsyncDisposable {
  readonly tested: Tested;
  readonly containerd: Containerd;
  readonly facts: ContainerdFacts;
  readonly #held: Lease[] = [];

  private constructor(tested: Tested, containerd: Containerd, facts: ContainerdFacts) {
    this.tested = tested;
    this.containerd = containerd;
    this.facts = facts;
  }

  static async open(start: Start, options: Partial<TestedOptions> = {}): Promise<Bench> {
    const tested = await start({ isolated: false, ...options });
    const containerd = connect(tested);
    return new Bench(tested, containerd, await containerd.facts(new AbortController().signal));
  }

  /** What another process of ours would have; the caller closes it. */
  async another(): Promise<Containerd> {
    const containerd = connect(this.tested);
    await containerd.facts(new AbortController().signal);
    return containerd;
  }

  /** A lease that ends with the test. */
  async lease(labels: Record<string, string> = {}): Promise<Lease> {
    const made = await this.containerd.lease(labels);
    this.#held.push(made);
    return made;
  }

  async endTest(): Promise<void> {
    await Promise.all(this.#held.splice(0).map((one) => one[Symbol.asyncDispose]()));
  }

  /** Makes garbage collection run, and end. */
  async collect(): Promise<void> {
    await this.tested.ctr("leases", "create", "--id", "step");
    await this.tested.ctr("leases", "delete", "--sync", "step");
  }

  async leases(): Promise<string> {
    return await this.tested.ctr("leases", "ls");
  }

  async snapshots(): Promise<string> {
    return await this.tested.ctr("snapshots", "ls");
  }

  async ingests(): Promise<string[]> {
    return (await this.tested.ctr("content", "active")).trim().split("\n").slice(1);
  }

  /** The line of a blob, with its labels, or nothing. */
  async listed({ digest }: Descriptor): Promise<string> {
    const lines = (await this.tested.ctr("content", "ls")).split("\n");
    return lines.find((line) => line.startsWith(digest)) ?? "";
  }

  blobPath({ digest }: Descriptor): string {
    return join(this.facts.contentRoot, "blobs/sha256", digest.slice("sha256:".length));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.containerd.close();
    await this.tested[Symbol.asyncDispose]();
  }
}

function connect({ address, root }: Tested): Containerd {
  return createContainerd({
    address,
    namespace: "k8s.io",
    configFile: join(root, "config.toml"),
    snapshotter: undefined,
  });
}

export function blob(sizeBytes = 1000): { bytes: Buffer; descriptor: Descriptor } {
  const bytes = randomBytes(sizeBytes);
  const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}` as Digest;
  return { bytes, descriptor: { mediaType: "application/octet-stream", digest, size: sizeBytes } };
}

/** ChainIDs of layers that no other test uses, bottom up: what a test leaves is collected at some time after it. */
export function chain(): { lower: Digest; middle: Digest; upper: Digest } {
  const diffIDs = [sha256(randomBytes(8).toString("hex")), sha256("middle"), sha256("upper")];
  const [lower = "" as Digest, middle = "" as Digest, upper = "" as Digest] = chainIDs(diffIDs);
  return { lower, middle, upper };
}

export function isThere(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
