// What dead instances left: their spools change hands, their adoptions are finished, everything else is swept.
//
// Leases are swept and spools claimed before the first pull; the rest happens in the background while pulls run. A blob
// that was about to be adopted is read and hashed once more, since nobody knows what ended its instance.

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, rm } from "node:fs/promises";
import { pipeline } from "node:stream/promises";
import type { Containerd, Lease } from "../containerd/containerd.ts";
import { PullError, throwIfAborted } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import type { Digest } from "../oci/digest.ts";
import { type Instance, instanceLabel } from "./instance.ts";
import { type PendingAdoption, remove } from "./spoolfile.ts";
import type { Spools } from "./spools.ts";

export interface RecoveryOptions {
  readonly containerd: Containerd;
  readonly instance: Instance;
  readonly spools: Spools;
  /** Whether spools of the dead become ours, as they usually do; one that is soon over leaves them to those that go on. */
  readonly inherits?: boolean | undefined;
  /** Told of each blob that a dead instance was to keep. */
  readonly adopted: (digest: Digest, failure: PullError | undefined) => void;
}

interface Pending extends PendingAdoption {
  failures: number;
}

/** Attempts at one adoption, unless containerd cannot be reached, which is no fault of the blob. */
const attemptsMax = 10;

export class Recovery {
  readonly #options: RecoveryOptions;
  /** Folders that have become ours and have not been gone through to their end. */
  readonly #claimed = new Set<string>();
  /** Folders of which only pending adoptions are left. */
  readonly #inherited = new Set<string>();
  #pending: Pending[] = [];
  #claiming: Promise<void> = Promise.resolve();

  constructor(options: RecoveryOptions) {
    this.#options = options;
  }

  /**
   * Removes what the leases of the dead protect, and takes over their spools. Before any pull: a snapshot of theirs
   * would be taken for present, and its blob, which they had yet to adopt, would be missing.
   */
  async claim(): Promise<void> {
    // One after another: two at once would go through the same folder.
    const turn = this.#claiming.then(() => this.#claim());
    this.#claiming = turn.catch(() => {});
    await turn;
  }

  /** Claims what there is to be seen at a look, and says whether there was anything: for a pull, which cannot wait. */
  async claimSeen(): Promise<boolean> {
    if (await this.#options.instance.hasClaims()) {
      await this.claim();
      return true;
    }
    // What is being claimed at this moment has gone from where it was, and is not ours yet.
    await this.#claiming;
    return false;
  }

  async #claim(): Promise<void> {
    const { containerd, instance, spools, inherits = true } = this.#options;
    await instance.sweepContainerd(containerd);
    if (!inherits) return;
    for (const folder of await instance.claimSpools()) {
      this.#claimed.add(folder);
      failpoint("claimed");
    }
    for (const folder of this.#claimed) {
      const isMade = async (image: string): Promise<boolean> =>
        (await containerd.records.image(image)) !== undefined;
      this.#add(await spools.inherit(folder, isMade));
      this.#claimed.delete(folder);
      this.#inherited.add(folder);
    }
  }

  /**
   * Sweeps, then finishes adoptions; returns how many instances were dead. Throws when something is left that may be
   * done later, which the next call does.
   */
  async finish(signal: AbortSignal): Promise<number> {
    const { instance, spools } = this.#options;
    await this.claim();
    this.#add(spools.takeDeferred());
    const dead = await instance.sweepFolders();
    // A pull may claim others meanwhile.
    const inherited = [...this.#inherited];
    await this.#adoptAll(signal);
    for (const folder of inherited) {
      this.#inherited.delete(folder);
      await rm(folder, { recursive: true, force: true });
    }
    return dead;
  }

  #add(adoptions: readonly PendingAdoption[]): void {
    for (const adoption of adoptions) this.#pending.push({ ...adoption, failures: 0 });
  }

  /** Throws the last failure that may be over soon; what it stands for stays pending. */
  async #adoptAll(signal: AbortSignal): Promise<void> {
    if (this.#pending.length === 0) return;
    const { containerd, instance } = this.#options;
    let failure: PullError | undefined;
    await using lease = await containerd.lease({ [instanceLabel]: instance.id });
    for (const one of this.#pending) {
      throwIfAborted(signal);
      const left = await this.#adopt(one, lease, signal);
      failure = left ?? failure;
      if (left) continue;
      await remove(one);
      this.#pending = this.#pending.filter((other) => other !== one);
    }
    if (failure) throw failure;
  }

  /** Why it is to be tried again, or undefined when it is done or never will be. */
  async #adopt(one: Pending, lease: Lease, signal: AbortSignal): Promise<PullError | undefined> {
    const { adopted } = this.#options;
    const { descriptor, file, keep } = one;
    try {
      await mustMatch(file, descriptor.digest, signal);
      await lease.adoptContent(descriptor, file, keep.labels);
      adopted(descriptor.digest, undefined);
      return undefined;
    } catch (error) {
      const failure = PullError.from(error);
      if (failure.code !== "unavailable" && failure.code !== "cancelled") one.failures += 1;
      if (failure.code !== "corrupt" && one.failures < attemptsMax) return failure;
      adopted(descriptor.digest, failure);
      return undefined;
    }
  }
}

/** Throws `corrupt` unless the file has the digest; makes it durable. */
async function mustMatch(file: string, digest: Digest, signal: AbortSignal): Promise<void> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(file), hash, { signal });
  if (`sha256:${hash.digest("hex")}` !== digest) {
    throw new PullError("corrupt", `what a dead instance left of ${digest} has another digest`);
  }
  await using handle = await open(file);
  await handle.datasync();
}
