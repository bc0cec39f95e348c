// Authorization: challenges are read whatever their form, and secrets go where they belong.

import fc from "fast-check";
import { expect, test } from "vitest";
import {
  authorize,
  parseChallenges,
  type Secret,
  secretFor,
  TokenCache,
  type TokenRequestInit,
} from "../../src/registry/auth.ts";

test.each([
  ['Basic realm="a, b"', [{ scheme: "basic", parameters: { realm: "a, b" } }]],
  ["Basic", [{ scheme: "basic", parameters: {} }]],
  [
    'Bearer realm="https://auth.example/token",service="reg",scope="repository:a:pull,push"',
    [
      {
        scheme: "bearer",
        parameters: { realm: "https://auth.example/token", service: "reg", scope: "repository:a:pull,push" },
      },
    ],
  ],
  [
    'bearer Realm="x" , error=insufficient_scope',
    [{ scheme: "bearer", parameters: { realm: "x", error: "insufficient_scope" } }],
  ],
  [
    'Basic realm="a", Bearer realm="b\\"c"',
    [
      { scheme: "basic", parameters: { realm: "a" } },
      { scheme: "bearer", parameters: { realm: 'b"c' } },
    ],
  ],
  [
    'Basic realm="a",, ,Bearer realm="b"',
    [
      { scheme: "basic", parameters: { realm: "a" } },
      { scheme: "bearer", parameters: { realm: "b" } },
    ],
  ],
  ["", []],
  ["=,=", []],
])("%s", (header, challenges) => {
  expect(parseChallenges(header)).toEqual(challenges);
});

test("a header far longer than any that comes in is read in one go", () => {
  const gap = " ".repeat(100_000);
  expect(parseChallenges(`Bearer x=y${gap}a${gap}b`)).toMatchObject([{ parameters: { x: "y" } }, {}, {}]);
});

test("no header makes the parser throw or run away", () => {
  fc.assert(
    fc.property(fc.string({ maxLength: 500 }), (header) => {
      expect(parseChallenges(header).length).toBeLessThanOrEqual(16);
    }),
  );
});

test("credentials in containerd's order of preference, and for the right host only", () => {
  const auth = Buffer.from("from:auth").toString("base64");
  expect(secretFor(undefined, "h")).toEqual({ kind: "none" });
  expect(secretFor({ username: "u", password: "p", identityToken: "t", auth }, "h")).toEqual({
    kind: "password",
    username: "u",
    password: "p",
  });
  expect(secretFor({ identityToken: "t", auth }, "h")).toEqual({ kind: "refresh", token: "t" });
  expect(secretFor({ auth }, "h")).toEqual({ kind: "password", username: "from", password: "auth" });
  const pair = { username: "u", password: "p" };
  expect(secretFor({ ...pair, serverAddress: "https://other.example" }, "h")).toEqual({ kind: "none" });
  expect(secretFor({ ...pair, serverAddress: "h" }, "h")).toEqual({ kind: "none" });
  expect(secretFor({ ...pair, serverAddress: "https://h" }, "h")).toMatchObject({ kind: "password" });
  expect(secretFor({ ...pair, serverAddress: "https://other@h/v1/" }, "h")).toMatchObject({
    kind: "password",
  });
  expect(secretFor({ ...pair, serverAddress: "https://h:443" }, "h")).toEqual({ kind: "none" });
  expect(secretFor({ ...pair, serverAddress: "https://h.other.example" }, "h")).toEqual({ kind: "none" });
  expect(secretFor({ username: "u" }, "h")).toEqual({ kind: "none" });
});

test.each([
  ["dTpw", { kind: "password", username: "u", password: "p" }],
  ["dTpw\n", { kind: "password", username: "u", password: "p" }],
  ["dTpwOnE=", { kind: "password", username: "u", password: "p:q" }],
  ["dTpwAAA=", { kind: "password", username: "u", password: "p" }],
  // Without its padding, in the alphabet of URLs, with a space, no pair, nothing at all.
  ["dTpwOnE", { kind: "unreadable" }],
  ["dTo_", { kind: "unreadable" }],
  ["dTp w", { kind: "unreadable" }],
  ["dXA=", { kind: "unreadable" }],
  ["", { kind: "unreadable" }],
])("auth %j is read as Go reads it", (auth, secret) => {
  expect(secretFor({ auth }, "h")).toEqual(secret);
});

test("a token is asked for by POST, and by GET where that is refused", async () => {
  const secret = secretFor({ username: "u", password: "p" }, "h");
  const asked: string[] = [];
  const [challenge] = parseChallenges(
    'Bearer realm="https://auth.example/token",service="reg",scope="repository:a:pull"',
  );
  const answer = await authorize(challenge ? [challenge] : [], secret, "a", async (url, init) => {
    asked.push(`${init.method} ${url.search} ${init.body ?? ""} ${init.headers["authorization"] ?? ""}`);
    return init.method === "POST"
      ? { status: 404, unexpected: "unexpected status", body: "" }
      : { status: 200, unexpected: "unexpected status", body: '{"access_token":"T","expires_in":300}' };
  });
  expect(answer).toEqual({ header: "Bearer T", lifeMs: 290_000 });
  expect(asked[0]).toContain("grant_type=password");
  expect(asked[1]).toBe(
    `GET ?scope=repository%3Aa%3Apull&service=reg  Basic ${Buffer.from("u:p").toString("base64")}`,
  );
});

const [bearer] = parseChallenges('Bearer realm="https://auth.example/token?service=own",service="reg"');

async function tokenOf(secret: Secret, answer: (init: TokenRequestInit, url: URL) => object) {
  return await authorize(bearer ? [bearer] : [], secret, "a", async (url, init) => {
    const { status = 200, ...body } = answer(init, url) as { status?: number };
    return { status, unexpected: "unexpected status", body: JSON.stringify(body) };
  });
}

const pair = secretFor({ username: "u", password: "p" }, "h");

test("of two tokens in one answer, access_token is the one, as for containerd", async () => {
  const both = { token: "old", access_token: "new" };
  expect(await tokenOf({ kind: "none" }, () => both)).toMatchObject({ header: "Bearer new" });
  expect(await tokenOf(pair, () => both)).toMatchObject({ header: "Bearer new" });
  expect(await tokenOf({ kind: "none" }, () => ({ token: "old", access_token: "" }))).toMatchObject({
    header: "Bearer old",
  });
});

test("an answer to POST without access_token is none, as for containerd", async () => {
  await expect(tokenOf(pair, () => ({ token: "t" }))).rejects.toMatchObject({ code: "unavailable" });
});

test("what the realm's own query says is added to", async () => {
  let asked = "";
  await tokenOf({ kind: "none" }, (_init, url) => {
    asked = url.search;
    return { token: "t" };
  });
  expect(asked).toBe("?scope=repository%3Aa%3Apull&service=own&service=reg");
});

test("without credentials the token is anonymous, and a refusal is nobody's strike", async () => {
  const challenges = parseChallenges('Bearer realm="https://auth.example/token"');
  const refused = authorize(challenges, { kind: "none" }, "a", async (_url, init) => {
    expect(init).toEqual({ method: "GET", headers: {} });
    return { status: 401, unexpected: "unexpected status", body: "" };
  });
  await expect(refused).rejects.toMatchObject({ code: "refused", credentialsSent: false });
});

test("cached tokens are apart by credential, and the key does not hold it", async () => {
  let now = 0;
  const cache = new TokenCache(() => now);
  const one = TokenCache.key("https://h", "a", { kind: "password", username: "u", password: "secret-1" });
  const other = TokenCache.key("https://h", "a", { kind: "password", username: "u", password: "secret-2" });
  await cache.renew(one, undefined, async () => ({ header: "Bearer T", lifeMs: 1000 }));
  expect(cache.get(one)).toBe("Bearer T");
  expect(cache.get(other)).toBeUndefined();
  expect(one).not.toContain("secret");
  now = 1000;
  expect(cache.get(one)).toBeUndefined();
});

test("a token that was found stale is renewed once for all who ask", async () => {
  const cache = new TokenCache(() => 0);
  let made = 0;
  const make = async () => ({ header: `Bearer ${++made}`, lifeMs: 1000 });
  const asked = [cache.renew("k", undefined, make), cache.renew("k", undefined, make)];
  expect(await Promise.all(asked)).toEqual(["Bearer 1", "Bearer 1"]);
  expect(await cache.renew("k", undefined, make)).toBe("Bearer 1");
  expect(await cache.renew("k", "Bearer 1", make)).toBe("Bearer 2");
});
