// References: "busybox:1.36" in, host, repository, tag and digest out, by containerd's rules (reference 2.1).

import type { Digest } from "./digest.ts";

export interface Reference {
  /** Host with port as in the canonical name: `docker.io`, `reg.example.com:5000`. */
  readonly host: string;
  /** `library/busybox`. */
  readonly repository: string;
  /** Set when the reference has a tag and no digest; a tag beside a digest is dropped. */
  readonly tag: string | undefined;
  readonly digest: Digest | undefined;
  /** The canonical form: `docker.io/library/busybox:latest`, or `…@sha256:…`. The name of the image record. */
  readonly name: string;
}
