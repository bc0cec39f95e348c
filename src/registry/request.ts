// One request to one host: authorization, redirects, and every failure turned into a PullError.
//
// Authorization goes to the host that asked for it and to no other: a redirect that leaves the origin goes without, and
// a challenge from where it leads is never answered. URLs in messages are cut before their query, since redirect
// targets carry signatures.

import { type Dispatcher, request as send } from "undici";
import { PullError } from "../errors.ts";
import {
  authorize,
  parseChallenges,
  type Secret,
  secretFor,
  type TokenAnswer,
  TokenCache,
  type TokenRequestInit,
} from "./auth.ts";
import { type Body, bodyOf, discard, PacedBody } from "./body.ts";
import type { Route } from "./connections.ts";
import { plain, transportError } from "./failure.ts";
import type { Host } from "./hosts.ts";
import { retryAfterMs, StatusError, type Timing } from "./patience.ts";
import { isRedirect, redirected, redirectsMax, redirectTarget } from "./redirects.ts";
import type { Credentials, HostEvents } from "./registry.ts";
import type { Wording } from "./wording.ts";

interface Answer {
  readonly status: number;
  /** In lower case; what was sent more than once is joined by commas. */
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly body: Body;
}

export interface Response extends Answer {
  /** Where the answer came from, after redirects, and when it was asked there (performance.now()). */
  readonly url: URL;
  readonly askedMs: number;
  /** Below the API root, as it was asked for. */
  readonly path: string;
}

export interface Parts {
  /** Undefined at the end. */
  next(): Promise<Buffer | undefined>;
}

export interface RequestInit {
  readonly method: "GET" | "HEAD";
  /** Below the host's API root: `/library/busybox/manifests/latest`. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  /** The body may be large, and goes where it comes from; of any answer but 200 and 206 it is not read. */
  readonly isBulk?: boolean;
}

export interface RequesterOptions {
  readonly host: Host;
  /** The host in the reference, which a mirror is told (`?ns=`). */
  readonly registryHost: string;
  readonly repository: string;
  readonly credentials: Credentials | undefined;
  readonly route: Route;
  readonly tokens: TokenCache;
  readonly userAgent: string;
  /** Longest wait for an answer's headers, connecting included. */
  readonly answerTimeoutMs: number;
  /** For so long, a body may bring next to nothing. */
  readonly progressTimeoutMs: number;
  readonly timing: Timing;
  readonly wording: Wording;
  /** Absent: nobody wants to know. */
  readonly events?: HostEvents | undefined;
}

interface Exchange {
  readonly method: "GET" | "HEAD" | "POST";
  readonly headers: Record<string, string>;
  readonly body?: string;
  readonly isBulk?: boolean;
}

const tokenBodyBytesMax = 256 * 1024;
const probeTimeoutMs = 10_000;

/** One repository at one host, as one caller sees it. */
export class Requester {
  readonly #options: RequesterOptions;
  readonly #secret: Secret;
  readonly #tokenKey: string;
  /** The caller's credentials, or a token got with them, have been shown to the registry. */
  #credentialsSent = false;
  /** The challenge that was met last; a token that has run out is replaced without being refused first. */
  #challenge: string | undefined;

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
    const { tokens } = this.#options;
    const url = this.#url(init.path);
    let cached = tokens.get(this.#tokenKey) ?? (await this.#renewKnown(signal));
    let first = await this.#follow(url, init, cached, signal);
    if (this.#isOutdated(first, cached)) {
      await discard(first.body);
      tokens.delete(this.#tokenKey);
      cached = undefined;
      first = await this.#follow(url, init, cached, signal);
    }
    if (first.status !== 401 || !this.#isOwn(first.url)) return first;
    const challenge = await takeChallenge(first);
    const renewed = await this.#renew(challenge, cached, signal);
    this.#challenge = challenge;
    // What was refused a moment ago is not shown again.
    if (renewed === cached) throw this.#refusal(first, challenge);
    const second = await this.#follow(url, init, renewed, signal);
    if (second.status !== 401 || !this.#isOwn(second.url)) return second;
    throw this.#refusal(second, await takeChallenge(second));
  }

  /** A token of an earlier pull says what was allowed then, and may forbid what is allowed by now. */
  #isOutdated({ status, url }: Response, shown: string | undefined): boolean {
    const isEarlier = shown?.startsWith("Bearer ") === true && this.#challenge === undefined;
    return status === 403 && isEarlier && this.#isOwn(url);
  }

  /** Asks a redirect's target that is known already; without authorization. Any answer is returned. */
  async sendTo(target: URL, init: RequestInit, signal: AbortSignal): Promise<Response> {
    return await this.#follow(target, init, undefined, signal);
  }

  /** The body's parts, each good until the next one. Every failure is a PullError; `slow` when next to nothing comes. */
  parts({ body, url }: Pick<Response, "body" | "url">, signal: AbortSignal): Parts {
    const paced = new PacedBody(body, this.#options.progressTimeoutMs);
    const failed = (error: unknown): PullError => this.#failure(error, url, signal);
    return {
      async next() {
        try {
          return await paced.next();
        } catch (error) {
          throw failed(error);
        }
      },
    };
  }

  /** Whoever goes away has not been failed by the host. */
  #failure(error: unknown, url: URL, signal: AbortSignal): PullError {
    const failure = transportError(error, url, signal);
    if (failure.code !== "cancelled") this.#options.events?.failed(url.host, failure.code);
    return failure;
  }

  /** Settles when the host answers, and rejects when it does not or has trouble of its own (5xx). */
  async probe(): Promise<void> {
    const init: RequestInit = { method: "GET", path: "/", headers: {} };
    const signal = AbortSignal.timeout(probeTimeoutMs);
    const response = await this.#follow(this.#url(init.path), init, undefined, signal);
    await discard(response.body);
    if (response.status >= 500) throw new PullError("unavailable", this.#unexpected(response));
  }

  /** The error that an answer with this status stands for. Its body is thrown away. */
  async toError(response: Response): Promise<PullError> {
    const { status, headers, url } = response;
    await discard(response.body);
    const message = this.#unexpected(response);
    if (status === 404) return new PullError("not_found", message);
    // Whoever is forbidden is known, and does no harm by asking once more; whoever is not may be counted as a guess.
    if (status === 403) return new PullError("refused", message);
    if (status === 401) {
      const credentialsSent = this.#credentialsSent && this.#isOwn(url);
      return new PullError("refused", message, { credentialsSent });
    }
    const error = new PullError("unavailable", message);
    const askedMs = retryAfterMs(headers["retry-after"], this.#options.timing.now());
    return new StatusError(error, status, askedMs, url.host);
  }

  #url(path: string): URL {
    const { host, registryHost } = this.#options;
    const url = new URL(host.url);
    url.pathname = `${url.pathname.replace(/\/$/, "")}${path}`;
    if (host.isMirror) url.searchParams.set("ns", registryHost);
    return url;
  }

  /** The host itself; or itself over TLS, where it sends on whoever comes over http. */
  #isOwn(url: URL): boolean {
    const own = this.#options.host.url;
    const isSecured = own.protocol === "http:" && url.protocol === "https:" && url.hostname === own.hostname;
    return url.origin === own.origin || isSecured;
  }

  async #renewKnown(signal: AbortSignal): Promise<string | undefined> {
    return this.#challenge === undefined ? undefined : await this.#renew(this.#challenge, undefined, signal);
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
      const isOwn = this.#isOwn(url);
      if (isOwn && authorization !== undefined && this.#secret.kind !== "none") this.#credentialsSent = true;
      const headers = {
        "user-agent": userAgent,
        ...(isOwn && host.headers),
        ...init.headers,
        ...(isOwn && authorization !== undefined && { authorization }),
      };
      const { method, isBulk = false } = init;
      const askedMs = performance.now();
      const answer = await this.#exchange(url, { method, headers, isBulk }, signal);
      if (!isRedirect(answer.status)) return { ...answer, url, askedMs, path: init.path };
      await discard(answer.body);
      url = redirectTarget(url, answer.headers["location"]);
    }
    throw new PullError("unavailable", `${plain(start)} redirects more than ${redirectsMax} times`);
  }

  /** Follows redirects, but never with the caller's secret to another host. */
  async #sendToken(start: URL, init: TokenRequestInit, signal: AbortSignal): Promise<TokenAnswer> {
    const { host, userAgent, wording } = this.#options;
    let [url, asked] = [start, init];
    for (let hop = 0; hop <= redirectsMax; hop++) {
      const own = this.#isOwn(url) ? host.headers : {};
      const headers = { "user-agent": userAgent, ...own, ...asked.headers };
      const { status, body, headers: told } = await this.#exchange(url, { ...asked, headers }, signal);
      if (!isRedirect(status)) {
        const unexpected = wording.token(asked.method, url, status);
        return { status, unexpected, body: await this.#readToken(body, url, signal) };
      }
      await discard(body);
      const target = redirectTarget(url, told["location"]);
      asked = redirected(asked, status, target.origin === url.origin);
      url = target;
    }
    throw new PullError("unavailable", `${plain(start)} redirects more than ${redirectsMax} times`);
  }

  /** Past the limit it is cut, and the connection closed. */
  async #readToken(body: Answer["body"], url: URL, signal: AbortSignal): Promise<string> {
    const read: Buffer[] = [];
    let bytes = 0;
    const parts = this.parts({ body, url }, signal);
    for (let part = await parts.next(); part; part = await parts.next()) {
      read.push(Buffer.from(part));
      bytes += part.length;
      if (bytes <= tokenBodyBytesMax) continue;
      body.destroy();
      break;
    }
    return Buffer.concat(read).subarray(0, tokenBodyBytesMax).toString("utf8");
  }

  /** undici's own timeouts begin anew with each informational answer (1xx), so a flood of them needs another clock. */
  async #exchange(url: URL, init: Exchange, caller: AbortSignal): Promise<Answer> {
    const { answerTimeoutMs, events } = this.#options;
    const began = performance.now();
    const late = new AbortController();
    const why = `${plain(url)}: no answer within ${answerTimeoutMs} ms`;
    const timer = setTimeout(
      () => late.abort(new PullError("slow", why, { temporary: true })),
      answerTimeoutMs,
    );
    const signal = AbortSignal.any([caller, late.signal]);
    try {
      const answer = await this.#dispatch(url, init, signal);
      events?.answered(url.host, answer.status, (performance.now() - began) / 1000);
      return answer;
    } catch (error) {
      throw this.#failure(error, url, signal);
    } finally {
      clearTimeout(timer);
    }
  }

  async #dispatch(url: URL, { isBulk, ...asked }: Exchange, signal: AbortSignal): Promise<Answer> {
    const { route } = this.#options;
    const bulk = isBulk ? await route.get(url, asked.headers, signal) : undefined;
    if (bulk) return bulk;
    // Not even a HEAD costs its connection, as undici would have it: who answers one with a body loses it by that.
    const options = { ...asked, reset: false, dispatcher: route, signal };
    const { statusCode, headers, body } = await send(url, options);
    return { status: statusCode, headers: joined(headers), body: bodyOf(body) };
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

  #unexpected({ url, path, status }: Response): string {
    const { wording } = this.#options;
    // A query of somebody else's may be a signature.
    const shown = this.#isOwn(url) ? url : new URL(plain(url));
    return wording.status(shown, path, status);
  }
}

async function takeChallenge(response: Response): Promise<string> {
  await discard(response.body);
  return response.headers["www-authenticate"] ?? "";
}

function joined(headers: Dispatcher.ResponseData["headers"]): Answer["headers"] {
  const entries = Object.entries(headers);
  return Object.fromEntries(entries.map(([name, value]) => [name, [value].flat().join(", ")]));
}
