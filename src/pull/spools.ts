// The spools of this instance: room for new ones, and those that broken-off pulls and dead instances left.
//
// A blob takes a spool and gives it back in one of three ways: parked (whoever wants the blob next goes on from there),
// discarded, or adopted by containerd. Live and parked spools together stay below `content.spool_max_size`; parked ones
// give way first, oldest first, and all of them when the disk fills up or they are older than `content.spool_max_age`.
// Nothing here verifies a byte: a spool that was gone on with may turn out wrong, and is then discarded.

import { lstatSync } from "node:fs";
import { link, mkdir, readdir, rename, rm, rmdir, statfs } from "node:fs/promises";
import { join } from "node:path";
import { PullError } from "../errors.ts";
import { failpoint } from "../failpoint.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { type Digest, hexOf } from "../oci/digest.ts";
import { mergeRanges, Spool } from "../spool.ts";
import type { Spans } from "../trace.ts";
import { Journal, type Keep, type Recorded, readBootId, readJournal } from "./journal.ts";
import { Quota, type QuotaEvents } from "./quota.ts";
import {
  hasBytes,
  isJournal,
  journalOf,
  openSpool,
  type Parked,
  type PendingAdoption,
  remove,
} from "./spoolfile.ts";
import type { Urgency } from "./urgency.ts";

interface SpoolLimits {
  /** Most bytes of live and parked spools together. */
  readonly bytesMax: number;
  /** How long a parked spool waits for somebody to want it. */
  readonly ageMaxMs: number;
}

export interface SpoolsOptions {
  /** The instance's own folder. */
  readonly folder: string;
  readonly limits: SpoolLimits;
  /** Told when an adoption was put off; see takeDeferred(). */
  readonly deferred: () => void;
  /** Told how many bytes are reserved and parked, on each change. */
  readonly changed: (bytes: { readonly live: number; readonly parked: number }) => void;
  readonly queue?: QuotaEvents;
}

const tidyEveryMs = 60_000;
/** Kubelet deletes images when less than this is free (imageGCHighThresholdPercent 85); leftovers go before them. */
const freeShareMin = 0.15;

export class Spools implements AsyncDisposable {
  readonly #options: SpoolsOptions;
  readonly #boot: string;
  readonly #quota: Quota;
  readonly #parked = new Map<Digest, Parked>();
  readonly #timer: NodeJS.Timeout;
  /** Blobs of this instance that are to be adopted a little later. */
  #deferred: PendingAdoption[] = [];
  /** Numbers the files, so that two spools of one blob never meet. */
  #count = 0;

  private constructor(options: SpoolsOptions, boot: string) {
    this.#options = options;
    this.#boot = boot;
    this.#quota = new Quota(options.limits.bytesMax, options.queue);
    this.#timer = setInterval(() => void this.tidy().catch(() => {}), tidyEveryMs).unref();
  }

  static async open(options: SpoolsOptions): Promise<Spools> {
    await mkdir(join(options.folder, "parked"), { recursive: true, mode: 0o700 });
    return new Spools(options, await readBootId());
  }

  /** Waits for room, lower urgency first. Throws `exhausted` for a blob that is larger than all the room there is. */
  async take(blob: Descriptor, urgency: Urgency, spans: Spans, signal: AbortSignal): Promise<HeldSpool> {
    const { bytesMax } = this.#options.limits;
    const why = `layer ${blob.digest} has ${blob.size} bytes, over content.spool_max_size (${bytesMax})`;
    if (blob.size > bytesMax) throw new PullError("exhausted", why);
    const reserve = () => this.#quota.reserve(blob.size, urgency, signal);
    const room = await (this.#quota.hasRoom(blob.size) ? reserve() : spans.of("room", reserve));
    try {
      const former = this.#reclaim(blob);
      await this.#evict(bytesMax - this.#quota.reservedBytes);
      return await this.#open(blob, former, room);
    } catch (error) {
      room[Symbol.dispose]();
      throw error;
    }
  }

  offer(release: () => void, urgency?: number): Disposable {
    return this.#quota.offer(release, urgency);
  }

  review(): void {
    this.#quota.review();
  }

  isParked(digest: Digest): boolean {
    return this.#parked.has(digest);
  }

  /**
   * Parks a blob that lies whole elsewhere, as another name of the same file: into a spool that is whole nobody writes,
   * and what turns out wrong is discarded by its name. Does nothing for a file of another size or file system.
   */
  async borrow(descriptor: Descriptor, path: string): Promise<void> {
    const { digest, size } = descriptor;
    const written = [{ start: 0, end: size }];
    const file = this.#fileFor(digest);
    try {
      const journal = await Journal.create(journalOf(file), descriptor, this.#boot, written);
      await journal.close();
      await link(path, file);
      if (lstatSync(file).size === size) await this.park({ digest, sizeBytes: size, written }, file);
      else await remove({ file });
    } catch {
      // It is fetched instead.
      await remove({ file });
    }
  }

  /** How many bytes of a blob are parked. */
  presentBytes({ digest, size }: Descriptor): number {
    const former = this.#parked.get(digest);
    return former?.sizeBytes === size ? former.bytes : 0;
  }

  /** Removes all other parked spools; false when there was none. */
  async dropAllBut(digests: ReadonlySet<Digest>): Promise<boolean> {
    return await this.drop([...this.#parked.keys()].filter((digest) => !digests.has(digest)));
  }

  /** Removes these parked spools, or all; false when there was none. */
  async drop(digests: readonly Digest[] = [...this.#parked.keys()]): Promise<boolean> {
    const gone = digests.flatMap((digest) => this.#parked.get(digest) ?? []);
    for (const digest of digests) this.#parked.delete(digest);
    await Promise.all(gone.map(remove));
    this.report();
    return gone.length > 0;
  }

  /** Removes what is too old, and everything parked when the disk is nearly full. */
  async tidy(): Promise<void> {
    if (this.#parked.size === 0) return;
    const { folder, limits } = this.#options;
    const { bavail, blocks } = await statfs(folder);
    const nowMs = Date.now();
    // Where the clock was set back, nothing is younger than now.
    for (const [digest, spool] of this.#parked)
      if (spool.sinceMs > nowMs) this.#parked.set(digest, { ...spool, sinceMs: nowMs });
    const oldestMs = nowMs - limits.ageMaxMs;
    const isFull = bavail < blocks * freeShareMin;
    const old = [...this.#parked].filter(([, { sinceMs }]) => isFull || sinceMs <= oldestMs);
    await this.drop(old.map(([digest]) => digest));
  }

  /**
   * Takes over a folder that a dead instance left (it is ours by now): returns what is to be adopted for an image that
   * is there, parks everything else that can be gone on with, removes the rest. The caller removes the folder once the adoptions are over.
   */
  async inherit(folder: string, isNeeded: (image: string) => Promise<boolean>): Promise<PendingAdoption[]> {
    const pending: PendingAdoption[] = [];
    const entries = await readdir(folder, { recursive: true, withFileTypes: true });
    for (const entry of entries.filter(isJournal)) {
      const file = join(entry.parentPath, entry.name.slice(0, -journalOf("").length));
      const recorded = await readJournal(journalOf(file), this.#boot);
      if (recorded === undefined) continue;
      const { digest, sizeBytes: size, keep } = recorded;
      if (!hasBytes(file, recorded)) continue;
      if (keep === undefined || !(await isNeeded(keep.image))) {
        const written = mergeRanges(recorded.written);
        await this.park({ digest, sizeBytes: size, written }, file, lstatSync(file).mtimeMs);
      } else {
        const descriptor = { mediaType: "application/octet-stream", digest, size };
        pending.push({ descriptor, file, keep });
      }
    }
    const kept = new Set(pending.map(({ file }) => file));
    for (const entry of entries) {
      const path = join(entry.parentPath, entry.name);
      const isKept = kept.has(path) || (isJournal(entry) && kept.has(path.slice(0, -journalOf("").length)));
      if (!entry.isDirectory() && !isKept) await rm(path, { force: true });
    }
    await this.tidy();
    return pending;
  }

  /** Puts a spool that was taken among the parked ones; called by HeldSpool. */
  async park(
    { digest, sizeBytes, written }: Omit<Recorded, "keep">,
    file: string,
    sinceMs: number = Date.now(),
  ): Promise<void> {
    const bytes = written.reduce((sum, { start, end }) => sum + end - start, 0);
    if (bytes === 0) {
      await remove({ file });
      return;
    }
    // A name that nobody else uses: others may be parking and taking the same blob.
    const parked = this.#fileFor(digest, "parked");
    // Whenever a crash comes, one of the two names has file and journal both.
    await link(file, parked);
    failpoint("parking");
    await rename(journalOf(file), journalOf(parked));
    await rm(file);
    const other = this.#parked.get(digest);
    if (other && other.bytes >= bytes) {
      await remove({ file: parked });
      return;
    }
    this.#parked.set(digest, { file: parked, sizeBytes, written, bytes, sinceMs });
    if (other) await remove(other);
    await this.#evict(this.#options.limits.bytesMax - this.#quota.reservedBytes);
  }

  defer(adoption: PendingAdoption): void {
    this.#deferred.push(adoption);
    this.#options.deferred();
  }

  /** What was deferred so far; whoever asks sees to it, files and journals included. */
  takeDeferred(): PendingAdoption[] {
    const taken = this.#deferred;
    this.#deferred = [];
    return taken;
  }

  report(): void {
    this.#options.changed({ live: this.#quota.reservedBytes, parked: this.#parkedBytes() });
  }

  /** Parked spools and pending adoptions stay for the next instance; without any, the folder goes. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    const { folder } = this.#options;
    for (const path of [join(folder, "parked"), folder]) await rmdir(path).catch(() => {});
  }

  #parkedBytes(): number {
    return [...this.#parked.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** The parked spool of this very blob, which then is parked no more. */
  #reclaim({ digest, size }: Descriptor): Parked | undefined {
    const former = this.#parked.get(digest);
    // The digest is the truth and the size a claim of a manifest, which another manifest may make otherwise.
    if (former?.sizeBytes !== size) return undefined;
    this.#parked.delete(digest);
    return former;
  }

  async #open(descriptor: Descriptor, former: Parked | undefined, room: Disposable): Promise<HeldSpool> {
    const file = this.#fileFor(descriptor.digest);
    const written = former?.written ?? [];
    try {
      // Its journal comes first: a file without one is nobody's.
      const journal = await Journal.create(journalOf(file), descriptor, this.#boot, written);
      const spool = await openSpool(file, descriptor, journal, former);
      this.report();
      return new HeldSpool(this, descriptor, spool, journal, room, former !== undefined);
    } catch (error) {
      await remove({ file });
      if (former) await remove(former);
      throw PullError.from(error);
    }
  }

  #fileFor(digest: Digest, folder = ""): string {
    this.#count += 1;
    return join(this.#options.folder, folder, `${hexOf(digest)}-${this.#count}`);
  }

  /** Removes parked spools, oldest first, until they have no more than so many bytes. */
  async #evict(bytesMax: number): Promise<void> {
    const going: Digest[] = [];
    let bytes = this.#parkedBytes();
    const byAge = [...this.#parked].sort(([, one], [, other]) => one.sinceMs - other.sinceMs);
    for (const [digest, parked] of byAge) {
      if (bytes <= bytesMax) break;
      going.push(digest);
      bytes -= parked.bytes;
    }
    await this.drop(going);
  }
}

/** A spool that a blob holds. It is given back once, in one of the ways below. */
export class HeldSpool {
  readonly spool: Spool;
  /** Some of the bytes were written by a former attempt. */
  readonly isResumed: boolean;
  readonly #spools: Spools;
  readonly #descriptor: Descriptor;
  readonly #journal: Journal;
  readonly #room: Disposable;

  constructor(
    spools: Spools,
    descriptor: Descriptor,
    spool: Spool,
    journal: Journal,
    room: Disposable,
    isResumed: boolean,
  ) {
    this.#spools = spools;
    this.#descriptor = descriptor;
    this.spool = spool;
    this.#journal = journal;
    this.#room = room;
    this.isResumed = isResumed;
  }

  /** Notes that the bytes are right and are to be kept, so that a crash cannot undo it. */
  keep(keep: Keep): void {
    this.#journal.keep(keep);
    failpoint("keep-noted");
  }

  async park(): Promise<void> {
    await this.spool.close();
    const written = this.spool.written;
    await this.#journal.close();
    const { digest, size } = this.#descriptor;
    this.#room[Symbol.dispose]();
    await this.#spools.park({ digest, sizeBytes: size, written }, this.spool.view.path);
    this.#spools.report();
  }

  /** Leaves file and journal where they are, for an adoption that has to wait. */
  async defer(keep: Keep): Promise<void> {
    await this.spool.close();
    await this.#journal.close();
    this.#room[Symbol.dispose]();
    this.#spools.defer({ descriptor: this.#descriptor, file: this.spool.view.path, keep });
    this.#spools.report();
  }

  /** Removes what is left of it, which after an adoption is only the journal. */
  async discard(): Promise<void> {
    await this.spool[Symbol.asyncDispose]();
    await this.#journal.close();
    await rm(this.#journal.path, { force: true });
    this.#room[Symbol.dispose]();
    this.#spools.report();
  }
}
