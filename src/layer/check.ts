// The checks that a layer must pass whatever engine unpacks it: sizes and ratio while it flows, digests at its end.

import { createHash } from "node:crypto";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import type { LayerLimits } from "./layer.ts";

/** Below this much output a high ratio is of no consequence. */
const ratioFromBytes = 64 * 1024 * 1024;

/** Of the blob, and of how much comes out of it. */
export class BlobCheck {
  readonly #descriptor: Descriptor;
  readonly #limits: LayerLimits;
  readonly #hash = createHash("sha256");
  #blobBytes = 0;
  #tarBytes = 0;

  constructor(descriptor: Descriptor, limits: LayerLimits) {
    this.#descriptor = descriptor;
    this.#limits = limits;
  }

  get tarBytes(): number {
    return this.#tarBytes;
  }

  /** Bytes of the blob as they are on the wire. */
  blob(bytes: Uint8Array): void {
    this.#blobBytes += bytes.length;
    this.#hash.update(bytes);
  }

  /** So many bytes more after inflating. Throws `exhausted` past a limit. */
  inflated(bytes: number): void {
    this.#tarBytes += bytes;
    const { bytesMax, ratioMax } = this.#limits;
    if (this.#tarBytes > bytesMax) {
      throw new PullError("exhausted", `the layer is over ${bytesMax} bytes long (unpack.max_layer_size)`);
    }
    if (this.#tarBytes > ratioFromBytes && this.#tarBytes > ratioMax * this.#blobBytes) {
      throw new PullError("exhausted", `the layer inflates more than ${ratioMax} times (unpack.max_ratio)`);
    }
  }

  /** Throws `corrupt`, with both sides, when the blob is not what was announced. */
  finish(): void {
    const { digest, size } = this.#descriptor;
    if (this.#blobBytes !== size) {
      throw new PullError("corrupt", `layer ${digest} has ${this.#blobBytes} bytes instead of ${size}`);
    }
    const blob = `sha256:${this.#hash.digest("hex")}`;
    if (blob !== digest) throw new PullError("corrupt", `layer ${digest} has the digest ${blob}`);
  }
}

/** Of the tar stream. */
export class TarCheck {
  readonly #digest: Digest;
  readonly #diffID: Digest;
  readonly #hash = createHash("sha256");

  constructor(digest: Digest, diffID: Digest) {
    this.#digest = digest;
    this.#diffID = diffID;
  }

  tar(bytes: Uint8Array): void {
    this.#hash.update(bytes);
  }

  /** Throws `corrupt`, with both sides, when the stream is not what was announced. */
  finish(): void {
    const tar = `sha256:${this.#hash.digest("hex")}`;
    if (tar !== this.#diffID) throw wrongDiffID(this.#digest, tar, this.#diffID);
  }
}

export function wrongDiffID(digest: Digest, found: string, announced: Digest): PullError {
  return new PullError("corrupt", `layer ${digest} has the diffID ${found} instead of ${announced}`);
}
