// Authorization: from a 401's challenge and the caller's credentials to a header, cached by host, repository and
// credential, so that one caller's token never serves another (reference 6.2, 6.4; distribution's token specification).

import { createHash } from "node:crypto";
import { PullError } from "../errors.ts";
import type { Credentials } from "./registry.ts";

/** What a caller can present. A refresh token stands in for a password and has no user name. */
export type Secret =
  | { readonly kind: "none" }
  | { readonly kind: "password"; readonly username: string; readonly password: string }
  | { readonly kind: "refresh"; readonly token: string }
  /** There is something, and containerd would fail over it where it is asked for. */
  | { readonly kind: "unreadable" };

type Shown = Extract<Secret, { readonly kind: "password" | "refresh" }>;

export interface Challenge {
  /** Lower case: "bearer", "basic". */
  readonly scheme: string;
  readonly parameters: Readonly<Record<string, string>>;
}

export interface TokenRequestInit {
  readonly method: "GET" | "POST";
  readonly headers: Record<string, string>;
  readonly body?: string;
}

/** The body is cut at a limit. */
export interface TokenAnswer {
  readonly status: number;
  /** What containerd says of such a status where it expects another. */
  readonly unexpected: string;
  readonly body: string;
}

/** A request to a token endpoint, sent by whoever has the connections. */
type TokenRequest = (url: URL, init: TokenRequestInit) => Promise<TokenAnswer>;

/** An Authorization header and for how long it is good. */
interface Authorization {
  readonly header: string;
  readonly lifeMs: number;
}

/** A token's life is cut by this much, so that it does not expire on its way; by half when it is short. */
const slackMs = 10_000;
/** The token specification's default for an answer that does not say. */
const lifeMsDefault = 60_000;
const challengesMax = 16;

/**
 * The credentials that apply to this host, in containerd's order of preference. As with containerd, they are for every
 * host that asks, mirrors included, unless they name a server; a name without a scheme is none that containerd knows.
 */
export function secretFor(credentials: Credentials | undefined, host: string): Secret {
  if (credentials === undefined) return { kind: "none" };
  const { serverAddress, username, password, identityToken, auth } = credentials;
  if (serverAddress && hostOf(serverAddress) !== host) return { kind: "none" };
  if (username) return passwordSecret(username, password ?? "");
  if (identityToken) return { kind: "refresh", token: identityToken };
  const [, name, word] = /^([^:]*):(.*)$/s.exec(decode(auth ?? "") ?? "") ?? [];
  if (name === undefined || word === undefined) return { kind: "unreadable" };
  return passwordSecret(name, word.replaceAll(/^\0+|\0+$/g, ""));
}

/** As Go's base64.StdEncoding: line ends count for nothing, everything else counts. */
function decode(base64: string): string | undefined {
  const text = base64.replaceAll(/[\r\n]/g, "");
  const isRight = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text);
  return isRight ? Buffer.from(text, "base64").toString("utf8") : undefined;
}

/** containerd presents neither half of a pair alone. */
function passwordSecret(username: string, password: string): Secret {
  return username === "" || password === "" ? { kind: "none" } : { kind: "password", username, password };
}

/** As Go's url.Parse finds it, without a default port taken away. */
function hostOf(address: string): string | undefined {
  return /^(?:[a-z][a-z0-9+.-]*:)?\/\/(?:[^/?#]*@)?([^/?#]*)/i.exec(address)?.[1];
}

/** Every challenge of a WWW-Authenticate header (RFC 9110, 11.6.1), malformed rests left out. */
export function parseChallenges(header: string): Challenge[] {
  const challenges: Challenge[] = [];
  const token = "[!#$%&'*+.^_`|~\\w-]+";
  // One class for what separates, so that no length of it can be taken apart in more than one way.
  const scheme = new RegExp(`[\\s,]*(${token})(?:\\s+|$|(?=,))`, "y");
  const parameter = new RegExp(`[\\s,]*(${token})\\s*=\\s*(?:"((?:[^"\\\\]|\\\\.)*)"|(${token}))`, "y");
  for (let at = 0; at < header.length && challenges.length < challengesMax; ) {
    scheme.lastIndex = at;
    const start = scheme.exec(header);
    if (start === null) break;
    at = scheme.lastIndex;
    const parameters: Record<string, string> = {};
    for (;;) {
      parameter.lastIndex = at;
      const found = parameter.exec(header);
      if (found === null) break;
      at = parameter.lastIndex;
      parameters[(found[1] ?? "").toLowerCase()] = found[2]?.replace(/\\(.)/g, "$1") ?? found[3] ?? "";
    }
    challenges.push({ scheme: (start[1] ?? "").toLowerCase(), parameters });
  }
  return challenges;
}

/** Authorization headers until they expire, the oldest forgotten first. Keys hold credentials only as a hash. */
export class TokenCache {
  readonly #entries = new Map<string, { readonly header: string; readonly until: number }>();
  /** Renewals on their way. */
  readonly #pending = new Map<string, Promise<string>>();
  readonly #now: () => number;
  readonly #max = 1000;

  constructor(now: () => number) {
    this.#now = now;
  }

  static key(origin: string, repository: string, secret: Secret): string {
    const hash = createHash("sha256").update(JSON.stringify(secret)).digest("hex");
    return `${origin} ${repository} ${hash}`;
  }

  get(key: string): string | undefined {
    const entry = this.#entries.get(key);
    return entry && entry.until > this.#now() ? entry.header : undefined;
  }

  /**
   * A header other than the one that was found stale. Made once for all who ask for it at the same time; a failure is
   * that of all of them.
   */
  async renew(key: string, stale: string | undefined, make: () => Promise<Authorization>): Promise<string> {
    const current = this.get(key);
    if (current !== undefined && current !== stale) return current;
    const pending = this.#pending.get(key) ?? this.#make(key, make);
    this.#pending.set(key, pending);
    return await pending;
  }

  delete(key: string): void {
    this.#entries.delete(key);
  }

  async #make(key: string, make: () => Promise<Authorization>): Promise<string> {
    try {
      const { header, lifeMs } = await make();
      this.#entries.delete(key);
      this.#entries.set(key, { header, until: this.#now() + lifeMs });
      const oldest = this.#entries.keys().next();
      if (this.#entries.size > this.#max && !oldest.done) this.#entries.delete(oldest.value);
      return header;
    } finally {
      this.#pending.delete(key);
    }
  }
}

/**
 * Answers a challenge with an Authorization header and its life. Bearer is preferred over Basic. Throws `refused`, in
 * containerd's words, when there is nothing to present or the token endpoint says no.
 */
export async function authorize(
  challenges: readonly Challenge[],
  secret: Secret,
  repository: string,
  send: TokenRequest,
): Promise<Authorization> {
  if (secret.kind === "unreadable") {
    const expected = "neither a user name nor an identity token nor base64 of a pair";
    throw new PullError("unsupported", `the credentials of this pull are ${expected}`);
  }
  const bearer = challenges.find((challenge) => challenge.scheme === "bearer");
  if (bearer) return await fetchToken(bearer, secret, repository, send);
  if (challenges.some((challenge) => challenge.scheme === "basic")) {
    if (secret.kind !== "password") throw new PullError("refused", "no basic auth credentials");
    return { header: `Basic ${basic(secret)}`, lifeMs: Number.POSITIVE_INFINITY };
  }
  throw new PullError("refused", "the registry asks for a kind of authorization that is not known");
}

async function fetchToken(
  challenge: Challenge,
  secret: Exclude<Secret, { readonly kind: "unreadable" }>,
  repository: string,
  send: TokenRequest,
): Promise<Authorization> {
  const { realm, service, scope } = challenge.parameters;
  if (realm === undefined || !isWebAddress(realm))
    throw new PullError("refused", "a Bearer challenge without a realm that can be asked");
  const scopes = [
    ...new Set([`repository:${repository}:pull`, ...(scope ?? "").split(" ").filter(Boolean)]),
  ].sort();
  const query = { realm: new URL(realm), service: service ?? "", scopes };
  if (secret.kind === "none")
    return readToken(await send(getUrl(query), { method: "GET", headers: {} }), secret, [
      "access_token",
      "token",
    ]);
  const posted = await send(query.realm, postForm(query, secret));
  // Not every registry takes the form (reference 6.4); those are asked the older way.
  const isTriedByGet =
    [400, 401, 404].includes(posted.status) || (posted.status === 405 && secret.kind === "password");
  if (!isTriedByGet) return readToken(posted, secret, ["access_token"]);
  const headers = { authorization: `Basic ${basic(secret)}` };
  return readToken(await send(getUrl(query), { method: "GET", headers }), secret, ["access_token", "token"]);
}

function isWebAddress(text: string): boolean {
  return URL.canParse(text) && /^https?:$/.test(new URL(text).protocol);
}

interface TokenQuery {
  readonly realm: URL;
  readonly service: string;
  readonly scopes: readonly string[];
}

function getUrl({ realm, service, scopes }: TokenQuery): URL {
  const url = new URL(realm);
  if (service !== "") url.searchParams.append("service", service);
  for (const scope of scopes) url.searchParams.append("scope", scope);
  // In Go's order, for whoever sees it in an error.
  url.searchParams.sort();
  return url;
}

function postForm({ service, scopes }: TokenQuery, secret: Shown): TokenRequestInit {
  const form = new URLSearchParams({ client_id: "containerd-client", service, scope: scopes.join(" ") });
  if (secret.kind === "refresh") {
    form.set("grant_type", "refresh_token");
    form.set("refresh_token", secret.token);
  } else {
    form.set("grant_type", "password");
    form.set("username", secret.username);
    form.set("password", secret.password);
  }
  const headers = { "content-type": "application/x-www-form-urlencoded; charset=utf-8" };
  return { method: "POST", headers, body: form.toString() };
}

/** `names` are the fields that may hold the token, the first that does before the others, as containerd reads them. */
function readToken(answer: TokenAnswer, secret: Secret, names: readonly string[]): Authorization {
  const { status, unexpected, body } = answer;
  if (status < 200 || status >= 400) {
    const kind = secret.kind === "none" ? "anonymous" : "oauth";
    const message = `failed to authorize: failed to fetch ${kind} token: ${unexpected}`;
    if (status >= 500 || status === 429) throw new PullError("unavailable", message, { temporary: true });
    throw new PullError("refused", message, { credentialsSent: secret.kind !== "none" });
  }
  let json: Readonly<Record<string, unknown>> | null;
  try {
    json = JSON.parse(body) as typeof json;
  } catch {
    throw new PullError("unavailable", "the token endpoint did not answer with JSON");
  }
  const token = names.map((name) => json?.[name]).find((value) => typeof value === "string" && value !== "");
  if (!isFilled(token)) throw new PullError("unavailable", "the token endpoint gave no token");
  const expiresIn = json?.["expires_in"];
  const lifeMs = typeof expiresIn === "number" && expiresIn > 0 ? expiresIn * 1000 : lifeMsDefault;
  return { header: `Bearer ${token}`, lifeMs: lifeMs - Math.min(slackMs, lifeMs / 2) };
}

/** What goes into a header as it is must not be able to end it. */
function isFilled(value: unknown): value is string {
  return typeof value === "string" && /^[\x21-\x7e]+$/.test(value);
}

function basic(secret: Shown): string {
  const pair = secret.kind === "refresh" ? `:${secret.token}` : `${secret.username}:${secret.password}`;
  return Buffer.from(pair).toString("base64");
}
