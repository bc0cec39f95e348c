// One request to one host: authorization, redirects, and every failure turned into a PullError.
//
// Authorization goes to the host that asked for it and to no other: a redirect that leaves the origin goes without.
// URLs in messages are cut before their query, since redirect targets carry signatures.

import { type IncomingHttpHeaders, STATUS_CODES } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { type Dispatcher, errors, request as send } from "undici";
import { abortError, PullError, throwIfAborted } from "../errors.ts";
import { authorize, parseChallenges, type Secret, secretFor, TokenCache } from "./auth.ts";
import type { Host } from "./hosts.ts";
import type { Credentials } from "./registry.ts";

export interface Response {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Dispatcher.ResponseData["body"];
  /** Where the answer came from, after redirects. */
  readonly url: URL;
}

export interface RequestInit {
  readonly method: "GET" | "HEAD";
  /** Below the host's API root: `/library/busybox/manifests/latest`. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  /** A redirect's target that worked before; asked first, without authorization. */
  readonly direct?: URL | undefined;
}

const redirectsMax = 10;
const errorBodyBytesMax = 64 * 1024;
const tokenBodyBytesMax = 256 * 1024;
const redirectStatuses = new Set([301, 302, 303, 307, 308]);

export class Requester {
  readonly #host: Host;
  readonly #registryHost: string;
  readonly #repository: string;
  readonly #secret: Secret;
  readonly #dispatcher: Dispatcher;
  readonly #tokens: TokenCache;
  readonly #userAgent: string;

  constructor(options: {
    readonly host: Host;
    readonly registryHost: string;
    readonly repository: string;
    readonly credentials: Credentials | undefined;
    readonly dispatcher: Dispatcher;
    readonly tokens: TokenCache;
    readonly userAgent: string;
  }) {
    this.#host = options.host;
    this.#registryHost = options.registryHost;
    this.#repository = options.repository;
    this.#secret = secretFor(options.credentials, options.host.url.host);
    this.#dispatcher = options.dispatcher;
    this.#tokens = options.tokens;
    this.#userAgent = options.userAgent;
  }

  get host(): Host {
    return this.#host;
  }

  /** Any answer but a refusal: the caller judges its status. Throws `refused`, `unavailable`, `slow`, `cancelled`. */
  async send(init: RequestInit, signal: AbortSignal): Promise<Response> {
    if (init.direct) return await this.#follow(init.direct, init, undefined, signal);
    const key = TokenCache.key(this.#host.url.origin, this.#repository, this.#secret);
    let authorization = this.#tokens.get(key);
    for (let attempt = 0; ; attempt++) {
      const response = await this.#follow(this.#url(init.path), init, authorization, signal);
      if (response.status !== 401) return response;
      const challenge = [response.headers["www-authenticate"] ?? ""].flat().join(", ");
      await response.body.dump();
      // A token that was cached may have expired, so that a second round is fair; a third would be a strike.
      if (attempt > 0) throw this.#refusal(init, challenge);
      this.#tokens.delete(key);
      const answer = await authorize(
        parseChallenges(challenge),
        this.#secret,
        this.#repository,
        (url, token) => this.#sendToken(url, token, signal),
      );
      authorization = answer.header;
      this.#tokens.set(key, answer.header, answer.lifeMs);
    }
  }

  #url(path: string): URL {
    const url = new URL(this.#host.url);
    url.pathname = `${url.pathname}${path}`;
    if (this.#host.isMirror) url.searchParams.set("ns", this.#registryHost);
    return url;
  }

  async #follow(
    start: URL,
    init: RequestInit,
    authorization: string | undefined,
    signal: AbortSignal,
  ): Promise<Response> {
    let url = start;
    for (let hop = 0; hop <= redirectsMax; hop++) {
      const isOwn = url.origin === this.#host.url.origin;
      const headers = {
        "user-agent": this.#userAgent,
        ...init.headers,
        ...(isOwn && this.#host.headers),
        ...(isOwn && authorization !== undefined && { authorization }),
      };
      const response = await this.#exchange(url, { method: init.method, headers }, signal);
      if (!redirectStatuses.has(response.status)) return response;
      const location = response.headers.location ?? "";
      await response.body.dump();
      if (!URL.canParse(location, url.href))
        throw new PullError("unavailable", `${plain(url)} redirects nowhere`);
      url = new URL(location, url);
      if (url.protocol !== "https:" && url.protocol !== "http:") {
        throw new PullError("unavailable", `${plain(url)} is not http`);
      }
    }
    throw new PullError("unavailable", `${plain(start)} redirects more than ${redirectsMax} times`);
  }

  async #sendToken(
    url: URL,
    init: {
      readonly method: "GET" | "POST";
      readonly headers: Record<string, string>;
      readonly body?: string;
    },
    signal: AbortSignal,
  ): Promise<{ status: number; statusText: string; body: string }> {
    const headers = { "user-agent": this.#userAgent, ...init.headers };
    const response = await this.#exchange(url, { ...init, headers }, signal);
    const body = await readText(response, tokenBodyBytesMax);
    return { status: response.status, statusText: statusText(response.status), body };
  }

  async #exchange(
    url: URL,
    init: {
      readonly method: "GET" | "HEAD" | "POST";
      readonly headers: Record<string, string>;
      readonly body?: string;
    },
    signal: AbortSignal,
  ): Promise<Response> {
    try {
      const { statusCode, headers, body } = await send(url, {
        ...init,
        dispatcher: this.#dispatcher,
        signal,
      });
      return { status: statusCode, headers, body, url };
    } catch (error) {
      throw transportError(error, url, signal);
    }
  }

  /** containerd's words for a registry that refuses what it was shown. */
  #refusal(init: RequestInit, challenge: string): PullError {
    const credentialsSent = this.#secret.kind !== "none";
    const code = parseChallenges(challenge).find((one) => one.scheme === "bearer")?.parameters["error"];
    const message = code
      ? `pull access denied, repository does not exist or may require authorization: server message: ${code}: authorization failed`
      : this.#unexpected(init, 401);
    return new PullError("refused", message, { credentialsSent });
  }

  /** containerd's words, with what was asked for as it names it: the last two parts of the path. */
  #unexpected(init: RequestInit, status: number): string {
    const [kind, version] = init.path.split("/").slice(-2);
    return `pulling from host ${this.#host.url.host} failed with status code [${kind} ${version}]: ${status} ${statusText(status)}`;
  }

  /** The error that an answer with this status stands for. */
  async toError(response: Response, init: RequestInit): Promise<PullError> {
    const { status } = response;
    await readText(response, errorBodyBytesMax).catch(() => "");
    const message = this.#unexpected(init, status);
    if (status === 404) return new PullError("not_found", message);
    if (status === 403) {
      return new PullError("refused", message, { credentialsSent: this.#secret.kind !== "none" });
    }
    return new PullError("unavailable", message, { temporary: isTemporary(status) });
  }
}

export function isTemporary(status: number): boolean {
  return status === 408 || status === 429 || status >= 500;
}

/** Seconds or a date (RFC 9110, 10.2.3), in milliseconds from now. */
export function retryAfterMs(headers: IncomingHttpHeaders, now: number): number | undefined {
  const text = headers["retry-after"];
  if (text === undefined) return undefined;
  if (/^\d{1,6}$/.test(text)) return Number(text) * 1000;
  const date = Date.parse(text);
  return Number.isNaN(date) ? undefined : Math.max(0, date - now);
}

/** Waits before another attempt: exponential with jitter, at least as long as the server asked for. */
export async function backOff(attempt: number, askedMs: number, signal: AbortSignal): Promise<void> {
  const ownMs = Math.min(5_000, 100 * 2 ** attempt) * (0.5 + Math.random() / 2);
  await sleep(Math.max(askedMs, ownMs), undefined, { signal }).catch(() => {});
  throwIfAborted(signal);
}

/** The whole body as text, up to a limit, past which it is cut and the connection closed. */
async function readText(response: Response, bytesMax: number): Promise<string> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of response.body) {
    parts.push(part as Buffer);
    bytes += (part as Buffer).length;
    if (bytes > bytesMax) break;
  }
  return Buffer.concat(parts).subarray(0, bytesMax).toString("utf8");
}

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

/** A URL that may be shown: without user, query and fragment. */
export function plain(url: URL): string {
  return `${url.origin}${url.pathname}`;
}

function statusText(status: number): string {
  return STATUS_CODES[status] ?? "";
}
