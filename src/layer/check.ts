// The checks that a layer must pass whatever engine unpacks it: sizes and ratio while it flows, digests at its end.

import { createHash } from "node:crypto";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Digest } from "../oci/digest.ts";
import type { LayerLimits } from "./layer.ts";

/** Below this much output a high ratio is of no consequence. */
const ratioFromBytes = 64 * 1024 * 1024;

export class Checks {
  readonly #descriptor: Descriptor;
  readonly #diffID: Digest;
  readonly #limits: LayerLimits;
  readonly #blobHash = createHash("sha256");
  readonly #tarHash = createHash("sha256");
  #blobBytes = 0;
  #tarBytes = 0;

  constructor(descriptor: Descriptor, diffID: Digest, limits: LayerLimits) {
    this.#descriptor = descriptor;
    this.#diffID = diffID;
    this.#limits = limits;
  }

  get tarBytes(): number {
    return this.#tarBytes;
  }

  /** Bytes of the blob as they are on the wire. */
  blob(bytes: Uint8Array): void {
    this.#blobBytes += bytes.length;
    this.#blobHash.update(bytes);
  }

  /** Bytes after inflating. Throws `exhausted` past a limit. */
  tar(bytes: Uint8Array): void {
    this.#tarBytes += bytes.length;
    this.#tarHash.update(bytes);
    const { bytesMax, ratioMax } = this.#limits;
    if (this.#tarBytes > bytesMax) {
      throw new PullError("exhausted", `the layer is over ${bytesMax} bytes long (unpack.max_layer_size)`);
    }
    if (this.#tarBytes > ratioFromBytes && this.#tarBytes > ratioMax * this.#blobBytes) {
      throw new PullError("exhausted", `the layer inflates more than ${ratioMax} times (unpack.max_ratio)`);
    }
  }

  /** Throws `corrupt`, with both sides, when the blob or the tar stream is not what was announced. */
  finish(): void {
    const { digest, size } = this.#descriptor;
    if (this.#blobBytes !== size) {
      throw new PullError("corrupt", `layer ${digest} has ${this.#blobBytes} bytes instead of ${size}`);
    }
    const blob = `sha256:${this.#blobHash.digest("hex")}`;
    if (blob !== digest) throw new PullError("corrupt", `layer ${digest} has the digest ${blob}`);
    const tar = `sha256:${this.#tarHash.digest("hex")}`;
    if (tar !== this.#diffID) {
      throw new PullError("corrupt", `layer ${digest} has the diffID ${tar} instead of ${this.#diffID}`);
    }
  }
}
