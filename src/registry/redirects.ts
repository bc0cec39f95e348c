// Where a redirect leads, and what may be sent there.

import { PullError } from "../errors.ts";
import type { TokenRequestInit } from "./auth.ts";
import { plain } from "./failure.ts";

export const redirectsMax = 10;
const redirectStatuses = new Set([301, 302, 303, 307, 308]);

export function isRedirect(status: number): boolean {
  return redirectStatuses.has(status);
}

/** Throws `unavailable` where it leads nowhere, or to something that is not http. */
export function redirectTarget(from: URL, location: string | undefined): URL {
  if (location === undefined || !URL.canParse(location, from.href)) {
    throw new PullError("unavailable", `${plain(from)} redirects nowhere`);
  }
  const url = new URL(location, from);
  if (url.protocol !== "https:" && url.protocol !== "http:") {
    throw new PullError("unavailable", `${plain(from)} redirects to something that is not http`);
  }
  return url;
}

/** As browsers and Go do it: 307 and 308 repeat a POST, the others make it a GET. */
export function redirected(init: TokenRequestInit, status: number, isSameOrigin: boolean): TokenRequestInit {
  const { authorization: _secret, ...others } = init.headers;
  const headers = isSameOrigin ? init.headers : others;
  if (init.method === "GET") return { ...init, headers };
  if (status !== 307 && status !== 308) return { method: "GET", headers: {} };
  if (!isSameOrigin)
    throw new PullError("unavailable", "the token endpoint redirects a POST to another host");
  return init;
}
