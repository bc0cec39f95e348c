// The one error class of Hawser, and its closed set of codes.
//
// Foreign errors (HTTP, gRPC, errno) are turned into PullError where they enter the house: registry/ for HTTP,
// containerd/ for gRPC status, layer/ for system calls. cri/ turns a PullError into a gRPC status or into a
// delegation. Nothing else inspects foreign errors, and no secret is ever part of a message.

/**
 * What went wrong, in terms of what the caller can do about it.
 *
 * - `invalid`: the reference or a descriptor cannot be parsed.
 * - `not_found`: the registry or containerd says that the thing does not exist.
 * - `refused`: a registry refused credentials (401, 403); see {@link PullError.credentialsSent}.
 * - `unavailable`: no answer, or an answer that says "later".
 * - `slow`: no first byte within `fallback.after`, or no progress within `download.progress_timeout`.
 * - `corrupt`: bytes that do not match their size or digest, or an archive that cannot be read.
 * - `unsupported`: something that only containerd can do (encrypted layers, sparse files, unknown types).
 * - `exhausted`: disk, inodes or a limit of the configuration.
 * - `exists`: containerd, or the cluster, already has it; success in most places.
 * - `conflict`: what was to be changed in the cluster is not what it was any more.
 * - `cancelled`: the caller went away.
 * - `internal`: a fault of ours.
 */
export type ErrorCode =
  | "invalid"
  | "not_found"
  | "refused"
  | "unavailable"
  | "slow"
  | "corrupt"
  | "unsupported"
  | "exhausted"
  | "exists"
  | "conflict"
  | "cancelled"
  | "internal";

export interface PullErrorOptions {
  readonly cause?: unknown;
  /** The same attempt may succeed later without anybody changing anything. */
  readonly temporary?: boolean;
  /** `refused` only: the caller's own credentials were presented, so that a second try would be a second strike. */
  readonly credentialsSent?: boolean;
}

export class PullError extends Error {
  override readonly name = "PullError";
  readonly code: ErrorCode;
  readonly temporary: boolean;
  readonly credentialsSent: boolean;

  constructor(code: ErrorCode, message: string, options: PullErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.temporary = options.temporary ?? false;
    this.credentialsSent = options.credentialsSent ?? false;
  }

  /** Total: whatever was thrown becomes a PullError; what already is one passes through, and a full disk is `exhausted`. */
  static from(thrown: unknown, code: ErrorCode = "internal"): PullError {
    if (thrown instanceof PullError) return thrown;
    if (thrown instanceof Error) {
      if (thrown.name === "AbortError") return new PullError("cancelled", "cancelled", { cause: thrown });
      return new PullError(isFull(thrown) ? "exhausted" : code, thrown.message, { cause: thrown });
    }
    return new PullError(code, String(thrown));
  }
}

/** Whether an error of node:fs says that there is no space, no inode, or no quota left. */
function isFull(error: Error): boolean {
  return "code" in error && (error.code === "ENOSPC" || error.code === "EDQUOT");
}

/** Throws `cancelled` (or the PullError that is the abort's reason) once the signal is aborted. */
export function throwIfAborted(signal: AbortSignal): void {
  if (signal.aborted) throw abortError(signal);
}

/** The PullError that an aborted signal stands for. */
export function abortError(signal: AbortSignal): PullError {
  const reason: unknown = signal.reason;
  return reason instanceof PullError ? reason : new PullError("cancelled", "cancelled", { cause: reason });
}

/** The promise's outcome, or a rejection as soon as the signal is aborted; then nobody else need look at the promise. */
export async function whileNotAborted<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  return await new Promise<Value>((resolve, reject) => {
    const onAbort = (): void => reject(abortError(signal));
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
