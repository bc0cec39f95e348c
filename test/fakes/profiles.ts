// The registries that people use, by what is peculiar to each: how it asks who is there, what its token endpoint takes
// and gives, and where its blobs really lie. Each is played by three fakes: the registry, a token server and a blob
// store, on addresses of their own.

import type { Auth } from "../harness/cri.ts";
import type { Asked, Behaviour, FakeRegistry } from "./registry.ts";

export interface Fakes {
  readonly registry: FakeRegistry;
  readonly tokens: FakeRegistry;
  readonly store: FakeRegistry;
}

export interface Profile {
  readonly login: Auth | undefined;
  readonly play: (fakes: Fakes) => void;
}

type Answer = (asked: Asked) => Behaviour | undefined;

const secret = "pass:word-of-the-robot";
const basic = (username: string, password: string): string =>
  `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`;

const json = (body: unknown): Behaviour => ({
  status: 200,
  headers: { "content-type": "application/json" },
  body: Buffer.from(JSON.stringify(body)),
});

const refuse = (challenge: string): Behaviour => ({
  status: 401,
  headers: { "www-authenticate": challenge, "docker-distribution-api-version": "registry/2.0" },
});

const isBlob = ({ path }: Asked): boolean => path.includes("/blobs/");

/** Served, where the store takes a signature and refuses a second kind of authorization with this status. */
function signedStore(store: FakeRegistry, parameter: string, status: number): (asked: Asked) => Behaviour {
  store.behave = ({ query, authorization }) => {
    if (authorization !== undefined) return { status };
    return new URLSearchParams(query).has(parameter) ? undefined : { status: 403 };
  };
  return ({ path }) => ({
    status: 307,
    headers: { location: `http://${store.host}${path}?${parameter}=abc%2F123` },
  });
}

/** Tokens are had at an endpoint, which may be the registry's own; whoever shows one gets the answer. */
function withTokens(
  registry: FakeRegistry,
  endpoint: { readonly fake: FakeRegistry; readonly path: string; readonly challenge: string },
  give: Answer,
  answer: Answer,
): void {
  const { fake, path, challenge } = endpoint;
  const token: Answer = (asked) => (asked.path === path ? give(asked) : undefined);
  const guard: Answer = (asked) =>
    asked.authorization === "Bearer t0ken"
      ? answer(asked)
      : refuse(`Bearer realm="http://${fake.host}${path}",${challenge}`);
  if (fake === registry) {
    registry.behave = (asked) => token(asked) ?? guard(asked);
  } else {
    fake.behave = token;
    registry.behave = guard;
  }
}

/** GET with Basic alone. */
function byGet(shown: string, postStatus: number, body: unknown): Answer {
  return ({ method, authorization }) => {
    if (method === "POST") return { status: postStatus };
    return authorization === shown ? json(body) : { status: 401 };
  };
}

export const profiles: Readonly<Record<string, Profile>> = {
  "Docker Hub": {
    login: { username: "robot", password: secret },
    play: ({ registry, tokens, store }) => {
      const redirect = signedStore(store, "verify", 400);
      withTokens(
        registry,
        { fake: tokens, path: "/token", challenge: 'service="registry.docker.io"' },
        () =>
          json({ token: "t0ken", access_token: "t0ken", expires_in: 300, issued_at: "2026-01-01T00:00:00Z" }),
        (asked) => (isBlob(asked) ? redirect(asked) : { headers: { "ratelimit-remaining": "99;w=21600" } }),
      );
    },
  },
  "ECR: no tokens, a password that is long, S3": {
    login: { username: "AWS", password: "eyJwYXlsb2FkIjoi".repeat(120) },
    play: ({ registry, store }) => {
      const redirect = signedStore(store, "X-Amz-Signature", 400);
      const shown = basic("AWS", "eyJwYXlsb2FkIjoi".repeat(120));
      registry.behave = (asked) => {
        if (asked.authorization !== shown)
          return refuse('Basic realm="ecr.example",service="ecr.amazonaws.com"');
        return isBlob(asked) ? redirect(asked) : undefined;
      };
    },
  },
  "Google Artifact Registry: a key in JSON for a password, no POST, redirects within itself": {
    login: { username: "_json_key", password: '{\n  "type": "service_account",\n  "id": "a:b"\n}\n' },
    play: ({ registry }) => {
      const shown = basic("_json_key", '{\n  "type": "service_account",\n  "id": "a:b"\n}\n');
      withTokens(
        registry,
        { fake: registry, path: "/v2/token", challenge: 'service="registry"' },
        byGet(shown, 404, { token: "t0ken", expires_in: 3599 }),
        (asked) =>
          isBlob(asked) && asked.query === ""
            ? { status: 302, headers: { location: `${asked.path}?artifacts-downloads=1` } }
            : undefined,
      );
    },
  },
  "Azure: an identity token by POST, and nothing but access_token": {
    login: { identityToken: "refresh-me" },
    play: ({ registry, store }) => {
      const redirect = signedStore(store, "sig", 403);
      withTokens(
        registry,
        { fake: registry, path: "/oauth2/token", challenge: 'service="registry.azurecr.example"' },
        ({ method }) => (method === "POST" ? json({ access_token: "t0ken" }) : { status: 405 }),
        (asked) => (isBlob(asked) ? redirect(asked) : undefined),
      );
    },
  },
  "Harbor: no POST, an empty access_token, blobs of its own": {
    login: { username: "robot$team+puller", password: secret },
    play: ({ registry }) => {
      withTokens(
        registry,
        { fake: registry, path: "/service/token", challenge: 'service="harbor-registry"' },
        byGet(basic("robot$team+puller", secret), 405, {
          token: "t0ken",
          access_token: "",
          expires_in: 1800,
        }),
        () => undefined,
      );
    },
  },
  "Artifactory: POST is refused, HEAD says no length, GET no digest": {
    login: { username: "robot", password: secret },
    play: ({ registry, store }) => {
      const redirect = signedStore(store, "X-Artifactory-Signature", 400);
      withTokens(
        registry,
        { fake: registry, path: "/artifactory/api/docker/repo/v2/token", challenge: 'service="artifactory"' },
        byGet(basic("robot", secret), 401, { token: "t0ken", expires_in: 3600 }),
        (asked) => {
          if (isBlob(asked)) return redirect(asked);
          const headers = { "docker-content-digest": "" };
          return asked.method === "HEAD" ? { status: 200, headers } : { headers };
        },
      );
    },
  },
  "GHCR: a token for nobody": {
    login: undefined,
    play: ({ registry, store }) => {
      const redirect = signedStore(store, "se", 400);
      withTokens(
        registry,
        { fake: registry, path: "/token", challenge: 'service="ghcr.example"' },
        ({ method, authorization }) =>
          method === "GET" && authorization === undefined ? json({ token: "t0ken" }) : { status: 403 },
        (asked) => (isBlob(asked) ? redirect(asked) : undefined),
      );
    },
  },
};
