// One image of an archive as the pull room sees any image: documents are read, and layers come in a spool.
//
// What a file is called proves nothing: documents are held against their digests here, and layers where they are unpacked.

import { PullError, throwIfAborted } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { sha256 } from "../oci/digest.ts";
import type { Repository, RequestPermits, Resolved } from "../registry/registry.ts";
import type { Spool } from "../spool.ts";
import type { ArchivedImage } from "./contents.ts";
import type { Files, Place } from "./files.ts";

export class ArchiveRepository implements Repository {
  readonly #files: Files;
  readonly #image: ArchivedImage;

  constructor(files: Files, image: ArchivedImage) {
    this.#files = files;
    this.#image = image;
  }

  async resolve(): Promise<Resolved> {
    return { descriptor: this.#image.target };
  }

  async fetch(descriptor: Descriptor, limitBytes: number): Promise<Uint8Array> {
    const made = this.#image.made.get(descriptor.digest);
    const bytes = made ?? (await this.#files.read(this.#mustFind(descriptor), limitBytes));
    if (sha256(bytes) === descriptor.digest) return bytes;
    throw new PullError("corrupt", `${descriptor.digest} is not what the archive has under this name`);
  }

  async download(
    descriptor: Descriptor,
    spool: Spool,
    permits: RequestPermits,
    signal: AbortSignal,
  ): Promise<void> {
    const place = this.#mustFind(descriptor);
    // Counted like a request, of a host that there cannot be.
    using _permit = await permits.acquire("archive", signal);
    let at = spool.watermark;
    for await (const piece of this.#files.pieces(place, at)) {
      throwIfAborted(signal);
      spool.write(at, piece);
      at += piece.length;
    }
    spool.complete();
  }

  #mustFind({ digest, size }: Descriptor): Place {
    const place = this.#image.blob(digest);
    if (place === undefined) throw new PullError("not_found", `the archive lacks ${digest}`);
    if (place.sizeBytes === size) return place;
    throw new PullError(
      "corrupt",
      `${digest} has ${place.sizeBytes} bytes in the archive instead of ${size}`,
    );
  }
}
