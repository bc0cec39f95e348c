// One containerd lease for a pull and for all the work that was begun under it, deleted when the last holder is done.
//
// Layers and blobs are shared between pulls and may outlive the pull that began them; so does the lease that keeps
// garbage collection away from what they made.

import type { Lease } from "../containerd/containerd.ts";

export interface LeaseShare extends AsyncDisposable {
  readonly lease: Lease;
  /** Another share of the same lease. */
  share(): LeaseShare;
}

/** The first share of a lease that was just made. */
export function shareLease(lease: Lease): LeaseShare {
  let count = 0;
  const share = (): LeaseShare => {
    count += 1;
    let held = true;
    return {
      lease,
      share,
      [Symbol.asyncDispose]: async () => {
        if (!held) return;
        held = false;
        count -= 1;
        if (count === 0) await lease[Symbol.asyncDispose]();
      },
    };
  };
  return share();
}
