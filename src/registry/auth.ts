// Authorization: from a 401's challenge and the caller's credentials to a header, cached by host, repository and
// credential, so that one caller's token never serves another (reference 6.2, 6.4; distribution's token specification).

import { createHash } from "node:crypto";
import { PullError } from "../errors.ts";
import type { Credentials } from "./registry.ts";

/** What a caller can present. A refresh token stands in for a password and has no user name. */
export type Secret =
  | { readonly kind: "none" }
  | { readonly kind: "password"; readonly username: string; readonly password: string }
  | { readonly kind: "refresh"; readonly token: string };

export interface Challenge {
  /** Lower case: "bearer", "basic". */
  readonly scheme: string;
  readonly parameters: Readonly<Record<string, string>>;
}

/** A request to a token endpoint, sent by whoever has the connections. The body is at most a few KiB of JSON. */
export type TokenRequest = (
  url: URL,
  init: { readonly method: "GET" | "POST"; readonly headers: Record<string, string>; readonly body?: string },
) => Promise<{ readonly status: number; readonly statusText: string; readonly body: string }>;

/** A token's life is cut by this much, so that it does not expire on its way. */
const slackMs = 10_000;
/** The token specification's default for an answer that does not say. */
const lifeMsDefault = 60_000;
const challengesMax = 16;

/** The credentials that apply to this host, in containerd's order of preference. */
export function secretFor(credentials: Credentials | undefined, host: string): Secret {
  if (credentials === undefined) return { kind: "none" };
  const { serverAddress, username, password, identityToken, auth } = credentials;
  if (serverAddress) {
    const text = serverAddress.includes("://") ? serverAddress : `https://${serverAddress}`;
    if (!URL.canParse(text) || new URL(text).host !== host) return { kind: "none" };
  }
  if (username) return { kind: "password", username, password: password ?? "" };
  if (identityToken) return { kind: "refresh", token: identityToken };
  if (auth) {
    const decoded = Buffer.from(auth, "base64").toString("utf8").replace(/\0+$/, "");
    const colon = decoded.indexOf(":");
    if (colon > 0)
      return { kind: "password", username: decoded.slice(0, colon), password: decoded.slice(colon + 1) };
  }
  return { kind: "none" };
}

/** Every challenge of a WWW-Authenticate header (RFC 9110, 11.6.1), malformed rests left out. */
export function parseChallenges(header: string): Challenge[] {
  const challenges: Challenge[] = [];
  const token = "[!#$%&'*+.^_`|~\\w-]+";
  const scheme = new RegExp(`\\s*,?\\s*(${token})(?:\\s+|$|(?=,))`, "y");
  const parameter = new RegExp(`\\s*,?\\s*(${token})\\s*=\\s*(?:"((?:[^"\\\\]|\\\\.)*)"|(${token}))`, "y");
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

/** Authorization headers that worked, until they expire. Keys hold credentials only as a hash. */
export class TokenCache {
  readonly #entries = new Map<string, { readonly header: string; readonly until: number }>();
  readonly #max = 1000;

  static key(origin: string, repository: string, secret: Secret): string {
    const hash = createHash("sha256").update(JSON.stringify(secret)).digest("hex");
    return `${origin} ${repository} ${hash}`;
  }

  get(key: string): string | undefined {
    const entry = this.#entries.get(key);
    return entry && entry.until > Date.now() ? entry.header : undefined;
  }

  set(key: string, header: string, lifeMs: number): void {
    this.#entries.delete(key);
    this.#entries.set(key, { header, until: Date.now() + lifeMs });
    const oldest = this.#entries.keys().next();
    if (this.#entries.size > this.#max && !oldest.done) this.#entries.delete(oldest.value);
  }

  delete(key: string): void {
    this.#entries.delete(key);
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
): Promise<{ readonly header: string; readonly lifeMs: number }> {
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
  secret: Secret,
  repository: string,
  send: TokenRequest,
): Promise<{ readonly header: string; readonly lifeMs: number }> {
  const { realm, service, scope } = challenge.parameters;
  if (realm === undefined || !URL.canParse(realm))
    throw new PullError("refused", "a Bearer challenge without a realm");
  const scopes = [
    ...new Set([`repository:${repository}:pull`, ...(scope ?? "").split(" ").filter(Boolean)]),
  ].sort();
  const request = { realm: new URL(realm), service: service ?? "", scopes };
  if (secret.kind === "none")
    return readToken(await send(getUrl(request), { method: "GET", headers: {} }), secret);
  const posted = await send(request.realm, postForm(request, secret));
  const isTriedByGet =
    posted.status === 404 || posted.status === 401 || posted.status === 400 || posted.status === 405;
  if (!isTriedByGet || secret.kind !== "password") return readToken(posted, secret);
  const headers = { authorization: `Basic ${basic(secret)}` };
  return readToken(await send(getUrl(request), { method: "GET", headers }), secret);
}

interface TokenQuery {
  readonly realm: URL;
  readonly service: string;
  readonly scopes: readonly string[];
}

function getUrl({ realm, service, scopes }: TokenQuery): URL {
  const url = new URL(realm);
  if (service !== "") url.searchParams.set("service", service);
  for (const scope of scopes) url.searchParams.append("scope", scope);
  return url;
}

function postForm({ service, scopes }: TokenQuery, secret: Exclude<Secret, { kind: "none" }>) {
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
  return { method: "POST" as const, headers, body: form.toString() };
}

function readToken(
  {
    status,
    statusText,
    body,
  }: { readonly status: number; readonly statusText: string; readonly body: string },
  secret: Secret,
): { readonly header: string; readonly lifeMs: number } {
  if (status < 200 || status >= 400) {
    const kind = secret.kind === "none" ? "anonymous" : "oauth";
    const message = `failed to authorize: failed to fetch ${kind} token: unexpected status: ${status} ${statusText}`;
    if (status >= 500 || status === 429) throw new PullError("unavailable", message, { temporary: true });
    throw new PullError("refused", message, { credentialsSent: secret.kind !== "none" });
  }
  let json: { token?: unknown; access_token?: unknown; expires_in?: unknown };
  try {
    json = JSON.parse(body) as typeof json;
  } catch {
    throw new PullError("refused", "the token endpoint did not answer with JSON");
  }
  const token = [json.token, json.access_token].find(isFilled);
  if (token === undefined) throw new PullError("refused", "the token endpoint gave no token");
  const expiresIn = typeof json.expires_in === "number" ? json.expires_in * 1000 : lifeMsDefault;
  return { header: `Bearer ${token}`, lifeMs: Math.max(0, expiresIn - slackMs) };
}

function isFilled(value: unknown): value is string {
  return typeof value === "string" && value !== "";
}

function basic({ username, password }: { readonly username: string; readonly password: string }): string {
  return Buffer.from(`${username}:${password}`).toString("base64");
}
