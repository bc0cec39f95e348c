// One request to one host: authorization, redirects, and every failure turned into a PullError.
//
// Authorization goes to the host that asked for it and to no other: a redirect that leaves the origin goes without, and
// a challenge from where it leads is never answered. URLs in messages are cut before their query, since redirect
// targets carry signatures.

import { STATUS_CODES } from "node:http";
import { type Dispatcher, errors, request as send } from "undici";
import { abortError, PullError } from "../errors.ts";
import {
  authorize,
  parseChallenges,
  type Secret,
  secretFor,
  type TokenAnswer,
  TokenCache,
  type TokenRequestInit,
} from "./auth.ts";
import type { Host } from "./hosts.ts";
import { retryAfterMs, StatusError, type Timing } from "./patience.ts";
import type { Credentials } from "./registry.ts";

interface Answer {
  readonly status: number;
  /** In lower case; what was sent more than once is joined by commas. */
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly body: Dispatcher.ResponseData["body"];
}

export interface Response extends Answer {
  /** Where the answer came from, after redirects. */
  readonly url: URL;
  /** Below the API root, as it was asked for. */
  readonly path: string;
}

export interface RequestInit {
  readonly method: "GET" | "HEAD";
  /** Below the host's API root: `/library/busybox/manifests/latest`. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
}

export interface RequesterOptions {
  readonly host: Host;
  /** The host in the reference, which a mirror is told (`?ns=`). */
  readonly registryHost: string;
  readonly repository: string;
  readonly credentials: Credentials | undefined;
  readonly dispatcher: Dispatcher;
  readonly tokens: TokenCache;
  readonly userAgent: string;
  readonly timing: Timing;
}

interface Exchange {
  readonly method: "GET" | "HEAD" | "POST";
  readonly headers: Record<string, string>;
  readonly body?: string;
}

const redirectsMax = 10;
const errorBodyBytesMax = 64 * 1024;
const tokenBodyBytesMax = 256 * 1024;
const probeTimeoutMs = 10_000;
const redirectStatuses = new Set([301, 302, 303, 307, 308]);

/** One repository at one host, as one caller sees it. */
export class Requester {
  readonly #options: RequesterOptions;
  readonly #secret: Secret;
  readonly #tokenKey: string;
  /** The caller's credentials, or a token got with them, have been shown to the registry. */
  #credentialsSent = false;

  constructor(options: RequesterOptions) {
    this.#options = options;
    this.#secret = secretFor(options.credentials, options.host.url.host);
    this.#tokenKey = TokenCache.key(options.host.url.origin, options.repository, this.#secret);
  }

  get host(): Host {
    return this.#options.host;
  }

  /** Any answer but a refusal: the caller judges its status. Throws `refused`, `unavailable`, `slow`, `cancelled`. */
  async send(init: RequestInit, signal: AbortSignal): Promise<Response> {
    const { tokens, host } = this.#options;
    const url = this.#url(init.path);
    const cached = tokens.get(this.#tokenKey);
    const first = await this.#follow(url, init, cached, signal);
    if (first.status !== 401 || first.url.origin !== host.url.origin) return first;
    const challenge = await takeChallenge(first);
    const renewed = await this.#renew(challenge, cached, signal);
    // What was refused a moment ago is not shown again.
    if (renewed === cached) throw this.#refusal(first, challenge);
    const second = await this.#follow(url, init, renewed, signal);
    if (second.status !== 401 || second.url.origin !== host.url.origin) return second;
    throw this.#refusal(second, await takeChallenge(second));
  }

  /** Asks a redirect's target that is known already; without authorization. Any answer is returned. */
  async sendTo(target: URL, init: RequestInit, signal: AbortSignal): Promise<Response> {
    return await this.#follow(target, init, undefined, signal);
  }

  /** Settles when the host answers, and rejects when it does not or has trouble of its own (5xx). */
  async probe(): Promise<void> {
    const init: RequestInit = { method: "GET", path: "/", headers: {} };
    const signal = AbortSignal.timeout(probeTimeoutMs);
    const response = await this.#follow(this.#url(init.path), init, undefined, signal);
    await response.body.dump({ limit: errorBodyBytesMax });
    if (response.status >= 500) throw new PullError("unavailable", this.#unexpected(response));
  }

  /** The error that an answer with this status stands for. Its body is thrown away. */
  async toError(response: Response): Promise<PullError> {
    const { status, headers, url } = response;
    await response.body.dump({ limit: errorBodyBytesMax }).catch(() => {});
    const message = this.#unexpected(response);
    if (status === 404) return new PullError("not_found", message);
    if (status === 401 || status === 403) {
      const credentialsSent = this.#credentialsSent && url.origin === this.#options.host.url.origin;
      return new PullError("refused", message, { credentialsSent });
    }
    const error = new PullError("unavailable", message);
    return new StatusError(error, status, retryAfterMs(headers["retry-after"], this.#options.timing.now()));
  }

  #url(path: string): URL {
    const { host, registryHost } = this.#options;
    const url = new URL(host.url);
    url.pathname = `${url.pathname}${path}`;
    if (host.isMirror) url.searchParams.set("ns", registryHost);
    return url;
  }

  /** A header that is not `stale`, made once for everybody who needs it at the same time. */
  async #renew(challenge: string, stale: string | undefined, signal: AbortSignal): Promise<string> {
    const { tokens, repository } = this.#options;
    const make = async () =>
      await authorize(parseChallenges(challenge), this.#secret, repository, async (url, init) => {
        if (this.#secret.kind !== "none") this.#credentialsSent = true;
        return await this.#sendToken(url, init, signal);
      });
    for (;;) {
      try {
        return await tokens.renew(this.#tokenKey, stale, make);
      } catch (error) {
        // Somebody else's request, who went away: this one is still wanted.
        const isOthers = error instanceof PullError && error.code === "cancelled" && !signal.aborted;
        if (!isOthers) throw error;
      }
    }
  }

  async #follow(
    start: URL,
    init: RequestInit,
    authorization: string | undefined,
    signal: AbortSignal,
  ): Promise<Response> {
    const { host, userAgent } = this.#options;
    let url = start;
    for (let hop = 0; hop <= redirectsMax; hop++) {
      const isOwn = url.origin === host.url.origin;
      if (isOwn && authorization !== undefined && this.#secret.kind !== "none") this.#credentialsSent = true;
      const headers = {
        "user-agent": userAgent,
        ...init.headers,
        ...(isOwn && host.headers),
        ...(isOwn && authorization !== undefined && { authorization }),
      };
      const answer = await this.#exchange(url, { method: init.method, headers }, signal);
      if (!redirectStatuses.has(answer.status)) return { ...answer, url, path: init.path };
      await answer.body.dump();
      url = redirectTarget(url, answer.headers["location"]);
    }
    throw new PullError("unavailable", `${plain(start)} redirects more than ${redirectsMax} times`);
  }

  async #sendToken(url: URL, init: TokenRequestInit, signal: AbortSignal): Promise<TokenAnswer> {
    const headers = { "user-agent": this.#options.userAgent, ...init.headers };
    const { status, body } = await this.#exchange(url, { ...init, headers }, signal);
    try {
      return { status, statusText: statusText(status), body: await readText(body, tokenBodyBytesMax) };
    } catch (error) {
      throw transportError(error, url, signal);
    }
  }

  async #exchange(url: URL, init: Exchange, signal: AbortSignal): Promise<Answer> {
    try {
      const { dispatcher } = this.#options;
      const { statusCode, headers, body } = await send(url, { ...init, dispatcher, signal });
      return { status: statusCode, headers: joined(headers), body };
    } catch (error) {
      throw transportError(error, url, signal);
    }
  }

  /** containerd's words for a registry that refuses what it was shown (reference 6.4). */
  #refusal(response: Response, challenge: string): PullError {
    this.#options.tokens.delete(this.#tokenKey);
    const bearer = parseChallenges(challenge).find(({ scheme }) => scheme === "bearer");
    const code = bearer?.parameters["error"];
    const message = code
      ? `pull access denied, repository does not exist or may require authorization: server message: ${code}: authorization failed`
      : this.#unexpected(response);
    return new PullError("refused", message, { credentialsSent: this.#credentialsSent });
  }

  /** containerd's words, with what was asked for as it names it: the last two parts of the path. */
  #unexpected({ path, status }: Response): string {
    const [kind, version] = path.split("/").slice(-2);
    const { host } = this.#options.host.url;
    return `pulling from host ${host} failed with status code [${kind} ${version}]: ${status} ${statusText(status)}`;
  }
}

async function takeChallenge(response: Response): Promise<string> {
  await response.body.dump({ limit: errorBodyBytesMax }).catch(() => {});
  return response.headers["www-authenticate"] ?? "";
}

function joined(headers: Dispatcher.ResponseData["headers"]): Answer["headers"] {
  const entries = Object.entries(headers);
  return Object.fromEntries(entries.map(([name, value]) => [name, [value].flat().join(", ")]));
}

function redirectTarget(from: URL, location: string | undefined): URL {
  if (location === undefined || !URL.canParse(location, from.href)) {
    throw new PullError("unavailable", `${plain(from)} redirects nowhere`);
  }
  const url = new URL(location, from);
  if (url.protocol !== "https:" && url.protocol !== "http:") {
    throw new PullError("unavailable", `${plain(from)} redirects to something that is not http`);
  }
  return url;
}

/** The whole body as text, up to a limit, past which it is cut and the connection closed. */
async function readText(body: Answer["body"], bytesMax: number): Promise<string> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of body as AsyncIterable<Buffer>) {
    parts.push(part);
    bytes += part.length;
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

function statusText(status: number): string {
  return STATUS_CODES[status] ?? "";
}
