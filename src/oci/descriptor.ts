// Descriptors: what a manifest or an index says of a blob (OCI image-spec, descriptor.md).

import type { Digest } from "./digest.ts";

export interface Platform {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string;
  /** A version or features of the system are asked for as well. */
  readonly isNarrowed?: boolean;
}

export interface Descriptor {
  /** The media type, as the manifest or the registry gave it. */
  readonly mediaType: string;
  readonly digest: Digest;
  /** Length of the blob in bytes: a safe integer of at least 0. */
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>>;
  /** Only on the entries of an index. */
  readonly platform?: Platform;
}
