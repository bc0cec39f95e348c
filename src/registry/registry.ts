// The face of the registry room: an OCI distribution client that lets only verified bytes out.
//
// A Repository is one reference as seen by one caller: its hosts in order (hosts.toml or the default), the caller's
// credentials, and the redirects met so far. Small things (manifests, configs) come back as bytes; layers go into a
// spool by bounded ranges, which the layer room reads meanwhile and verifies as it reads. This room never touches
// containerd, never decompresses, and never lets a credential reach a log, an error or another host.

import type { Descriptor } from "../oci/descriptor.ts";
import type { Reference } from "../oci/reference.ts";
import type { Spool } from "../spool.ts";

/** CRI's AuthConfig in our words; absent fields are empty strings there (reference 6.2). */
export interface Credentials {
  readonly username?: string;
  readonly password?: string;
  /** base64 of "username:password". */
  readonly auth?: string;
  readonly serverAddress?: string;
  readonly identityToken?: string;
}

interface RequestAnswer {
  /** From which host (host:port), after redirects. */
  readonly from: string;
  /** So long after the request was sent, of which so long until the last redirect. */
  readonly timeMs: number;
  readonly redirectedMs: number;
  /** It brings what was asked for. */
  readonly isServed: boolean;
}

/** For one blob request, until it is disposed of. */
export interface RequestPermit extends Disposable {
  /** Says that the request gets so little that it must not keep others of the node from theirs. */
  slow(): void;
  /** Says that an answer's head came. */
  answered(answer: RequestAnswer): void;
  /** Says that so much of the body came. */
  received(bytes: number): void;
  /** Says that nothing was read for so long, to keep to a bandwidth. */
  throttled(ms: number): void;
  /** Says that the host has refused it for now, or broken it off. */
  troubled(): void;
  /** Says that it has failed, in whatever way: the code of its error, or the status of its answer. */
  failed(code: string): void;
  /** There where the request has to make way for others. */
  readonly yielding?: Yielding;
}

export interface Yielding {
  /**
   * Aborted when it is to make way. A request for a range is broken off then, what came of it is kept, and another permit
   * is asked for; one for everything could only begin anew, and waits in {@link goOn}.
   */
  readonly revoked: AbortSignal;
  /**
   * Waits, behind so many bytes of the body, until the next may be read; with a range only for its share of bandwidth, and
   * no longer once it is revoked. Rejects when the signal is aborted.
   */
  goOn(bytes: number, isRange: boolean, signal: AbortSignal): Promise<void>;
}

/** Permits for blob requests; the registry room asks for one per request it sends and disposes of it afterwards. */
export interface RequestPermits {
  /** Waits until one more blob request may be open to this host (host:port). Rejects when the signal is aborted. */
  acquire(host: string, signal: AbortSignal): Promise<RequestPermit>;
  /** Says that nothing was asked for so long after a failure of this host. */
  paused(host: string, ms: number): void;
}

/** What becomes of every request, whatever it asks for; tokens and each step of a redirect included. */
export interface HostEvents {
  /** A host (host:port) has answered: the head of its answer came so long after the request was begun. */
  answered(host: string, status: number, seconds: number): void;
  /** It did not, or its answer broke off: with the code of the error. */
  failed(host: string, code: string): void;
}

export interface Resolved {
  readonly descriptor: Descriptor;
  /** The manifest's or index's bytes when they came with the answer, verified; absent after a HEAD. */
  readonly body?: Uint8Array;
}

export interface Repository {
  /**
   * Asks the hosts in order what the reference stands for, with the caller's credentials: HEAD when `known` (the node
   * already has something by this name), GET at once when not. Errors: `not_found`, `refused`, `unavailable`, `slow`
   * (no first byte from any host within `fallback.after`), `corrupt`, `unsupported` (schema 1).
   */
  resolve(known: boolean, signal: AbortSignal): Promise<Resolved>;

  /** Fetches a manifest, index or config of at most `limitBytes` whole; size and sha256 are verified. */
  fetch(descriptor: Descriptor, limitBytes: number, signal: AbortSignal): Promise<Uint8Array>;

  /**
   * Fetches a blob into the spool and completes it; on failure it throws and leaves spool.fail to the caller. Bounded
   * ranges over several kept-alive connections, in order; one stream where ranges are not served. The length is
   * verified here; the digest by whoever reads the spool (the layer room hashes every byte that it reads).
   */
  download(descriptor: Descriptor, spool: Spool, permits: RequestPermits, signal: AbortSignal): Promise<void>;
}

/**
 * Told when a host (host:port) has failed that was asked for what is no layer: the status that it answered, or the code of
 * the failure; and for how many milliseconds it was left alone before it was asked again.
 */
export type AskingFailed = (host: string, code: string, pausedMs: number) => void;

export interface Registry {
  /** Never waits and never throws: hosts.toml is read on first use, afresh for each Repository. */
  repository(reference: Reference, credentials: Credentials | undefined, failed?: AskingFailed): Repository;

  /** Closes every connection. */
  close(): Promise<void>;
}
