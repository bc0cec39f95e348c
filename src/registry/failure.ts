// What goes wrong on the way to a host, in our words.

import { errors } from "undici";
import { abortError, PullError } from "../errors.ts";

/** Total: whatever undici throws, in our words. */
export function transportError(error: unknown, url: URL, signal: AbortSignal): PullError {
  if (error instanceof PullError) return error;
  if (signal.aborted) return abortError(signal);
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const isTimeout =
    error instanceof errors.HeadersTimeoutError ||
    error instanceof errors.BodyTimeoutError ||
    error instanceof errors.ConnectTimeoutError;
  const why = error instanceof Error ? error.message : String(error);
  return new PullError(isTimeout ? "slow" : "unavailable", `${plain(url)}: ${why || code}`, {
    cause: error,
    temporary: true,
  });
}

const unreachableCodes = new Set([
  "ECONNREFUSED",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ENOTFOUND",
  "EAI_AGAIN",
  "UND_ERR_CONNECT_TIMEOUT",
]);

/** Whether no connection could be made at all, as opposed to one that broke. */
export function isUnreachable({ cause }: PullError): boolean {
  return cause instanceof Error && "code" in cause && unreachableCodes.has(String(cause.code));
}

/** A URL that may be shown: without user, query and fragment. */
export function plain(url: URL): string {
  return `${url.origin}${url.pathname}`;
}
